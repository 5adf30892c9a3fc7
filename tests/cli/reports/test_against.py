"""``int8conv inspect --against``: a table of the worst, a last line, JSON, and an exit code for CI."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch

from int8conv.convert.converter import convert_checkpoint

from ...checkpoints import LLAMA, OPT, random_tensors, write_checkpoint
from ..helpers import ROOT, check_refused, flip_byte, read_raw_header, run, run_apart, succeed

WORST = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ``source`` whose worst linear is known, and its ``int8``; not to be changed."""
    folder = tmp_path_factory.mktemp("small")
    tensors = random_tensors(LLAMA)
    tensors[f"{WORST}.weight"][:, 7] *= 10
    write_checkpoint(folder / "source", LLAMA, tensors)
    convert_checkpoint(folder / "source", folder / "int8", outliers="none")
    return folder


def figures(text: str) -> list[tuple[str, float]]:
    """Name and SQNR of each row of the table."""
    rows = re.findall(r"^(model\.\S+)\s+(\d+\.\d)\s+\d\.\d\de[+-]\d\d\s+\d+\.\d%", text, re.M)
    return [(name, float(sqnr)) for name, sqnr in rows]


def test_the_ten_worst_and_a_last_line(example: Path, example_int8: Path) -> None:
    shown = succeed("inspect", example_int8, "--against", example)
    assert shown.stderr == ""
    rows = figures(shown.stdout)
    assert len(rows) == 10
    assert [sqnr for _, sqnr in rows] == sorted(sqnr for _, sqnr in rows)
    last = shown.stdout.splitlines()[-1]
    assert last.startswith(f"42 int8 tensors: worst SQNR {rows[0][1]} dB ({rows[0][0]}), median ")
    assert last.endswith("; 14 other tensors and the config match the source bit for bit")
    assert "below" not in shown.stdout
    assert "x of 16 bits" in shown.stdout  # what inspect shows anyway


def test_json_has_every_linear(example: Path, example_int8: Path) -> None:
    value = json.loads(succeed("inspect", example_int8, "--against", example, "--json").stdout)
    quality = value["quality"]
    tensors = quality["tensors"]
    assert len(tensors) == 42
    found = sorted(tensor["sqnr_db"] for tensor in tensors.values())
    assert quality["worst_sqnr_db"] == found[0] > 41
    assert quality["median_sqnr_db"] == (found[20] + found[21]) / 2
    assert quality["min_sqnr_db"] == 30
    assert {tuple(tensor) for tensor in tensors.values()} == {
        ("sqnr_db", "max_error", "outlier_share", "below")
    }
    assert value["ratio"] < 1


def test_below_the_limit_is_flagged_and_exit_code_1(small: Path) -> None:
    arguments = ("inspect", small / "int8", "--against", small / "source")
    shown = json.loads(succeed(*arguments, "--json").stdout)["quality"]["tensors"]
    found = sorted((tensor["sqnr_db"], name) for name, tensor in shown.items())
    limit = (found[3][0] + found[4][0]) / 2
    result = run(*arguments, "--min-sqnr", limit)
    assert found[0][1] == WORST
    lines = result.stdout.splitlines()
    assert any(line.endswith(f"below {limit:g} dB") for line in lines)
    assert sum(line.endswith("  yes") for line in lines) == 4
    check_refused(result, small / "int8", f"tensor '{WORST}'", f"at least {limit:g}", "4 of 14")
    result = run(*arguments, "--min-sqnr", limit, "--json")
    tensors = json.loads(result.stdout)["quality"]["tensors"]
    assert {name for name, t in tensors.items() if t["below"]} == {name for _, name in found[:4]}
    check_refused(result, f"tensor '{WORST}'", "4 of 14")


def test_the_default_limit_finds_a_ruined_linear(tmp_path: Path) -> None:
    """A weight in each row 250 times the others: what int8 rows without outlier columns cannot hold."""
    tensors = random_tensors(LLAMA)
    weight = tensors[f"{WORST}.weight"].sign() * 0.004
    weight[:, 7] = 1.0
    tensors[f"{WORST}.weight"] = weight
    source = write_checkpoint(tmp_path / "source", LLAMA, tensors)
    convert_checkpoint(source, tmp_path / "int8", outliers="none")
    result = run("inspect", tmp_path / "int8", "--against", source)
    check_refused(result, f"tensor '{WORST}'", "at least 30 dB", "1 of 14")


def test_a_folder_without_int8_tensors(tmp_path: Path, source: Path) -> None:
    convert_checkpoint(source, tmp_path / "kept", outliers="none", keep=["."])
    shown = succeed("inspect", tmp_path / "kept", "--against", source).stdout
    assert shown.splitlines()[-1] == (
        "no int8 tensors; 21 other tensors and the config match the source bit for bit"
    )
    value = json.loads(succeed("inspect", tmp_path / "kept", "--against", source, "--json").stdout)
    assert value["quality"]["worst_sqnr_db"] is None


def test_what_was_rounded_or_left_out_is_said(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, torch.float32)
    buffers = {f"model.layers.{i}.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    source = write_checkpoint(tmp_path / "source", LLAMA, tensors | buffers)
    convert_checkpoint(source, tmp_path / "int8", outliers="none")
    shown = succeed("inspect", tmp_path / "int8", "--against", source).stdout
    assert re.search(
        r"; bit-exact: 5 other tensors and the config; rounded from float32: 2 tensors \([\d,]+ values changed\); "
        r"left out: model\.layers\.0\.rotary_emb\.inv_freq \(computed, not learned\), and 1 more$",
        shown.splitlines()[-1],
    )


def test_what_loses_nothing_is_called_exact(tmp_path: Path) -> None:
    tensors = random_tensors(OPT)
    for name, tensor in tensors.items():
        if "layers" in name and tensor.dim() == 2:
            tensor.zero_()
    source = write_checkpoint(tmp_path / "source", OPT, tensors)
    convert_checkpoint(source, tmp_path / "int8", outliers="none")
    shown = succeed("inspect", tmp_path / "int8", "--against", source, "--min-sqnr", 1000).stdout
    assert "worst SQNR exact" in shown.splitlines()[-1]


def test_a_flipped_byte_is_named(tmp_path: Path, source: Path) -> None:
    convert_checkpoint(source, tmp_path / "int8", outliers="none")
    (shard,) = (tmp_path / "int8").glob("*.safetensors")
    header, start = read_raw_header(shard)
    name = "model.layers.1.mlp.down_proj.weight"
    flip_byte(shard, start + header[name]["data_offsets"][0] + 160 * 9)
    result = run("inspect", tmp_path / "int8", "--against", source)
    check_refused(result, shard, f"tensor '{name}'", "row 9")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 1}, "differs from the source"),
        ({"dtype": torch.bfloat16}, "another dtype or shape"),
        ({"config": OPT}, "differs from the source"),
    ],
    ids=["weights", "dtype", "model"],
)
def test_another_source(small: Path, tmp_path: Path, other: dict[str, object], words: str) -> None:
    wrong = write_checkpoint(tmp_path / "wrong", **other)  # type: ignore[arg-type]
    check_refused(run("inspect", small / "int8", "--against", wrong), words)


def test_no_source(small: Path, tmp_path: Path) -> None:
    check_refused(run("inspect", small / "int8", "--against", tmp_path / "no"), tmp_path / "no")
    check_refused(run("inspect", small / "int8", "--against", tmp_path), "no checkpoint")


def test_a_bar_on_a_terminal_only(small: Path) -> None:
    command = [sys.executable, "-m", "int8conv", "inspect", str(small / "int8"),
               "--against", str(small / "source")]  # fmt: skip
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"})  # fmt: skip
    os.close(end)
    drawn = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "compare" in drawn
    assert "100%" in drawn
    assert "worst SQNR" in done.stdout


def test_without_torch(small: Path) -> None:
    code = """
import sys
from int8conv.cli import main
main(["inspect", sys.argv[1], "--against", sys.argv[2]], standalone_mode=False)
print("torch" in sys.modules)
"""
    done = run_apart(small / "int8", small / "source", code=code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "False"
