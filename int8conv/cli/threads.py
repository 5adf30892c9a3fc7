"""How many processors a command uses, and how its threads wait: told to PyTorch through the environment, which costs no import of it."""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from ..host import affinity, processors

VARIABLE: Final = "OMP_NUM_THREADS"
WAITING: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What a user may have said about how threads wait."""


def respect_quota() -> None:
    """PyTorch knows the affinity of a process, but not the quota of its control groups; a number of the user's counts before both."""
    if not os.environ.get(VARIABLE):
        count = processors()
        if count < affinity():
            use_threads(count)


def sleep_while_waiting() -> None:
    """Let threads that wait for others sleep rather than spin, unless the user says how they wait.

    A thread that spins keeps a processor from the one that it waits for: beside one busy program, two threads were four times
    slower than alone (``benchmarks/busy.py``). Waking them costs some microseconds per parallel region.
    """
    if not any(os.environ.get(name) for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def use_threads(count: int) -> None:
    """For all that PyTorch, and the compiled code that goes by it, computes from here on."""
    os.environ[VARIABLE] = str(count)
    if "torch" in sys.modules:  # it has read the environment
        import torch

        torch.set_num_threads(count)


def _use(_ctx: click.Context, _param: click.Parameter, value: int | None) -> None:
    if value is not None:
        use_threads(value)


threads_option = click.option(
    "--threads", type=click.IntRange(min=1), expose_value=False, callback=_use,
    help="Threads to compute with; default: the processors that this process may use.",
)  # fmt: skip
