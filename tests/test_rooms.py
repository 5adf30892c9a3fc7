"""The house: who may import whom, what importing must not load, how large a module may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import int8conv

PACKAGE = Path(int8conv.__file__).parent

ALLOWED = {
    "errors": set[str](),
    "formats": {"errors"},
    "kernels": {"errors"},
    "runtime": {"errors", "formats", "kernels"},
    "convert": {"errors", "formats", "kernels", "runtime"},
    "cli": {"errors", "formats", "kernels", "runtime", "convert"},
}
"""Room -> rooms that its modules may import. ``__init__`` (the version and lazy public names) is open to all."""

TORCH_FREE_RUNTIME = {"architecture", "config", "families", "footprint"}
"""What ``convert`` may use of the runtime outside ``calibrate``: what a model looks like, not how it is run."""

HEAVY = {"torch", "triton", "tokenizers", "huggingface_hub"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Absolute module paths that a file imports, as parts; relative imports resolved."""
    here = ("int8conv", *path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((*module, alias.name) for alias in node.names) if module else ()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_room_may_know(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for parts in imports(path):
        if parts[0] != "int8conv" or parts[1] in (room, "__version__"):
            continue
        assert parts[1] in ALLOWED[room], f"{path} imports {'.'.join(parts)}"
        if room == "convert" and parts[1] == "runtime" and path.stem != "calibrate":
            assert parts[2] in TORCH_FREE_RUNTIME, f"{path} imports {'.'.join(parts)}"


@pytest.mark.parametrize(
    "statement",
    [
        "import int8conv",
        "import int8conv.cli",
        "import int8conv.formats.int8.folder, int8conv.formats.int8.verify, int8conv.formats.int8.summary",
        "import int8conv.convert.converter",
        "import int8conv.runtime.measure.footprint",
    ],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    check = f"import sys; {statement}; print(*(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_modules_stay_small() -> None:
    sizes = sorted(
        sum(1 for line in path.read_text().splitlines() if line.strip()) for path in modules()
    )
    assert sizes[len(sizes) // 2] < 150
    assert sizes[-1] < 400


def test_public_names() -> None:
    assert int8conv.__all__ == [
        "ConvertReport", "Footprint", "Generation", "Int8convError", "Model", "__version__",
        "convert", "load",
    ]  # fmt: skip
    for name in int8conv.__all__:
        assert getattr(int8conv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'quantize'"):
        _ = int8conv.quantize  # type: ignore[attr-defined]
