"""The command line: each command parses its arguments, calls one library function, and prints the result.

Commands import what they need when they run, so that ``int8conv --help`` stays fast. Library errors become one line on
stderr and exit code 1 in one place, ``Commands.invoke``.
"""

from __future__ import annotations

import contextlib
import importlib
import keyword
import os
import sys
from typing import Any

import click

from .. import __version__
from ..errors import Int8convError
from ..formats.safetensors.mapped import exit_if_truncated
from .output import echo, print_what_can_be
from .threads import respect_quota, sleep_while_waiting

_COMMANDS = {
    "convert": "Convert a checkpoint folder to int8.",
    "adopt": "Make a converted folder of what transformers saved.",
    "import": "Make a converted folder of int8 weights of other tools.",
    "export": "Write a converted folder for other tools.",
    "push": "Upload a converted folder to the hub.",
    "calibrate": "Measure the activations of a checkpoint.",
    "inspect": "Show what is inside a converted folder.",
    "footprint": "Predict the memory that a model needs.",
    "eval": "Measure perplexity and the divergence from the source.",
    "generate": "Continue a prompt.",
    "chat": "Chat with a model.",
    "serve": "Serve a model to OpenAI clients.",
    "bench": "Measure speed, loading and memory.",
    "warm": "Compile the GPU kernels of a model ahead of time.",
}
_ROOMS = {"warm": "gpu"}
"""Rooms of the commands that are in one."""


class Commands(click.Group):
    """Loads a command's module when the command is called; lists commands without loading them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name + "_" * keyword.iskeyword(cmd_name)
        room = f".{_ROOMS[cmd_name]}" if cmd_name in _ROOMS else ""
        module = importlib.import_module(f"{room}.{name}", __name__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:  # what a command returns, as in click
        code = 1
        exit_if_truncated()
        print_what_can_be()
        respect_quota()
        sleep_while_waiting()
        try:
            return super().invoke(ctx)
        except Int8convError as error:
            echo(f"int8conv: error: {error}", err=True)
        except BrokenPipeError:  # whatever read our output is gone
            _drop_output()
        except OSError as error:  # a path that is too long, or stdout on a full disk
            _drop_output()
            where = "" if error.filename is None else f"{error.filename}: "
            echo(f"int8conv: error: {where}{error.strerror}", err=True)
        except MemoryError:
            echo("int8conv: error: not enough memory", err=True)
        except KeyboardInterrupt:
            echo("int8conv: interrupted", err=True)
            code = 130
        raise click.exceptions.Exit(code)


def _drop_output() -> None:
    """Discard what is still buffered for stdout; otherwise Python would retry at exit."""
    with contextlib.suppress(
        OSError, AttributeError
    ):  # stdout has no file descriptor, or is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="int8conv")
def main() -> None:
    """Convert checkpoints to int8 once, offline, and run them.

    SRC is a Hugging Face checkpoint folder; PATH is a converted folder or, where noted, a source. Where noted, either may also
    be a hub id (org/name or org/name@revision), which is downloaded.
    """
