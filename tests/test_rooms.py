"""The house: who may import whom, what importing must not load, how large a room, a module, a function may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import int8conv

PACKAGE = Path(int8conv.__file__).parent

ALLOWED = {
    "errors": (),
    "host": (),
    "progress": (),
    "formats": ("errors", "progress", "formats"),
    "formats.safetensors": (
        "errors",
        "formats.safetensors",
        "formats.json_file",
        "formats.regular_file",
    ),
    "kernels": ("errors", "host", "progress", "kernels"),
    "runtime": ("errors", "host", "progress", "formats", "kernels", "runtime"),
    "runtime.models": ("errors", "progress", "formats", "runtime.models"),
    "runtime.text": ("errors", "progress", "formats", "runtime.text"),
    "convert": ("errors", "host", "progress", "formats", "kernels", "runtime", "convert"),
    "hf": ("errors", "host", "progress", "formats", "kernels", "runtime", "convert", "hf"),
    "cli": (
        "errors",
        "host",
        "progress",
        "formats",
        "kernels",
        "runtime",
        "convert",
        "publish",
        "serve",
        "cli",
    ),
    "publish": ("errors", "progress", "formats", "runtime", "publish"),
    "serve": ("errors", "progress", "runtime", "serve"),
    "vllm": ("errors", "formats", "kernels", "runtime", "vllm"),
    "lm_eval": ("errors", "host", "progress", "kernels", "runtime", "lm_eval"),
}
"""Room -> rooms and modules that it may import; the longest name that fits counts. ``__init__`` is open to all."""

TORCH_FREE = (
    "cli", "convert", "errors", "formats", "runtime.devices", "runtime.models", "runtime.opening", "runtime.text",
)  # fmt: skip
"""Rooms that import torch, and modules that do, inside functions only."""

NEEDS_TORCH = {
    "convert.outliers.calibrate", "convert.outliers.source_weights", "convert.outliers.texts", "convert.rounding.compensate",
    "convert.rounding.device", "convert.rounding.second_pass", "runtime.text.byte_level_files", "runtime.text.slow_files",
    "runtime.text.tokenizer",
}  # fmt: skip
"""Modules in those rooms that nobody imports who does not need torch, or a tokenizer."""

HEAVY = {"torch", "triton", "tokenizers", "huggingface_hub"}

ROOM_MODULES, MEDIAN_LINES, MODULE_LINES, FUNCTION_LINES, PAGE_LINES = 16, 120, 400, 60, 60


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted, without the package: ``formats.int8.layout``; a room's own name for its ``__init__``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in modules()}


@cache
def imports(path: Path, *, inside_functions: bool = True) -> tuple[str, ...]:
    """Dotted names that a file imports; of this package without its name, of others their first part."""
    return tuple(_imports(path, inside_functions))


def _imports(path: Path, inside_functions: bool) -> Iterator[str]:
    here = ("int8conv", *path.relative_to(PACKAGE).with_suffix("").parts)
    for node in nodes(ast.parse(path.read_text()), inside_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            if module[0] != "int8conv":
                yield module[0]
                continue
            for alias in node.names:
                name = ".".join((*module[1:], alias.name))
                yield name if name in NAMES else ".".join(module[1:])


def nodes(tree: ast.AST, inside_functions: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types(node)
        if inside_functions or not deferred:
            yield from nodes(node, inside_functions)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("", "__main__")])
def test_a_module_imports_only_what_its_room_may_know(name: str) -> None:
    room = max((room for room in ALLOWED if inside(name, room)), key=len)
    for imported in imports(NAMES[name]):
        if imported in NAMES and imported != "":
            assert any(inside(imported, each) for each in ALLOWED[room]), f"{name}: {imported}"


@pytest.mark.parametrize("inside_functions", [False, True], ids=["at import", "at all"])
def test_no_module_imports_itself_in_a_circle(inside_functions: bool) -> None:
    graph = {
        name: {n for n in imports(path, inside_functions=inside_functions) if n in NAMES} - {""}
        for name, path in NAMES.items()
        if name
    }
    assert not _circles(graph)


UNTYPED = {
    "dict[str, Any]": "an object in JSON; values are checked where they are read",
    "Mapping[str, Any]": "the same, not to be modified",
    "list[tuple[str, Any]]": "the same, as json's object_pairs_hook gets it",
    "Iterator[tuple[str, Any]]": "the same, some of its fields",
    "NDArray[Any]": "elements of a dtype that a file names",
    "dtype[Any]": "that dtype",
}
"""Parts of signatures that may contain ``Any``, and why; all others need a comment on the line of the parameter or above the function."""


def test_any_in_a_public_signature_is_explained() -> None:
    """Names with an underscore, and functions inside functions, are their module's own business."""
    unexplained = [
        f"{name}:{function.name}: {ast.unparse(hint)}"
        for name, path in NAMES.items()
        for function in _public_functions(ast.parse(path.read_text()))
        for hint in _hints(function)
        if _has_any(hint) and not _explained(path.read_text().splitlines(), function, hint)
    ]
    assert unexplained == []


def _public_functions(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for node in tree.body:
        public = not getattr(node, "name", "").startswith("_")
        if isinstance(node, ast.ClassDef) and public:
            yield from _public_functions(node)
        elif isinstance(node, ast.FunctionDef) and (public or node.name.startswith("__")):
            yield node


def _hints(function: ast.FunctionDef) -> Iterator[ast.expr]:
    a = function.args
    for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg):
        if argument is not None and argument.annotation is not None:
            yield argument.annotation
    if function.returns is not None:
        yield function.returns


def _has_any(hint: ast.expr) -> bool:
    text = ast.unparse(hint)
    for part in UNTYPED:
        text = text.replace(part, "")
    return re.search(r"\bAny\b", text) is not None


def _explained(lines: list[str], function: ast.FunctionDef, hint: ast.expr) -> bool:
    """A comment that is one for people, not for a tool."""
    first = min(node.lineno for node in (function, *function.decorator_list))
    comments = (lines[hint.lineno - 1].partition("  #")[2], lines[first - 2].partition("#")[2])
    return any(c.strip() and not re.match(r" (fmt|type|noqa)\b", c) for c in comments)


def _circles(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is left when modules that import none of the others, or are imported by none, are taken away again and again."""
    left = dict(graph)
    while True:
        imported = set[str]().union(*left.values())
        ends = {
            name for name, found in left.items() if name not in imported or not found & set(left)
        }
        if not ends:
            return {name: found & set(left) for name, found in left.items()}
        left = {name: found for name, found in left.items() if name not in ends}


def test_rooms_that_need_no_torch_do_not_import_it() -> None:
    free = [n for n in NAMES if any(inside(n, r) for r in TORCH_FREE) and n not in NEEDS_TORCH]
    for name in free:
        seen, waiting = set[str](), [name]
        while waiting:
            for imported in imports(NAMES[waiting.pop()], inside_functions=False):
                assert imported not in HEAVY, f"{name} imports {imported}"
                if imported in NAMES and imported not in seen and imported != "":
                    seen.add(imported)
                    waiting.append(imported)


@pytest.mark.parametrize(
    "statement",
    [
        "import int8conv",
        "import int8conv.cli",
        "import int8conv.formats.int8.folder, int8conv.formats.int8.verify",
        "import int8conv.convert.converter",
        "import int8conv.runtime.measure.footprint",
    ],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    check = f"import sys; {statement}; print(*(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_rooms_modules_and_functions_stay_small() -> None:
    sizes = sorted(len(path.read_text().splitlines()) for path in modules())
    assert sizes[len(sizes) // 2] <= MEDIAN_LINES
    assert sizes[-1] <= MODULE_LINES
    rooms = Counter(path.parent for path in modules() if path.name != "__init__.py")
    crowded = {room.name for room, count in rooms.items() if count > ROOM_MODULES}
    assert crowded <= {"families"}  # a file a family
    pages = {path: path.read_text() for path in modules() if path.parent.name == "families"}
    pages = {path: text for path, text in pages.items() if re.search(r"^[A-Z0-9_]+ = Family\(", text, re.MULTILINE)}  # fmt: skip
    assert len(pages) > 40
    assert [path.name for path, text in pages.items() if len(text.splitlines()) > PAGE_LINES] == []
    long = defaultdict[str, int](int)
    for name, path in NAMES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - node.lineno + 1
                if body is not node.body:  # many documented arguments make no function long
                    lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{name}:{node.name}"] = lines
    assert dict(long) == {}
