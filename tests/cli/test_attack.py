"""Pickles that would run something: nothing runs, and one line says so."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ..checkpoints import LLAMA, random_tensors
from .helpers import check_error_line, run_apart, snapshot

FILE = "pytorch_model.bin"


class Call:
    """Unpickled by a careless reader, it calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


ATTACKS: dict[str, Callable[[Path], Call]] = {
    "a command": lambda target: Call(os.system, f"touch '{target}'"),
    "a file": lambda target: Call(Path(target).write_text, "owned"),
    "code": lambda target: Call(
        builtins.exec, f"import pathlib; pathlib.Path({str(target)!r}).touch()"
    ),
    "an attribute": lambda target: Call(builtins.getattr, Call(__import__, "os"), "system"),
    "a nested pickle": lambda target: Call(pickle.loads, pickle.dumps(ATTACKS["a file"](target))),
    "a nested load": lambda target: Call(torch.load, str(target.with_name("second.bin"))),
}


def bare(path: Path, value: Any) -> None:
    path.write_bytes(pickle.dumps(value))


def zipped(path: Path, value: Any) -> None:
    torch.save(value, path)


def legacy(path: Path, value: Any) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def grafted(path: Path, value: Any) -> None:
    """Into a good file of ``torch.save``, in the place of its pickle."""
    torch.save(random_tensors(LLAMA), path)
    with zipfile.ZipFile(path) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members:
            new.writestr(name, pickle.dumps(value) if name.endswith("data.pkl") else data)


REFUSED = {
    bare: "expected a zip file of torch.save",
    zipped: "cannot be read safely",
    legacy: "expected a zip file of torch.save",
    grafted: "cannot be read safely",
}
"""What is said of each container."""


@pytest.mark.parametrize("container", REFUSED)
def test_nothing_in_a_pickle_runs(tmp_path: Path, container: Callable[[Path, Any], None]) -> None:
    """Every attack, alone and among good tensors."""
    target = tmp_path / "owned"
    torch.save(ATTACKS["a file"](target), target.with_name("second.bin"))
    code = """
import sys
from int8conv.cli import main
for folder in sys.argv[2:]:
    try:
        main(["convert", folder, sys.argv[1]], prog_name="int8conv")
    except SystemExit as end:
        assert end.code == 1, end
"""
    folders = []
    for number, attack in enumerate(ATTACKS.values()):
        for value in (attack(target), random_tensors(LLAMA) | {"x": attack(target)}):
            folders.append(tmp_path / f"evil-{number}-{type(value).__name__}")
            folders[-1].mkdir()
            (folders[-1] / "config.json").write_text(json.dumps(LLAMA))
            container(folders[-1] / FILE, value)
    before = snapshot(tmp_path)
    done = run_apart(tmp_path / "out", *folders, code=code)
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert len(lines) == len(folders)
    for line, at in zip(lines, folders, strict=True):
        check_error_line(line, at / FILE, REFUSED[container])
    assert snapshot(tmp_path) == before
    assert not target.exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Each does what it says to a reader that is careless."""
    target = tmp_path / "owned"
    torch.save(ATTACKS["a file"](target), target.with_name("second.bin"))
    for name, attack in ATTACKS.items():
        if name in ("an attribute", "a nested load"):
            continue  # steps of one; nothing of their own to see
        pickle.loads(pickle.dumps(attack(target)))
        assert target.exists(), name
        target.unlink()
