"""What MkDocs does not do by itself: pages from files elsewhere in the repository, from commands and from public names.

Links between files of the repository become links between pages; those to files that are no page become plain text.
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
    "examples/reader.py": "reader.md",
}
"""Files that are pages of the site, and their names there."""

_LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?!\w+:|#)(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the generated sections."""
    sections = {
        "Commands": [{f"int8conv {name}": f"cli/{name}.md"} for name in command_names()],
        "Python": [{title: uri} for uri, title, _ in python_pages()],
    }
    assert config.nav is not None
    for entry in config.nav:
        for title in entry:
            entry[title] = sections.get(title, entry[title])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that stand nowhere in docs/."""
    for path, uri in ELSEWHERE.items():
        file = ROOT / path
        if path.endswith(".png"):
            files.append(File.generated(config, uri, abs_src_path=str(file)))
        elif path.endswith(".py"):
            files.append(File.generated(config, uri, content=code_page(file)))
        else:
            files.append(File.generated(config, uri, content=file.read_text(encoding="utf-8")))
    for name in command_names():
        files.append(File.generated(config, f"cli/{name}.md", content=command_page(name)))
    for uri, _, content in python_pages():
        files.append(File.generated(config, uri, content=content))
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

    return _LINK.sub(relink, markdown)


def command_names() -> list[str]:
    return main.list_commands(click.Context(main))


def command_page(name: str) -> str:
    """A command's arguments and options, from click."""
    return (
        f"::: mkdocs-click\n    :module: int8conv.cli.{name}\n    :command: command\n"
        f"    :prog_name: int8conv {name}\n    :style: table\n    :depth: 0\n"
    )


def python_pages() -> Iterator[tuple[str, str, str]]:
    """Name, title and text of each page on the Python interface."""
    names = [name for name in int8conv.__all__ if not name.startswith("__")]
    text = "# Python\n\n::: int8conv\n    options: {members: false, show_root_heading: false}\n\n"
    names = [name for name in names if name != "errors"]
    yield "api.md", "Functions and classes", text + "\n".join(f"::: int8conv.{n}" for n in names)
    yield (
        "errors.md",
        "Errors",
        (
            "# Errors\n\n::: int8conv.errors\n    options: {show_root_heading: false, heading_level: 1}\n"
        ),
    )


def code_page(file: Path) -> str:
    path = file.relative_to(ROOT).as_posix()
    return f"# `{path}`\n\n```python\n{file.read_text(encoding='utf-8')}```\n"
