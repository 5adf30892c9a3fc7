"""``int8conv push``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from .output import echo, print_json, progress_bars, size, table


@click.command("push")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option(
    "--eval", "evaluation", type=click.Path(path_type=Path),
    help="File with the output of int8conv eval OUT --text FILE --against SRC --json, for the model card.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace another conversion in the repository.")
@click.option("--dry-run", is_flag=True, help="Verify the folder and show the model card; contact no hub.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    out: Path, repository: str, private: bool, evaluation: Path | None, force: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Upload the converted folder OUT to the hub as ORG/NAME, with a model card.

    Needs a token with write access (HF_TOKEN). Every byte is verified first; the files become visible in one commit at the end.
    """
    from ..publish.push import push

    with progress_bars("B") as progress:
        report = push(
            out, repository, private=private, evaluation=evaluation, force=force, dry_run=dry_run, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(asdict(report) | {"bytes": report.nbytes})
        return
    if report.commit is None:
        echo(*report.card.splitlines())
        table(["file", "size"], [[name, size(n)] for name, n in report.files.items()])
        echo("", f"{repository}: {len(report.files)} files, {size(report.nbytes)}; nothing was uploaded")  # fmt: skip
        return
    removed = f", {len(report.removed)} old files removed" if report.removed else ""
    echo(f"{repository}: {len(report.files)} files, {size(report.nbytes)}{removed}; {report.commit}")  # fmt: skip
