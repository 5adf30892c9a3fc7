"""What MkDocs does not do by itself: pages from files elsewhere in the repository, from commands and from public names.

Links between files of the repository become links between pages; the text alone stays of those to files that are no page.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the pages are those of this tree, installed or not

import int8conv  # noqa: E402
from int8conv.cli import main  # noqa: E402

ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "int8conv/formats/SPEC.md": "format.md",
    "benchmarks/results/fidelity.md": "results/fidelity.md",
    "benchmarks/results/fidelity-rules.md": "results/fidelity-rules.md",
    "benchmarks/results/fidelity-texts.md": "results/fidelity-texts.md",
    "benchmarks/results/fidelity.png": "results/fidelity.png",
    "benchmarks/results/real-models.png": "results/real-models.png",
    "examples/reader.py": "reader.md",
}
"""Files outside docs/ that the site has, and their names there."""

_LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?!\w+:|#)(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the sections whose pages are generated."""
    commands = [{f"int8conv {name}": f"cli/{name}.md"} for name in command_names()]
    python = [{"Functions and classes": "api.md"}, {"Errors": "errors.md"}]
    assert config.nav is not None
    for section in config.nav:
        for title in section:
            if title in ("Commands", "Python"):
                section[title] = commands if title == "Commands" else python
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not stand in docs/."""
    for path, uri in ELSEWHERE.items():
        file = ROOT / path
        if file.suffix == ".png":
            files.append(File.generated(config, uri, abs_src_path=str(file)))
            continue
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".py":
            text = f"# `{path}`\n\n```python\n{text}```\n"
        files.append(File.generated(config, uri, content=text))
    for name in command_names():
        files.append(File.generated(config, f"cli/{name}.md", content=command_page(name)))
    files.append(File.generated(config, "api.md", content=python_page()))
    files.append(File.generated(config, "errors.md", content=errors_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are right for the page, not for the file that it comes from."""
    origins = {uri: path for path, uri in ELSEWHERE.items()}
    here = origins.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def relink(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        in_docs = path.removeprefix("docs/") if path.startswith("docs/") else None
        uri = ELSEWHERE.get(path, in_docs)
        if uri is None:
            return str(text)
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"[{text}]({posixpath.relpath(uri, start)}{anchor})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(relink, part) for part in parts)


def command_names() -> list[str]:
    return main.list_commands(_context())


def _context() -> click.Context:
    """The group's own, with its settings: ``-h`` is one of them."""
    return main.make_context("int8conv", [], resilient_parsing=True)


def command_page(name: str) -> str:
    """A command's help, with its options as a table."""
    context = _context()
    command = main.get_command(context, name)
    assert command is not None
    inner = click.Context(command, info_name=name, parent=context)
    usage = " ".join([inner.command_path, *command.collect_usage_pieces(inner)])
    rows = [
        f"| {_code(names)} | {_cell(text)} |"
        for names, text in _help_records(command, inner)
    ]  # fmt: skip
    return "\n".join([
        f"# {inner.command_path}", "", f"    {usage}", "", _unwrapped(command.help or ""), "",
        "| option | what it does |", "| --- | --- |", *rows, "",
    ])  # fmt: skip


def _help_records(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            yield record


def _code(text: str) -> str:
    """Code in a table's cell, where a bar would end the cell."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return f"<code>{escaped}</code>"


def _cell(text: str) -> str:
    return re.sub(r"([|<*_`\[\]])", r"\\\1", text)


def _unwrapped(text: str) -> str:
    """Help as a page shows it: paragraphs, with what Markdown would take for markup made plain."""
    return "\n\n".join(
        _cell(" ".join(part.split())) for part in text.replace("\b", "").split("\n\n")
    )


def public_names() -> list[str]:
    """Functions first, then classes; errors have a page of their own."""
    names = [name for name in int8conv.__all__ if not name.startswith("__") and name != "errors"]
    errors = vars(int8conv.errors)
    return sorted((n for n in names if n not in errors), key=lambda name: (name[0].isupper(), name))


def python_page() -> str:
    about = "::: int8conv\n    options: {members: false, show_root_heading: false}\n"
    return "\n".join(["# Functions and classes\n", about, *(f"::: int8conv.{n}" for n in public_names())])  # fmt: skip


def errors_page() -> str:
    return "# Errors\n\n::: int8conv.errors\n    options: {show_root_heading: false, heading_level: 1}\n"  # fmt: skip
