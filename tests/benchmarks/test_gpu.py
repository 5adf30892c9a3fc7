"""The benchmarks for a GPU: all of them in the interpreter, on tiny shapes; what they conclude from figures; what they survive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import correctness, gemv, loading, peers, run, sanitizer, tune, warm
from benchmarks.gpu.checks import CHECKS, checked
from benchmarks.gpu.session import Session
from int8conv.errors import ArgumentError

from ..runtime.backends.gpu.conftest import few_programs  # noqa: F401  (a fixture)

REHEARSAL = ["--device", "cpu", "--shape", "tiny"]
JUDGED = ["every kernel correct on the device", "CUDA graph replay equals eager"]


def read(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(out.with_name(f"{out.name}.json").read_text())
    return value


@pytest.mark.usefixtures("few_programs")
def test_rehearsal_of_everything(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "results" / "gpu"
    run.main([*REHEARSAL, "--minutes", "60", "--out", str(out), "--scratch", str(tmp_path)])
    sections = read(out)["sections"]
    assert list(sections) == list(run.SECTIONS)
    for name, rows in sections.items():
        reasons = {row["skipped"] for row in rows if "skipped" in row}
        assert rows, name
        assert all("no GPU" in r or "No module named" in r for r in reasons), (name, reasons)
    measured = [name for name, rows in sections.items() if any("skipped" not in row for row in rows)]  # fmt: skip
    assert set(run.SECTIONS) - set(measured) == {"sanitizer"}
    kernels = {row["kernel"] for row in sections["correctness"]}
    assert kernels == {"quantize", "gemm", "gemm, TMA", "gemv", "skinny", "experts", "apply", "rotate", "store", "store, int8", "attend", "attend, int8", "sample"}  # fmt: skip
    lines = {line["wanted"]: line["holds"] for line in checked(sections, tiny=True)}
    assert {name for name, holds in lines.items() if holds == "yes"} == set(JUDGED)
    assert set(lines.values()) == {"yes", "-"}
    page = out.with_name("gpu.md").read_text()
    assert all(f"## {name}\n" in page for name in ("checks", *sections))


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By one unit in a result."""
    real = correctness.gemm

    def wrong(*arguments: Any, **options: Any) -> Tensor:
        y = real(*arguments, **options)
        y[0, 0] += 0.05 * y.abs().max()
        return y

    monkeypatch.setattr(correctness, "gemm", wrong)
    monkeypatch.setattr(correctness, "few_tokens", lambda session: [])
    for name in ("norms", "mixtures", "fused", "rotations", "attentions", "draws"):
        monkeypatch.setattr(correctness, name, lambda session: [])
    with pytest.raises(SystemExit, match="a kernel is wrong"):
        run.main([*REHEARSAL, "--only", "correctness", "--out", str(tmp_path / "gpu")])
    rows = read(tmp_path / "gpu")["sections"]["correctness"]
    assert {row["kernel"] for row in rows if not row["right"]} == {"gemm", "gemm, TMA"}
    assert checked({"correctness": rows})[0]["holds"] == "NO"


def test_a_section_that_breaks_keeps_its_lines_and_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(session: Session) -> Any:
        yield gemv_row(4096, 1, 6.0, 0.6)
        raise RuntimeError("out of\nmemory")

    out = tmp_path / "gpu"
    run.main([*REHEARSAL, "--only", "sanitizer", "--out", str(out)])
    monkeypatch.setattr(gemv, "rows", broken)
    run.main([*REHEARSAL, "--only", "gemv", "--out", str(out), "--add"])
    sections = read(out)["sections"]
    assert sections["gemv"] == [
        gemv_row(4096, 1, 6.0, 0.6),
        {"skipped": "RuntimeError: out of memory"},
    ]
    assert [row["skipped"] for row in sections["sanitizer"]] == ["no GPU", "no GPU"]
    run.main([*REHEARSAL, "--only", "gemv", "--out", str(out)])
    assert list(read(out)["sections"]) == ["gemv"]


def test_no_time_left(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    run.main([*REHEARSAL, "--only", "gemv,end-to-end", "--minutes", "0", "--out", str(out)])
    assert read(out)["sections"] == {
        "gemv": [{"skipped": "no time left"}],
        "end to end": [{"skipped": "no time left"}],
    }


def test_a_section_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run.main([*REHEARSAL, "--only", "gemm,speed"])
    assert error.value.code == 2
    assert "no section speed: one of correctness, graphs" in capsys.readouterr().err


@pytest.mark.usefixtures("few_programs")
def test_compiling_takes_its_part_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.main([*REHEARSAL, "--only", "gemm", "--part", "1/2", "--compile-only"])
    shown = capsys.readouterr().out
    assert "| 17 " in shown
    assert "| 1  " not in shown


def fake_python(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """What ``sys.executable`` runs instead."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))


def test_processes_that_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_python(monkeypatch, tmp_path, f'echo "$*" >> {tmp_path}/calls')
    warm.warm(["gemm", "loading", "graphs"], 60)
    calls = sorted((tmp_path / "calls").read_text().splitlines())
    start = "-m benchmarks.gpu.run --compile-only --only"
    assert calls == [*(f"{start} gemm --part {i}/3" for i in range(3)), f"{start} graphs"]
    assert set(warm.PARTS) <= set(run.SECTIONS)


def test_processes_that_compile_for_too_long_are_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_python(monkeypatch, tmp_path, "sleep 60")
    assert warm.warm(["gemm"], 0.5) < 30


def test_trials_of_the_tuner_are_compiled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on each layer, before any is timed; those that cannot be are left to the timing, which drops them."""
    seen: list[Any] = []

    @contextmanager
    def together(target: Any, jobs: int, *, ignore_errors: bool) -> Iterator[None]:
        seen.append((target.capability, ignore_errors))
        yield
        seen.append("compiled")

    def refuse(config: Any) -> Tensor:
        raise ArgumentError("block_k")

    monkeypatch.setattr(tune, "ahead_of_time", together)
    monkeypatch.setattr(tune.launch, "capability", lambda device: 90)
    layers: Any = [(seen.append, None), (refuse, None)]
    for device in ("cuda", "cpu"):
        tune._compiled(iter([{"block_n": 1}, {"block_n": 2}]), layers, torch.device(device))
    assert seen == [(90, True), {"block_n": 1}, {"block_n": 2}, "compiled"]


def session(seconds: float = 60) -> Session:
    made = Session(torch.device("cpu"), tiny=True, deadline=float("inf"))
    made.begin(seconds)
    return made


def test_peers_whose_process_dies_are_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = json.dumps({"runtime": peers.PEERS[0], "batch": 1})
    fake_python(monkeypatch, tmp_path, f"echo '{line}'\necho 'illegal access' >&2\nexit 3")
    first, *rest = peers.rows(session())
    assert first == {"runtime": peers.PEERS[0], "batch": 1}
    assert [row["runtime"] for row in rest] == list(peers.PEERS[1:])
    assert {row["skipped"] for row in rest} == {"exit code 3: illegal access"}


def test_peers_that_hang_are_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_python(monkeypatch, tmp_path, "sleep 60")
    assert {row["skipped"] for row in peers.rows(session(1))} == {"no time left"}


def test_memory_that_cannot_be_pinned_leaves_no_error_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The next launch raises the runtime's last error, and with that forgets it."""
    last = ["invalid argument"]

    def fill(x: Tensor, value: float) -> Tensor:
        if last:
            raise RuntimeError(f"CUDA error: {last.pop()}")
        return x

    (tmp_path / "file").write_bytes(bytes(64))
    runtime = SimpleNamespace(cudaHostRegister=lambda *arguments: 1)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(Tensor, "fill_", fill)
    on_gpu: Any = SimpleNamespace(on_gpu=True, device=torch.device("cpu"))
    row = loading._registered(on_gpu, tmp_path / "file", 1.0)
    assert row["skipped"] == "cudaHostRegister gives error 1"
    assert not last


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", {"errors": 0, "first": "", "exit code": 0}),
        ("echo '========= Invalid __global__ write of size 4 bytes'; echo '========= ERROR SUMMARY: 2 errors'; exit 1",
         {"errors": 2, "first": "Invalid __global__ write of size 4 bytes", "exit code": 1}),
        ("echo '========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)'",
         {"errors": 1, "first": "", "exit code": 0}),
        ("echo Device not supported; exit 1", {"skipped": "exit code 1: Device not supported"}),
    ],
)  # fmt: skip
def test_what_the_sanitizer_says(tmp_path: Path, script: str, expected: dict[str, Any]) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert sanitizer.run(str(program), "memcheck", 60) == expected


def gemm_row(ours: float, **changes: Any) -> dict[str, Any]:
    row = {"M": 2048, "N": 4096, "K": 4096, "outliers": 0.001, "us": ours, "us, quantizer": 10.0, "us, bf16": 160.0}  # fmt: skip
    return row | changes


def gemv_row(n: int, m: int, us: float, share: float) -> dict[str, Any]:
    return {"N": n, "K": 4096, "M": m, "MB": n * 4096e-6, "us": us, "share of copy": share}


def decode_row(runtime: str, speed: float, weights: str = "", batch: int = 1) -> dict[str, Any]:
    return {"runtime": runtime, "weights": weights, "batch": batch, "decode tok/s": speed, "share of copy": 0.8}  # fmt: skip


GOOD: dict[str, list[dict[str, Any]]] = {
    "correctness": [{"kernel": "gemm", "right": True}],
    "graphs": [{"equal": True}],
    "sanitizer": [{"tool": "memcheck", "errors": 0}, {"tool": "racecheck", "skipped": "no time left"}],
    "gemm": [gemm_row(100.0), gemm_row(1e9, M=16), gemm_row(1e9, outliers=0.01), gemm_row(1e9, K=2048)],
    "gemv": [gemv_row(4096, 1, 6.0, 0.61), gemv_row(28672, 1, 40.0, 0.86), gemv_row(28672, 16, 47.0, 0.7)],
    "end to end": [decode_row("int8conv", 280, "int8"), decode_row("int8conv", 170, "fp16"),
                   decode_row("int8conv", 2000, "int8", 32), decode_row("int8conv", 1900, "fp16", 32)],
    "peers": [decode_row("bitsandbytes int8, threshold 6.0", 20), decode_row("bitsandbytes int8, threshold 6.0", 400, batch=32)],
    "cost": [{"M": 2048, "with": "0.1 % outliers", "cost %": 4.9}, {"M": 2048, "with": "1 % outliers", "cost %": 9.0}, {"M": 1, "with": "0.1 % outliers", "cost %": 1.0}],
    "loading": [{"readers": "default", "share of plain": 0.7}, {"readers": 1, "share of plain": 0.1}],
    "memory": [{"measured / predicted": 1.02}, {"measured / predicted": 0.98}, {"measured / predicted": None}],
}  # fmt: skip
AIMS = {"the same, aim: >= 85 %"}


def test_every_check_holds_for_figures_that_are_good_enough() -> None:
    lines = checked(GOOD)
    assert len(lines) == len(CHECKS)
    assert {line["wanted"] for line in lines if line["holds"] != "yes"} == AIMS
    assert all(line["holds"] == "-" for line in checked({}))


@pytest.mark.parametrize(
    ("section", "row", "wanted"),
    [
        ("correctness", {"kernel": "attend", "right": False}, "every kernel"),
        ("graphs", {"equal": False}, "CUDA graph"),
        ("sanitizer", {"tool": "memcheck", "errors": 1}, "compute-sanitizer"),
        ("gemm", gemm_row(115.0), "GEMM"),
        ("gemm, other models", gemm_row(115.0, M=8192), "GEMM"),
        ("gemv", gemv_row(20480, 1, 30.0, 0.84), "W8A16, M = 1, matrices of 56 MB"),
        ("gemv", gemv_row(4096, 1, 6.0, 0.59), "W8A16, M = 1, 4096"),
        ("gemv", gemv_row(28672, 8, 49.0, 0.7), "W8A16, M <= 16"),
        (
            "cost",
            {"M": 8192, "with": "0.1 % outliers", "cost %": 5.1},
            "0.1 % outliers",
        ),
        ("loading", {"readers": "default", "share of plain": 0.59}, "loading"),
        ("memory", {"measured / predicted": 0.96}, "peak memory"),
    ],
)
def test_one_figure_that_is_not_fails_its_check(section: str, row: dict[str, Any], wanted: str) -> None:  # fmt: skip
    results = GOOD | {section: [*GOOD.get(section, []), row]}
    lines = {line["wanted"]: line["holds"] for line in checked(results)}
    failed = [name for name, holds in lines.items() if holds == "NO" and name.startswith(wanted)]
    assert failed


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({0: 271.0}, ">= 1.6x fp16"),
        ({0: 199.0}, ">= 10x bitsandbytes"),
        ({2: 1899.0}, "ahead of 16 bits"),
        ({2: 399.0}, "ahead of bitsandbytes"),
    ],
)
def test_decode_that_is_too_slow(changes: dict[int, float], wanted: str) -> None:
    rows = [row | ({"decode tok/s": changes[i]} if i in changes else {}) for i, row in enumerate(GOOD["end to end"])]  # fmt: skip
    lines = checked(GOOD | {"end to end": rows})
    assert next(line for line in lines if wanted in line["wanted"])["holds"] == "NO"
