"""Everything about the GPU path that needs a GPU, in one command of under ten minutes.

    python -m benchmarks.gpu.run [--only gemm,gemv] [--out benchmarks/results/gpu] [--add] [--minutes 9.5]
    python -m benchmarks.gpu.run --device cpu --shape tiny        rehearses it in Triton's interpreter; its times mean nothing

Correctness comes first; what a wrong kernel takes part in is measured all the same, but the run ends with exit code 1. Results
are written after every section (OUT.json, OUT.md), so that one that is cut off loses nothing; ``--add`` keeps the sections of an
earlier run that this one does not repeat. What cannot run says why.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .warm import warm

SECTIONS: dict[str, tuple[str, str, float]] = {
    "correctness": ("correctness", "rows", 120),
    "graphs": ("graphs", "rows", 60),
    "end to end": ("end_to_end", "rows", 90),
    "gemv": ("gemv", "rows", 60),
    "gemm": ("gemm", "rows", 120),
    "cost": ("cost", "rows", 60),
    "cache": ("cache", "rows", 30),
    "loading": ("loading", "rows", 75),
    "memory": ("memory", "rows", 60),
    "peers": ("peers", "rows", 120),
    "sanitizer": ("sanitizer", "rows", 120),
    "gemm, other models": ("gemm", "other_models", 60),
}
"""Module, function, and the most seconds that it should take; what is left of all of them bounds each."""
_COMPILE_SECONDS = 120
_WITHOUT_COPY = {"correctness", "graphs", "peers", "sanitizer"}


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    if options.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
    started = time.monotonic()
    session, result = _start(options, started)
    if session.on_gpu and not session.tiny and not session.compiling and not options.cold:
        print(f"compiled for {warm(options.only, _COMPILE_SECONDS):.0f} s", flush=True)
    result["sections"] = _earlier(options)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        session.scratch = Path(scratch)
        for name in options.only:
            rows = _section(session, name)
            result["sections"][name] = rows
            result["minutes"] = (time.monotonic() - started) / 60
            _show(name, rows, options.out, result)
            if session.broken():
                break
    if session.broken() and options.out is not None:
        _go_on(options, name, session.deadline)
    _finish(result)


def _go_on(options: argparse.Namespace, after: str, deadline: float) -> None:
    """An error on the device makes it unusable for this process: the sections that are left run in a new one."""
    left = options.only[options.only.index(after) + 1 :]
    minutes = (deadline - time.monotonic()) / 60
    if not left or minutes <= 0:
        return
    arguments = [
        "--device",
        options.device,
        "--shape",
        options.shape,
        "--out",
        str(options.out),
        "--add",
    ]
    arguments += ["--only", ",".join(map(_short, left)), "--minutes", f"{minutes:.2f}", "--cold"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu.run", *arguments])


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=["8b", "tiny"], default="8b")
    parser.add_argument("--only", help=f"some of: {', '.join(_short(name) for name in SECTIONS)}")
    parser.add_argument("--out", type=Path, help="OUT.json and OUT.md; default: benchmarks/results/gpu for the 8b shape on a GPU, else none")  # fmt: skip
    parser.add_argument("--add", action="store_true", help="to what OUT.json has")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all; default: 9.5")
    parser.add_argument("--compile-only", action="store_true", help="launch once, measure nothing")
    parser.add_argument("--part", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument(
        "--cold", action="store_true", help="do not compile in several processes before"
    )
    parser.add_argument("--scratch", type=Path, help="folder for a few GB; default: the system's")
    options = parser.parse_args(arguments)
    if (
        options.out is None
        and options.device == "cuda"
        and options.shape == "8b"
        and not options.compile_only
    ):
        options.out = Path(__file__).parents[1] / "results" / "gpu"
    names = {_short(name): name for name in SECTIONS}
    asked = options.only.split(",") if options.only else list(names)
    unknown = [name for name in asked if name not in names]
    if unknown:
        parser.error(f"no section {unknown[0]}: one of {', '.join(names)}")
    options.only = [names[name] for name in asked]
    return options


def _short(name: str) -> str:
    """As ``--only`` takes it."""
    return name.replace(", ", "-").replace(" ", "-")


def _start(options: argparse.Namespace, started: float) -> tuple[Any, dict[str, Any]]:
    import torch
    import triton

    from . import timing
    from .interpreter import interpret_quickly
    from .session import Session

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU here; --device cpu --shape tiny rehearses")
    if device.type == "cpu":
        interpret_quickly()
    session = Session(device, options.shape == "tiny", started + 60 * options.minutes)
    session.compiling = timing.compile_only = options.compile_only
    first, count = options.part.split("/")
    session.part = (int(first), int(count))
    if session.compiling:
        session.copy = session.read = 1.0
    elif not _WITHOUT_COPY.issuperset(options.only):
        session.copy = timing.copy_bandwidth(device, session.pick(1 << 20, 1 << 30))
        session.read = timing.read_bandwidth(device, session.pick(1 << 20, 1 << 30))
    result = {
        "machine": torch.cuda.get_device_name() if session.on_gpu else f"{platform.machine()} CPU, a rehearsal: times mean nothing",
        "versions": {"Python": platform.python_version(), "PyTorch": torch.__version__, "Triton": triton.__version__, "CUDA": torch.version.cuda},
        "command": "python -m benchmarks.gpu.run " + " ".join(sys.argv[1:]),
        "tiny": session.tiny,
        "copy GB/s": session.copy * 1e-9,
        "read GB/s": session.read * 1e-9,
        "minutes": 0.0,
    }  # fmt: skip
    print(result, flush=True)
    return session, result


def _earlier(options: argparse.Namespace) -> dict[str, Any]:
    from .report import read

    return dict(read(options.out)) if options.add and options.out else {}


def _section(session: Any, name: str) -> list[Any]:
    """Its lines; if it breaks, those before and the reason."""
    from .session import out_of_time, skipped

    module, function, seconds = SECTIONS[name]
    session.begin(3600 if session.tiny else seconds)  # a rehearsal takes as long as it takes
    if session.left() <= 0:
        return [out_of_time({})]
    found: list[Any] = []
    try:
        session.forget()
        rows: Iterable[Any] = getattr(importlib.import_module(f".{module}", __package__), function)(session)  # fmt: skip
        for row in rows:
            found.append(row)  # noqa: PERF402  (one by one: what came before an error stays)
    except Exception as error:
        found.append(skipped({}, f"{type(error).__name__}: {error}"))
    return found


def _show(name: str, rows: list[Any], out: Path | None, result: dict[str, Any]) -> None:
    from .report import table, write

    print(f"\n{name}, until minute {result['minutes']:.1f}\n{table(rows)}", flush=True)
    if out is not None:
        write(out, result)


def _late(row: dict[str, Any]) -> bool:
    return row.get("skipped") == "no time left"


def _finish(result: dict[str, Any]) -> None:
    from .checks import checked
    from .report import table

    print(f"\nchecks\n{table(checked(result['sections'], tiny=result['tiny']))}")
    wrong = [
        row for row in result["sections"].get("correctness", ()) if not row.get("right", _late(row))
    ]
    unequal = [
        row for row in result["sections"].get("graphs", ()) if not row.get("equal", _late(row))
    ]
    if wrong or unequal:
        sys.exit("a kernel is wrong, or a graph's replay: see above")


if __name__ == "__main__":
    main()
