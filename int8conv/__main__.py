"""``python -m int8conv``."""

from .cli import main

main(prog_name="int8conv")
