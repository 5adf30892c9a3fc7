"""The server under load: many clients of OpenAI's library, of which each has its own question.

    python benchmarks/serve.py FOLDER [--clients 1 8 20] [--requests 24 96 200] [--new 32] [--batch 8]
    python benchmarks/serve.py MODEL.gguf --peer PYTHON [--server llama_cpp|xllamacpp] ...

FOLDER is a converted one. ``int8conv serve`` runs in a process of its own; with ``--peer``, a server of llama.cpp from the environment of PYTHON: that
of llama-cpp-python, or llama.cpp's own, which the package xllamacpp contains, with as many places.
For each number of clients, REQUESTS requests are sent, each by the next client that is free, every other one as a stream. Prints tokens per
second of all clients together and per second of the server's processor time, which other work on the machine changes less, the time to the first token of a stream, how many answers differ from those of a client alone, and the
server's memory after each.
"""

from __future__ import annotations

import argparse
import os
import platform
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from urllib.error import URLError
from urllib.request import urlopen

from openai import OpenAI
from tabulate import tabulate

PROMPTS = 16
"""Different ones."""

PEERS = {
    "llama_cpp": """
import runpy, sys
_, model, batch, threads, _, port = sys.argv
sys.argv = ["llama_cpp.server", "--model", model, "--n_ctx", "1024", "--n_threads", threads,
            "--n_threads_batch", threads, "--port", port]
runpy.run_module("llama_cpp.server", run_name="__main__")
""",
    "xllamacpp": """
import sys, time, xllamacpp
model, batch, threads, _, port = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.port = model, int(port)
params.n_parallel, params.n_ctx = int(batch), 1024 * int(batch)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
""",
}
"""Servers of llama.cpp: the Python one of llama-cpp-python, which answers one request after the other, and its own, which batches them."""


def prompt_of(number: int) -> str:
    return f"Question {number % PROMPTS}: what is a vector, and how many of them fit into a list?\nAnswer:"


class Load:
    """Requests, and what came of them."""

    def __init__(self, address: str, requests: int, new: int) -> None:
        self.address, self.new = address, new
        self.waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(requests):
            self.waiting.put(number)
        self.answers: dict[int, str] = {}
        self.first: list[float] = []
        self.tokens = 0
        self._lock = threading.Lock()

    def client(self) -> None:
        with OpenAI(base_url=f"{self.address}/v1", api_key="-", max_retries=0) as client:
            while True:
                try:
                    number = self.waiting.get_nowait()
                except queue.Empty:
                    return
                self._ask(client, number)

    def _ask(self, client: OpenAI, number: int) -> None:
        began, first, text, used = time.perf_counter(), None, "", 0
        asked = {
            "model": "model",
            "prompt": prompt_of(number),
            "max_tokens": self.new,
            "temperature": 0,
        }
        if number % 2:
            whole = client.completions.create(**asked)
            text, used = whole.choices[0].text, whole.usage.completion_tokens
        else:
            for part in client.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            ):
                if part.choices and part.choices[0].text:
                    first = first or time.perf_counter() - began
                    text += part.choices[0].text
                    used += 1  # unless the server says how many there were
                used = part.usage.completion_tokens if part.usage else used
        with self._lock:
            self.answers[number] = text
            self.tokens += used
            self.first += [first] if first else []


def run(address: str, clients: int, requests: int, new: int) -> tuple[Load, float]:
    load = Load(address, requests, new)
    threads = [threading.Thread(target=load.client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load, time.perf_counter() - began


def resident(process: int) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def used(process: int) -> float:
    """Seconds of processor time."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(model: Path, peer: list[str] | None, batch: int) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if peer is None:
        command = [
            sys.executable,
            "-m",
            "int8conv",
            "serve",
            model,
            "--name",
            "model",
            "--max-waiting",
            "256",
            "--batch",
            batch,
        ]
    else:
        command = [*peer, model, batch, os.cpu_count() or 1]
    words = [str(each) for each in (*command, "--port", port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    while server.poll() is None:
        try:
            urlopen(f"{address}/v1/models").close()
            return server, address
        except URLError:
            time.sleep(0.1)
    raise SystemExit(f"the server ended; to see why: {' '.join(words)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="FOLDER")
    parser.add_argument("--peer", metavar="PYTHON", help="with the package of --server")
    parser.add_argument("--server", choices=list(PEERS), default="llama_cpp")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 20])
    parser.add_argument(
        "--requests",
        type=int,
        nargs="+",
        default=[200],
        help="one number, or one for each number of clients",
    )
    parser.add_argument("--new", type=int, default=32)
    arguments = parser.parse_args()
    peer = [arguments.peer, "-c", PEERS[arguments.server]] if arguments.peer else None
    server, address = start(arguments.model, peer, arguments.batch)
    try:
        alone, _ = run(address, 1, PROMPTS, arguments.new)
        kinds = {prompt_of(number): text for number, text in alone.answers.items()}
        rows = []
        for i, clients in enumerate(arguments.clients):
            requests = arguments.requests[min(i, len(arguments.requests) - 1)]
            before = used(server.pid)
            load, seconds = run(address, clients, requests, arguments.new)
            processor = used(server.pid) - before
            lost = requests - len(load.answers)
            other = sum(text != kinds[prompt_of(n)] for n, text in load.answers.items())
            rows.append(row := [
                clients, requests, lost, other, f"{load.tokens / seconds:.0f}", f"{load.tokens / processor:.0f}",
                f"{1000 * median(load.first):.0f}", f"{1000 * max(load.first):.0f}", f"{resident(server.pid):.0f}",
            ])  # fmt: skip
            print(*row, file=sys.stderr)
    finally:
        server.terminate()
        server.wait()
    print(f"{arguments.new} new tokens per request, {os.cpu_count()} processors, {platform.machine()}")  # fmt: skip
    heads = ["clients", "requests", "lost", "other text", "tok/s", "tok/CPU s", "first token, ms", "longest", "server MiB"]  # fmt: skip
    print(tabulate(rows, heads, disable_numparse=True))


if __name__ == "__main__":
    main()
