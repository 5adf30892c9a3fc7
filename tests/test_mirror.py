"""The tests mirror the package: a module with logic in it has a test file of its own name, in the room of its name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import int8conv

from .conftest import SLOW, is_slow

PACKAGE = Path(int8conv.__file__).parent
TESTS = Path(__file__).parent

ELSEWHERE: dict[str, str] = {
    "__init__": "tests/test_rooms.py",  # the names that it gives, and that it loads nothing
    "cli/__init__": "tests/cli/test_main.py",
    "convert/by_name/expert_stacks": "tests/convert/by_name/test_generic.py",  # stacks of whole checkpoints
    "convert/outliers/choose": "tests/convert/test_resume.py",  # what a journal has of it, sound and tampered with
    "convert/outliers/source_weights": "tests/convert/outliers/test_calibrate.py",  # what calibration reads
    "convert/outliers/texts": "tests/convert/outliers/test_calibrate.py",
    "convert/rounding/interface": "tests/convert/rounding/test_device.py",  # which quantizer a device has
    # compiled code, called through ``jit`` alone
    "kernels/cpu/jit_attention": "tests/kernels/cpu/test_jit.py",
    "kernels/cpu/jit_gemm": "tests/kernels/cpu/test_int16.py",
    "kernels/cpu/jit_layer": "tests/kernels/cpu/test_jit.py",
    "kernels/cpu/jit_linear": "tests/kernels/cpu/test_jit.py",
    "kernels/cpu/jit_rounding": "tests/convert/rounding/test_compensate.py",
    "kernels/cpu/jit_primitives": "tests/kernels/cpu/test_jit.py",
    "kernels/gpu/gemv": "tests/kernels/gpu/test_linear.py",  # a kernel of the linear, as gemm and skinny are
    "kernels/gpu/reference": "tests/kernels/gpu/test_gemm.py",  # held to float64 there, as the kernels are
    "runtime/backends/gpu/staging": "tests/runtime/backends/gpu/test_files.py",  # under every read of a file
    "runtime/decoder/recurrent/mamba": "tests/runtime/models/test_families.py",  # held to transformers there
    "runtime/decoder/ffn/scaled": "tests/runtime/decoder/test_mixers.py",
    "runtime/decoder/recurrent/short_conv": "tests/runtime/models/test_families.py",
    "runtime/decoder/attention": "tests/runtime/decoder/test_decoder.py",
    "runtime/decoder/block": "tests/runtime/decoder/test_decoder.py",
    "runtime/decoder/norm": "tests/runtime/decoder/test_decoder.py",
    # held to transformers there, through every family that has them
    "runtime/decoder/ffn/beside": "tests/runtime/models/test_families.py",
    "runtime/decoder/ffn/building": "tests/runtime/models/test_families.py",
    "runtime/decoder/ffn/feed_forward": "tests/runtime/models/test_families.py",
    "runtime/decoder/residual/altup": "tests/runtime/models/test_families.py",
    "runtime/decoder/residual/laurel": "tests/runtime/models/test_families.py",
    "runtime/decoder/residual/layer_input": "tests/runtime/models/test_families.py",
    "runtime/models/stream_modules": "tests/runtime/models/test_families.py",
    "runtime/models/modules": "tests/runtime/models/test_architecture.py",
    "runtime/models/recurrence": "tests/runtime/decoder/test_mixers.py",  # sizes, as allocated
    "runtime/decoder/latent_cache": "tests/runtime/decoder/test_latent_attention.py",  # which fills it
    # the parts of the server, through its routes
    "serve/asking": "tests/serve/test_app.py",
    "serve/generating": "tests/serve/test_app.py",
    "serve/replies": "tests/serve/test_app.py",
    "vllm/plugin": "tests/vllm/test_serving.py",  # the entry point, as vLLM finds it
    "runtime/models/families/__init__": "tests/runtime/models/test_families.py",
}
"""Modules with logic and no file of their own -> where it is tested instead."""

ONE_FILE_FOR_ALL = {"runtime/models/families": "tests/runtime/models/test_families.py"}
"""Rooms of modules of one kind, each of which runs through the same tests."""


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def has_logic(path: Path) -> bool:
    """Whether a function of it does something: more than a docstring or ``...``, which is all that protocols have."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return any(not all(_is_constant(line) for line in function.body) for function in functions)


def _is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def own_test(name: str) -> Path:
    room, _, module = name.rpartition("/")
    return TESTS / room / f"test_{module}.py"


def stands_in(name: str) -> Path:
    """Where a module is tested, if not in a file of its own."""
    room = name.rpartition("/")[0]
    return TESTS.parent / (ELSEWHERE.get(name) or ONE_FILE_FOR_ALL.get(room, ""))


LOGIC = [name for name, path in MODULES.items() if has_logic(path)]


@pytest.mark.parametrize("name", LOGIC)
def test_a_module_with_logic_has_a_test_file(name: str) -> None:
    found = [path for path in (own_test(name), stands_in(name)) if path.is_file()]
    assert found, f"write {own_test(name).relative_to(TESTS.parent)}"
    assert any("def test_" in path.read_text() for path in found)


def test_exceptions_are_of_modules_without_a_file_and_name_one_that_is_there() -> None:
    assert set(ELSEWHERE) <= set(LOGIC)
    for name in ELSEWHERE:
        assert not own_test(name).exists(), name
    for path in (*ELSEWHERE.values(), *ONE_FILE_FOR_ALL.values()):
        assert (TESTS.parent / path).is_file(), path


def test_slow_files_are_there_and_marked(request: pytest.FixtureRequest) -> None:
    """What ``make check-fast`` leaves out is what conftest names, so a file that moves has to move there too."""
    for entry in SLOW:
        path = TESTS / entry
        assert path.is_file() or any(path.rglob("test_*.py")), entry
    assert is_slow(TESTS / "kernels/gpu/test_gemm.py")
    assert not is_slow(Path(__file__))
    for item in request.session.items:
        assert (item.get_closest_marker("slow") is not None) == is_slow(item.path), item.nodeid
    assert list(SLOW) == sorted(SLOW)
