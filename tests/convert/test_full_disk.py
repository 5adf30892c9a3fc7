"""A file system that really fills up: one clear line, no OUT, and with room again the same command ends as undisturbed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.converter import convert_checkpoint

from ..cli.helpers import check_error_line

ROOT = Path(__file__).parents[2]

ROUNDS = """
import json, os, pathlib, subprocess, sys
source, disk = sys.argv[1], pathlib.Path(sys.argv[2])
command = [sys.executable, "-m", "int8conv", "convert", source, str(disk / "out"), "--outliers", "none"]

def run():
    done = subprocess.run(command, capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr, sorted(path.name for path in disk.iterdir())]

def contents():
    return {p.name: p.read_bytes() for p in (disk / "out").iterdir()} if (disk / "out").exists() else None

def fill(room):
    '''A ballast that leaves so many bytes.'''
    stat = os.statvfs(disk)
    with open(disk / "ballast", "wb") as file:
        left = stat.f_bavail * stat.f_frsize - room
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 20)))

assert run()[0] == 0
expected = contents()
rounds = []
for room in map(int, sys.argv[3:]):
    subprocess.run(["rm", "-r", str(disk / "out")], check=True)
    fill(room)
    full = run()
    (disk / "ballast").unlink()
    after = run()
    rounds.append([room, full, after, contents() == expected])
print(json.dumps(rounds))
"""
"""On a disk of limited size: for each room that is left, a run without and one with space."""

MOUNTS = {
    "tmpfs": 'mount -t tmpfs -o size={size} tmpfs "$1"',
    "image": 'truncate -s {size} "$1.img" && mkfs.ext4 -q -F "$1.img" && mount -o loop "$1.img" "$1"',
}


def rounds_on_a_disk(source: Path, disk: Path, size: int, rooms: list[int]) -> list[Any]:
    """In a mount namespace of its own, which takes the mount away when it ends; skips where that is forbidden."""
    reasons = []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, to mount a disk of limited size")
    for name, mount in MOUNTS.items():
        shell = f'{mount.format(size=size)} && shift && exec "$@"'
        probe = ["unshare", "-rm", "sh", "-c", shell, "sh", str(disk)]
        tried = subprocess.run([*probe, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            reasons.append(f"{name}: {tried.stderr.strip()}")
            continue
        command = [*probe, sys.executable, "-c", ROUNDS, str(source), str(disk), *map(str, rooms)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        rounds: list[Any] = json.loads(done.stdout)
        return rounds
    pytest.skip(f"mounting a disk of limited size is forbidden: {'; '.join(reasons)}")


def check_full(disk: Path, run: list[Any]) -> None:
    code, stdout, stderr, names = run
    assert (code, stdout) == (1, "")
    check_error_line(stderr, disk / "out", "no space left", "run the same command again")
    assert "out" not in names


def test_a_disk_of_limited_size(example: Path, tmp_path: Path) -> None:
    """From no room at all to a page too little; where the shards had room and other files not, nothing is done again."""
    convert_checkpoint(example, tmp_path / "expected", outliers="none")
    pages = [-(-path.stat().st_size // 4096) for path in (tmp_path / "expected").iterdir()]
    needed = sum(pages) * 4096
    disk = tmp_path / "disk"
    disk.mkdir()
    rooms = [0, 4096, 40_000, 1_000_000, 4_000_000, needed - 200_000, needed - 8192]
    rounds = rounds_on_a_disk(example, disk, 2 * needed, rooms)
    assert len(rounds) == len(rooms)
    resumed = 0
    for room, full, after, same in rounds:
        check_full(disk, full)
        assert after[0] == 0, (room, after)
        assert after[3] == ["out"], room
        assert same, room
        resumed += "were already done" in after[2]
    assert resumed == 2
    assert not list(disk.iterdir())


def test_a_limit_on_the_size_of_files(example: Path, tmp_path: Path) -> None:
    """Where nothing can be mounted, this works: the system refuses to let a file grow (EFBIG)."""
    code = """
import resource, sys
from int8conv.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
main(["convert", *sys.argv[2:], "--outliers", "none"], prog_name="int8conv")
"""

    def run(limit: int) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", code, str(limit), example, tmp_path / "out"],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        return [done.returncode, done.stdout, done.stderr, [p.name for p in tmp_path.iterdir()]]

    convert_checkpoint(example, tmp_path / "expected", outliers="none")
    check_full(tmp_path, run(3_000_000))
    assert run(1 << 30)[0] == 0
    for path in (tmp_path / "expected").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
