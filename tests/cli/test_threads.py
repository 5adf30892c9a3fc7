"""How many threads commands take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from int8conv.cli import threads

from .helpers import run


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    yield
    torch.set_num_threads(before)


def test_a_quota_counts_where_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "processors", lambda: 3)
    threads.respect_quota()
    assert (os.environ["OMP_NUM_THREADS"], torch.get_num_threads()) == ("3", 3)
    monkeypatch.setattr(threads, "processors", lambda: 2)
    threads.respect_quota()  # it is said now
    assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(threads, "processors", lambda: 8)
    threads.respect_quota()  # PyTorch knows the affinity
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("command", ["generate", "chat", "eval", "bench", "calibrate", "convert"])
def test_a_number_is_an_option_of_what_computes(command: str) -> None:
    assert run(command, "--threads", 0).exit_code == 2
    assert "Threads to compute with" in run(command, "--help").output


def test_a_number(example_int8: object) -> None:
    torch.set_num_threads(2)
    assert run("generate", example_int8, "-p", "A", "-n", 0, "--threads", 1).exit_code == 0
    assert (os.environ["OMP_NUM_THREADS"], torch.get_num_threads()) == ("1", 1)


def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in threads.WAITING:
        monkeypatch.setenv(name, "")
    threads.sleep_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000")):
        with monkeypatch.context() as said:
            said.setenv("OMP_WAIT_POLICY", "")
            said.setenv(name, value)
            threads.sleep_while_waiting()
            assert os.environ[name] == value
            assert os.environ["OMP_WAIT_POLICY"] != "PASSIVE"


def test_a_command_says_it_before_pytorch_is_loaded() -> None:
    """Its OpenMP reads the environment once, when it is loaded."""
    program = (
        "import sys, os, int8conv.cli as cli\n"
        "cli.importlib.import_module = lambda *a: sys.exit(f\"{'torch' in sys.modules} {os.environ['OMP_WAIT_POLICY']}\")\n"
        "cli.main(['bench'])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in threads.WAITING}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)  # fmt: skip
    assert done.stderr == "False PASSIVE\n"
