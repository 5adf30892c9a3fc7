"""``int8conv export``: a line, or JSON, and errors in a line."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from int8conv.cli import main

from ..convert.exchange.test_export import int8

__all__ = ["int8"]  # the fixture


def test_exporting_from_the_command_line(int8: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = CliRunner().invoke(main, ["export", str(int8), out, "--to", "dense", "--dtype", "bfloat16"])  # fmt: skip
    assert done.exit_code == 0
    assert "tensors, 14 linears dequantized to bfloat16; " in done.output
    refused = CliRunner().invoke(main, ["export", str(int8), out, "--to", "dense"])
    assert refused.exit_code == 1
    assert refused.output.startswith(f"int8conv: error: {out}: ")
    assert refused.output.count("\n") == 1
    done = CliRunner().invoke(main, ["export", str(int8), f"{out}2", "--to", "dense", "--json"])
    assert json.loads(done.stdout)["dtype"] == "float16"
    columns = ["export", str(int8), f"{out}3", "--to", "compressed-tensors"]
    refused = CliRunner().invoke(main, columns)
    assert refused.exit_code == 1
    assert "14 linears with outlier columns, such as model.layers.0" in refused.output
    assert refused.output.count("\n") == 1
    done = CliRunner().invoke(main, [*columns, "--fold-outliers"])
    assert re.search(r"folded: SQNR \d\d\.\d dB \(model\.layers.*\) to \d\d\.\d dB\n$", done.stdout)
    assert "has no outlier fallback" in done.stderr
    for wrong in ([out], [out, out], [out, out, "--to", "onnx"]):
        assert CliRunner().invoke(main, ["export", *wrong]).exit_code == 2
