"""``int8conv adopt``: a line, or JSON, and errors in a line."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from int8conv.cli import main

from ..convert.exchange.test_adopt import pair

__all__ = ["pair"]  # the fixture


def test_adopting_from_the_command_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    saved, out = str(pair[1]), str(tmp_path / "out")
    done = CliRunner().invoke(main, ["adopt", saved, out])
    assert done.exit_code == 0
    assert "tensors, 12 int8 linears with" in done.output
    refused = CliRunner().invoke(main, ["adopt", saved, out])
    assert refused.exit_code == 1
    assert refused.output.startswith(f"int8conv: error: {out}: ")
    assert refused.output.count("\n") == 1
    done = CliRunner().invoke(main, ["adopt", saved, out, "--force", "--json"])
    assert json.loads(done.stdout)["quantized"] == 12
    for wrong in ([saved], [saved, out, "--max-shard-size", "-1"]):
        assert CliRunner().invoke(main, ["adopt", *wrong]).exit_code == 2


def test_help_names_both_folders() -> None:
    assert "FOLDER OUT" in CliRunner().invoke(main, ["adopt", "--help"]).output
