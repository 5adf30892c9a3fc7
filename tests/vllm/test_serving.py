"""``vllm serve`` on converted folders, with one and two ranks: the runtime's log-probabilities, streams, many clients. ``make test-vllm``."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

import openai
from transformers import AutoConfig, AutoModelForCausalLM

import int8conv

from ..formats.damage import edit_json

SMALL = Path(__file__).parents[2] / "examples" / "small-llama"
PROMPTS = ("A vector is", "The function returns", "import os")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_mixtral(folder: Path) -> Path:
    """Experts with random weights, and the tokenizer of ``SMALL``."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mixtral", vocab_size=8192, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    model.half().save_pretrained(folder)
    for file in SMALL.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Converted folders by kind."""
    out = tmp_path_factory.mktemp("vllm")
    sources = {"dense": SMALL, "experts": write_mixtral(out / "mixtral")}
    for kind, source in sources.items():
        int8conv.convert_checkpoint(source, out / kind)
        # for comparison: otherwise the mode depends on how many tokens are computed at once
        edit_json(out / kind / "config.json", lambda config: config["quantization_config"].update(mode="w8a16"))  # fmt: skip
    return {kind: out / kind for kind in sources}


@pytest.fixture(
    scope="module",
    params=[("dense", 1), ("dense", 2), ("experts", 1), ("experts", 2)],
    ids=lambda param: f"{param[0]}, {param[1]} ranks",
)
def served(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Which folder, and on how many ranks."""
    found: tuple[str, int] = request.param
    return found


@pytest.fixture(scope="module")
def int8(served: tuple[str, int], folders: dict[str, Path]) -> Path:
    return folders[served[0]]


@pytest.fixture(scope="module")
def client(served: tuple[str, int], int8: Path) -> Iterator[openai.OpenAI]:
    """A server of its own for each folder and number of ranks."""
    port, ranks = free_port(), served[1]
    template = int8.parent / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(int8), "--served-model-name", "small",
        "--dtype", "float32", "--port", str(port), "--tensor-parallel-size", str(ranks), "--max-model-len", "256",
        "--chat-template", str(template), "--enforce-eager",
    ]  # fmt: skip
    environment = os.environ | {
        "VLLM_HOST_IP": "127.0.0.1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CACHE_ROOT": str(int8.parent / "cache"),
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(ranks))),
    }  # fmt: skip
    with (int8.parent / f"log{ranks}").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield wait_for(server, port, Path(log.name))
        finally:
            server.terminate()
            server.wait(60)


def wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> openai.OpenAI:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=300)
    while server.poll() is None:
        try:
            client.models.list()
        except openai.APIConnectionError:
            time.sleep(1)
        else:
            return client
    raise AssertionError(log.read_text()[-2000:])


def complete(client: openai.OpenAI, prompt: str, **options: Any) -> Any:
    return client.completions.create(model="small", prompt=prompt, temperature=0, **options)


def test_the_runtimes_log_probabilities(client: openai.OpenAI, int8: Path) -> None:
    own = int8conv.load(int8, mode="w8a16")
    for prompt in PROMPTS:
        choice = complete(client, prompt, max_tokens=12, logprobs=1, extra_body={"return_tokens_as_token_ids": True}).choices[0]  # fmt: skip
        tokens = [int(token.removeprefix("token_id:")) for token in choice.logprobs.tokens]
        ids = own.tokenizer.encode(prompt)
        found = own.logits(torch.tensor([ids + tokens]))[0].log_softmax(-1)
        expected = [found[len(ids) - 1 + i, token].item() for i, token in enumerate(tokens)]
        assert choice.logprobs.token_logprobs == pytest.approx(expected, abs=1e-4)
        assert tokens == found[len(ids) - 1 : -1].argmax(-1).tolist()


def test_chats_and_streams(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "A vector is"}]
    options: dict[str, Any] = {"model": "small", "messages": messages, "max_tokens": 12, "temperature": 0}  # fmt: skip
    whole = client.chat.completions.create(**options).choices[0].message.content
    parts = client.chat.completions.create(**options, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole
    assert whole == complete(client, "A vector is", max_tokens=12).choices[0].text


def test_fifty_at_once_and_a_client_that_goes(client: openai.OpenAI) -> None:
    expected = complete(client, PROMPTS[0], max_tokens=16).choices[0].text
    stream = complete(client, PROMPTS[1], max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()
    with ThreadPoolExecutor(50) as pool:
        texts = list(pool.map(lambda _: complete(client, PROMPTS[0], max_tokens=16).choices[0].text, range(50)))  # fmt: skip
    # in W8A16 a token does not depend on what is computed beside it, but for rounding
    assert set(texts) == {expected}
