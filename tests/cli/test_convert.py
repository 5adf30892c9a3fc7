"""``int8conv convert``: what it prints, options, progress."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch

from int8conv.cli.output import parse_size
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.verify import verify

from ..checkpoints import LLAMA, random_tensors, write_checkpoint
from .helpers import ROOT, check_refused, run, run_apart, snapshot, succeed

LAST_LINE = re.compile(
    r"(?P<out>.*): (?P<tensors>\d+) tensors, (?P<quantized>\d+) of them to int8 with "
    r"(?P<columns>\d+) outlier columns; (?P<bytes_in>[\d.]+ [kMG]?B) -> (?P<bytes_out>[\d.]+ [kMG]?B) "
    r"\((?P<ratio>\d\.\d\d)x\) in \d+\.\d s"
)


def test_the_last_line(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = succeed("convert", source, out, "--outliers", "none").stdout.splitlines()
    match = LAST_LINE.fullmatch(lines[-1])
    assert match is not None, lines[-1]
    tensors = random_tensors(LLAMA)
    bytes_in = sum(t.nbytes for t in tensors.values())
    bytes_out = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert match.groupdict() == {
        "out": str(out), "tensors": str(len(tensors)), "quantized": "14", "columns": "0",
        "bytes_in": f"{bytes_in / 1000:.1f} kB", "bytes_out": f"{bytes_out / 1000:.1f} kB",
        "ratio": f"{bytes_out / bytes_in:.2f}",
    }  # fmt: skip


def test_the_default_is_calibrated(source: Path, tmp_path: Path) -> None:
    result = succeed("convert", source, tmp_path / "out")
    assert result.stderr == (
        "int8conv: note: the source has no usable tokenizer: calibrated on random tokens, which may miss outlier columns of real text; "
        "put its tokenizer files beside the weights\n"
    )
    assert open_converted(tmp_path / "out").manifest.options["outliers"] == "calibrated"
    assert all(
        group.threshold is not None for group in open_converted(tmp_path / "out").manifest.inputs
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_noted(tmp_path: Path, dtype: str) -> None:
    source = write_checkpoint(tmp_path / "source", dtype=torch.float32)
    result = succeed("convert", source, tmp_path / "out", "--dtype", dtype, "--outliers", "none")
    rounded = open_converted(tmp_path / "out").manifest.rounded
    assert result.stderr == f"int8conv: note: {rounded:,} values rounded to {dtype}\n"
    assert rounded > 1000


def test_jobs_and_force(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = ("convert", source, out, "--outliers", "none")
    succeed(*plain, "--jobs", 1)
    before = snapshot(out)
    assert run(*plain, "--jobs", 3).exit_code == 1
    succeed(*plain, "--jobs", 3, "--force")
    assert snapshot(out) == before
    verify(open_converted(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_relative_paths(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    shown = succeed("convert", ".", "../out/", "--outliers", "none").stdout
    assert shown.startswith("../out: ")
    manifest = open_converted(tmp_path / "out").manifest
    assert manifest.source["id"] == "source"


def test_no_bar_where_stderr_is_no_terminal(source: Path, tmp_path: Path) -> None:
    done = run_apart("convert", source, tmp_path / "out", "--outliers", "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert LAST_LINE.fullmatch(done.stdout.strip())


def test_bars_on_a_terminal(source: Path, tmp_path: Path) -> None:
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "int8conv", "convert", str(source), str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=terminal, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            data = os.read(master, 1 << 16)
        except OSError:  # the terminal's other side was closed
            break
        if not data:
            break
        shown += data
    os.close(master)
    stdout, _ = process.communicate()
    assert process.returncode == 0
    assert LAST_LINE.fullmatch(stdout.strip())
    for part in (b"calibrate: 100%", b"2/2 ", b"block", b"convert: 100%", b"B/s"):
        assert part in shown, shown


def test_a_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    lines = succeed("convert", source, tmp_path / "out", "--dry-run").stdout.splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert sum(" int8 " in line for line in lines) == 14
    assert re.fullmatch(
        r"[\d.]+ kB -> at most [\d.]+ kB \(\d\.\d\dx\) in 1 files; .* free; \d tensors in parallel; calibration needs .*",
        lines[-1],
    )
    plan = json.loads(succeed("convert", source, tmp_path / "out", "--dry-run", "--json").stdout)
    assert set(plan["tensors"]) == set(random_tensors(LLAMA))


def test_the_report_as_json(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = succeed("convert", source, out, "--outliers", "none", "--json")
    report = json.loads(result.stdout)
    assert (report["tensors"], report["quantized"], report["resumed"]) == (21, 14, 0)
    assert report["bytes_out"] == sum(path.stat().st_size for path in out.glob("*.safetensors"))


def test_keep_and_shard_size(source: Path, tmp_path: Path) -> None:
    options = ("--keep", "down_proj", "--keep", r"layers\.0.*v_proj", "--max-shard-size", "20kB")
    succeed("convert", source, tmp_path / "out", "--outliers", "none", *options)
    converted = open_converted(tmp_path / "out")
    assert len(converted.linears) == 14 - 3
    assert len(converted.checkpoint.headers) > 3
    check_refused(
        run("convert", source, tmp_path / "other", "--keep", "nothing"), "keep matches", "'nothing'"
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("1.5k", 1500), ("7", 7), ("2t", 2 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5 boxes", "5GiB"])
def test_what_is_no_size_is_a_usage_error(text: str, source: Path, tmp_path: Path) -> None:
    result = run("convert", source, tmp_path / "out", "--max-shard-size", text)
    assert result.exit_code == 2
    assert "is not a size" in result.stderr


def test_verbose_shows_where_time_and_precision_went(source: Path, tmp_path: Path) -> None:
    lines = succeed("convert", source, tmp_path / "out", "--outliers", "none", "-v").stdout
    assert "least exact linears" in lines
    assert len(re.findall(r"^model\.layers\.\d\..*_proj  +\d\d\.\d ", lines, re.M)) == 10
    (times,) = re.findall(r"^time, summed over all workers: (.*)$", lines, re.M)
    stages = re.findall(r"(\w+) (\d+\.\d\d) s", times)
    assert {name for name, _ in stages} >= {"read", "quantize", "checksum", "write", "flush"}
    assert LAST_LINE.fullmatch(lines.splitlines()[-1])


def test_json_has_quality_and_stages(source: Path, tmp_path: Path) -> None:
    result = succeed("convert", source, tmp_path / "out", "--outliers", "none", "--json")
    report = json.loads(result.stdout)
    assert len(report["quality"]) == report["quantized"] == 14
    assert all(
        35 < q["sqnr_db"] < 50 and q["outlier_share"] == 0 for q in report["quality"].values()
    )
    assert all(seconds >= 0 for seconds in report["stages"].values())


def test_a_linear_that_lost_much_is_flagged(tmp_path: Path) -> None:
    config = LLAMA | {"intermediate_size": 640}
    tensors = random_tensors(config)
    bad = "model.layers.1.mlp.down_proj"
    tensors[f"{bad}.weight"][:, 7] = 60.0  # every row's step is that of this column
    source = write_checkpoint(tmp_path / "source", config, tensors)
    result = succeed("convert", source, tmp_path / "out", "--outliers", "none")
    (note,) = result.stderr.splitlines()
    assert re.fullmatch(rf"int8conv: note: {bad}: SQNR \d+\.\d dB, see .*", note)


def test_dry_run_says_what_matches_no_rule(source: Path, tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA) | {"extra.weight": torch.ones(4, 4).half()}
    write_checkpoint(source, tensors=tensors)
    lines = succeed("convert", source, tmp_path / "out", "--dry-run").stdout
    (line,) = [line for line in lines.splitlines() if line.startswith("extra.weight")]
    assert "matches no rule" in line
    plan = json.loads(succeed("convert", source, tmp_path / "out", "--dry-run", "--json").stdout)
    assert plan["tensors"]["extra.weight"]["kind"] == "matches no rule"
    assert plan["calibration_bytes"] > 0
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_would_be_refused(source: Path, tmp_path: Path) -> None:
    check_refused(
        run("convert", source, tmp_path / "out", "--dry-run", "--max-memory", "1MB"), "max_memory"
    )
    check_refused(
        run("convert", source, tmp_path / "out", "--dry-run", "--exclude", "q_proj"),
        "q_proj", "change --include or --exclude",
    )  # fmt: skip
