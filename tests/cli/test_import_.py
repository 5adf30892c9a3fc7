"""``int8conv import``: a line, notes, or JSON, and errors in a line."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from int8conv.cli import main

from ..convert.exchange.packed_checkpoints import compressed_tensors, write_packed


def test_importing_from_the_command_line(tmp_path: Path) -> None:
    write_packed(tmp_path / "source", compressed_tensors)
    source, out = str(tmp_path / "source"), str(tmp_path / "out")
    done = CliRunner().invoke(main, ["import", source, out])
    assert done.exit_code == 0
    assert "tensors, 14 int8 linears; " in done.stdout
    assert "codes were -128 and became -127" in done.stderr
    refused = CliRunner().invoke(main, ["import", source, out])
    assert refused.exit_code == 1
    assert refused.output.startswith(f"int8conv: error: {out}: ")
    assert refused.output.count("\n") == 1
    done = CliRunner().invoke(main, ["import", source, out, "--force", "--json", "--dtype", "bfloat16"])  # fmt: skip
    assert json.loads(done.stdout)["quantized"] == 14
    assert CliRunner().invoke(main, ["inspect", out, "--verify"]).exit_code == 0
    for wrong in ([source], [source, out, "--dtype", "int4"]):
        assert CliRunner().invoke(main, ["import", *wrong]).exit_code == 2
