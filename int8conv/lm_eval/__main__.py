"""The harness's own command line, with the model ``int8conv`` in its registry: it finds no models by entry points."""

from __future__ import annotations

import sys

from ..errors import Int8convError


def main() -> None:
    """Exits with one line and status 1 where a folder or an option cannot be used."""
    try:
        from lm_eval.__main__ import cli_evaluate

        from . import model  # noqa: F401  (registers itself)
    except ModuleNotFoundError as error:
        sys.exit(f"error: the harness needs the module '{error.name}'; pip install 'int8conv[lm-eval]'")  # fmt: skip
    try:
        cli_evaluate()
    except Int8convError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
