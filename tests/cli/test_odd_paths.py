"""Paths that are not UTF-8, sources that vanished, links that lead nowhere: they work, or one line says why not."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from int8conv.cli import main

from .helpers import check_error_line, check_refused, run, run_apart, succeed

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="names there are Unicode")


def odd(folder: Path, name: str) -> Path:
    """A path whose last part is Latin-1."""
    return folder / os.fsdecode(name.encode() + b"_\xee")


def test_every_command_takes_paths_that_are_not_utf8(example: Path, tmp_path: Path) -> None:
    model, out, stats = (odd(tmp_path, name) for name in ("model", "out", "stats"))
    shutil.copytree(example, model)
    for args in (
        ("calibrate", model, "-o", stats, "--tokens", 256),
        ("convert", model, out, "--stats", stats),
        ("convert", model, out, "--outliers", "none", "--force"),
        ("convert", model, odd(tmp_path, "dry"), "--dry-run"),
        ("inspect", out, "--verify", "--against", model),
        ("inspect", out, "--json"),
        ("footprint", model),
        ("footprint", out),
    ):
        done = run_apart(*args, forked=True)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (args, done.stderr)
    manifest = json.loads((out / "int8conv.json").read_text())
    assert manifest["source"]["id"] == "model_\ufffd"


def test_every_command_runs_models_from_them(example: Path, tmp_path: Path) -> None:
    """With weights, tokenizer, chat template, prompts and texts there; the source is run as well as what was converted."""
    model, out, text = (odd(tmp_path, name) for name in ("model", "out", "text"))
    shutil.copytree(example, model)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    text.write_text("A vector is an array of elements. " * 8)
    succeed("convert", model, out, "--outliers", "none")
    answers = {
        succeed("generate", path, "--prompt-file", text, "-n", 3).stdout for path in (model, out)
    }
    assert len(answers) <= 2 and all(answers)
    succeed("eval", out, "--text", text, "--against", model, "--window", 32)
    succeed("bench", out, "--prompt-tokens", 4, "--new-tokens", 2, "--runs", 1)
    done = CliRunner().invoke(main, ["chat", str(out), "-n", "2"], input="A vector\n")
    assert (done.exit_code, done.exception) == (0, None), done.output


@pytest.mark.parametrize("command", ["convert", "inspect", "footprint", "generate", "calibrate"])
def test_an_odd_path_that_is_absent_is_one_line(tmp_path: Path, command: str) -> None:
    more = {"convert": [tmp_path / "out"], "calibrate": ["-o", tmp_path / "s"], "generate": ["--prompt", "A"]}  # fmt: skip
    done = run_apart(command, odd(tmp_path, "nowhere"), *more.get(command, []), forked=True)
    assert done.returncode == 1
    check_error_line(done.stderr, "nowhere", "no such folder")


def a_dangling_folder(source: Path) -> None:
    shutil.rmtree(source)
    source.symlink_to("nowhere")


def a_circle(source: Path) -> None:
    shutil.rmtree(source)
    source.symlink_to(source.name)


def dangling_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to("../blobs/abc")


def dangling_config(source: Path) -> None:
    (source / "config.json").unlink()
    (source / "config.json").symlink_to("nowhere")


def weights_that_are_a_fifo(source: Path) -> None:
    (source / "model.safetensors").unlink()
    os.mkfifo(source / "model.safetensors")


def weights_that_are_a_device(source: Path) -> None:
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to("/dev/zero")


def an_empty_folder(source: Path) -> None:
    shutil.rmtree(source)
    source.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        a_dangling_folder, a_circle, dangling_weights, dangling_config, weights_that_are_a_fifo,
        weights_that_are_a_device, an_empty_folder,
    ],
)  # fmt: skip
def test_a_source_that_leads_nowhere_is_one_line(
    source: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(source)
    check_refused(run("convert", source, tmp_path / "out", "--outliers", "none"), source)
    assert not (tmp_path / "out").exists()


VANISH = """
import shutil, sys
from pathlib import Path
from int8conv.cli import main
from int8conv.convert import converter, prepare
source, stage = Path(sys.argv[1]), sys.argv[2]
module = prepare if stage in ("SourceWatch", "open_source") else converter
original = getattr(module, stage)
def vanish(*args, **kwargs):
    shutil.rmtree(source, ignore_errors=True)
    return original(*args, **kwargs)
setattr(module, stage, vanish)
main(["convert", str(source), sys.argv[3], "--outliers", "none"], prog_name="int8conv")
"""


@pytest.mark.parametrize(
    "stage", ["SourceWatch", "open_source", "open_workspace", "run_tasks", "make_manifest", "write_metadata_files"]
)  # fmt: skip
def test_a_source_that_vanishes_is_one_line(source: Path, tmp_path: Path, stage: str) -> None:
    """A disk that is pulled out, a folder that somebody cleans up."""
    done = run_apart(source, stage, tmp_path / "out", code=VANISH)
    assert done.returncode == 1, done.stderr
    check_error_line(done.stderr)
    assert str(source) in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


NO_LOCKS = """
import errno, fcntl, os, stat, sys
from int8conv.cli import main
fsync = os.fsync

def flock(fd, how):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

def no_folders(fd):
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    fsync(fd)

fcntl.flock, os.fsync = flock, no_folders
main(["convert", *sys.argv[1:], "--outliers", "none"], prog_name="int8conv")
"""


def test_a_file_system_without_locks_and_flushes_gets_notes(source: Path, tmp_path: Path) -> None:
    done = run_apart(source, tmp_path / "out", code=NO_LOCKS)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("int8conv: note: ")]
    assert [word in " ".join(notes) for word in ("no locks", "cannot flush folders")] == [True] * 2
