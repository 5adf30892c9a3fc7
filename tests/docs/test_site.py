"""``make docs``: the site builds without a network, asks for nothing from elsewhere, links to what is there, and leaves nothing out."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import int8conv
from int8conv.cli import main

from .site import CHROMIUM, HtmlPage, look_at

pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")

ROOT = Path(__file__).parents[2]
COMMANDS = main.list_commands(click.Context(main))
NAMES = [name for name in int8conv.__all__ if not name.startswith("__")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``make docs`` does, where every proxy leads nowhere."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)], cwd=ROOT,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, HtmlPage]:
    """By their path in the site."""
    return {path.relative_to(site).as_posix(): HtmlPage(path) for path in site.rglob("*.html")}


def test_every_page_of_the_repository_is_there(pages: dict[str, HtmlPage]) -> None:
    written = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    others = {"index.html", "contributing.html", "changelog.html", "format.html", "reader.html"}
    generated = {"api.html", "errors.html", *(f"cli/{name}.html" for name in COMMANDS)}
    assert written | others | generated <= set(pages)


def test_every_internal_link_leads_somewhere(site: Path, pages: dict[str, HtmlPage]) -> None:
    broken, checked = [], 0
    for path, page in pages.items():
        if path == "404.html":  # served for any address, so its links start at the root
            continue
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            checked += 1
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                broken.append((path, link))
            elif parts.fragment and target.suffix == ".html":
                other = pages[target.relative_to(site.resolve()).as_posix()]
                if unquote(parts.fragment) not in other.anchors:
                    broken.append((path, link))
    assert broken == []
    assert checked > 1000


def test_no_page_asks_for_anything_from_elsewhere(site: Path, pages: dict[str, HtmlPage]) -> None:
    asked = {link for page in pages.values() for link in page.loaded if "//" in link}
    assert asked == set()
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", text), style.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(pages: dict[str, HtmlPage], name: str) -> None:
    context = main.make_context("int8conv", [], resilient_parsing=True)
    command = main.get_command(context, name)
    assert command is not None
    assert command.help
    page = pages[f"cli/{name}.html"].text
    assert f"int8conv {name}" in page
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts
            for option in parameter.opts + parameter.secondary_opts:
                assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page), option
        else:
            assert parameter.make_metavar(context).strip("[].") in command.help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_on_a_page_that_somebody_wrote(name: str) -> None:
    written = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"int8conv {name} " in page.read_text(encoding="utf-8") for page in written)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented(pages: dict[str, HtmlPage], name: str) -> None:
    found = getattr(int8conv, name)
    assert inspect.getdoc(found)
    if name == "errors":
        assert "int8conv.errors" in pages["errors.html"].anchors
        return
    is_error = inspect.isclass(found) and issubclass(found, Exception)
    page = pages["errors.html" if is_error else "api.html"]
    assert (f"int8conv.errors.{name}" if is_error else f"int8conv.{name}") in page.anchors
    if inspect.isclass(found):
        for attribute, value in vars(found).items():
            if inspect.isfunction(value) and not attribute.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{attribute}"


def test_every_error_is_documented(pages: dict[str, HtmlPage]) -> None:
    for name, found in vars(int8conv.errors).items():
        if inspect.isclass(found) and issubclass(found, int8conv.Int8convError):
            assert f"int8conv.errors.{name}" in pages["errors.html"].anchors


def test_every_parameter_of_a_function_is_documented() -> None:
    for name in NAMES:
        found = getattr(int8conv, name)
        if not inspect.isfunction(found):
            continue
        text = inspect.getdoc(found) or ""
        parameters = list(inspect.signature(found).parameters)
        if len(parameters) > 1:
            missing = [p for p in parameters if not re.search(rf"^ +{p}(, \w+)*:", text, re.MULTILINE)]  # fmt: skip
            assert missing == [], name


def test_every_environment_variable_is_documented() -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "int8conv").rglob("*.py")]
    read = {
        name for text in sources for name in re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", text)
    }
    assert "INT8CONV_JIT" in read
    assert [name for name in sorted(read) if f"`{name}`" not in page] == []


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_every_page_renders_in_a_browser(site: Path, tmp_path: Path) -> None:
    server = look_at(site, tmp_path / "profile", seconds=400)
    assert server.done.is_set(), "the browser never answered"
    assert [page["path"] for page in server.seen] == server.paths
    assert server.blocked == []
    for page in server.seen:
        assert page["errors"] == [], page
        assert page["broken"] == [], page
        assert page["styled"] == "sticky", page
        assert page["links"] > 15, page
        assert not page["wide"], page
        assert page["heading"], page
        assert page["height"] > 20, page
