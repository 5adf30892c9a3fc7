"""Fixtures that every room's tests share."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from int8conv.convert.converter import convert_checkpoint

from .checkpoints import write_checkpoint

SLOW = (
    "benchmarks",
    "cli/reports/test_plot.py",
    "cli/test_attack.py",
    "cli/test_bench.py",
    "cli/test_calibrate.py",
    "cli/test_chat.py",
    "cli/test_eval.py",
    "cli/test_generate.py",
    "cli/test_hub.py",
    "cli/test_inspect.py",
    "cli/test_main.py",
    "cli/test_odd_paths.py",
    "cli/test_outputs.py",
    "cli/test_push.py",
    "convert/by_name/test_census.py",
    "convert/exchange/test_gguf_file.py",
    "convert/outliers/test_calibrate.py",
    "convert/rounding/test_device.py",
    "convert/rounding/test_quantize.py",
    "convert/test_converter.py",
    "convert/test_every_write.py",
    "convert/test_forms.py",
    "convert/test_full_disk.py",
    "convert/test_properties.py",
    "convert/test_quality.py",
    "convert/test_resume.py",
    "docs",
    "formats/hub/test_download.py",
    "formats/hub/test_remote.py",
    "formats/int8/test_layout.py",
    "formats/int8/test_mutated.py",
    "formats/int8/test_numbers.py",
    "formats/int8/test_verify.py",
    "formats/safetensors/test_mapped.py",
    "hf/test_compiled_layer.py",
    "hf/test_quantizer.py",
    "kernels/cpu/test_fused.py",
    "kernels/cpu/test_jit.py",
    "kernels/gpu",
    "kernels/test_dispatch.py",
    "kernels/test_torch_operator.py",
    "publish/test_push.py",
    "runtime/backends",
    "runtime/decoder/test_quantized_cache.py",
    "runtime/generate/test_lookup.py",
    "runtime/measure/test_bench.py",
    "runtime/measure/test_evaluate.py",
    "runtime/measure/test_footprint.py",
    "runtime/measure/test_memory_use.py",
    "runtime/models/test_expert_stacks.py",
    "runtime/models/test_families.py",
    "runtime/models/test_releases.py",
    "runtime/models/test_wrapped.py",
    "runtime/test_against_transformers.py",
    "runtime/test_batch.py",
    "runtime/test_model.py",
    "runtime/text/test_byte_level_files.py",
    "runtime/text/test_hostile_text.py",
    "runtime/weights/test_streaming.py",
    "serve/test_chat_page.py",
    "serve/test_openai.py",
    "test_docs.py",
)
"""Files, and rooms of them, that ``make check-fast`` leaves out: those that take the most processor time, as the marker ``slow``."""

TESTS = Path(__file__).parent

os.environ.setdefault(
    "TRITON_INTERPRET", "1"
)  # kernels are tested on CPU tensors; read when triton is imported
_COMPILED = Path(__file__).parent.parent.glob("int8conv/kernels/cpu/jit_*.py")
_STATE = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_COMPILED))).hexdigest()[:12]
os.environ.setdefault(
    "NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir(), f"int8conv-numba-{_STATE}"))
)  # numba does not see that a function in another file has changed
# a worker per core: more threads would only wait for each other
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if "OMP_NUM_THREADS" in os.environ:
    # numba's threads spin while they wait: on a busy machine a product takes 50 times as long with one too many
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a job in the background ignores it, and so would what it starts


def is_slow(path: Path) -> bool:
    """Whether a test file is one of ``SLOW``, or in a room of it."""
    name = path.relative_to(TESTS).as_posix()
    return any(name == entry or name.startswith(f"{entry}/") for entry in SLOW)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the slow ones, what they import is not needed either."""
    return True if config.option.markexpr == "not slow" and is_slow(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow ones, and begin with them: workers then end at about the same time."""
    for item in items:
        if is_slow(item.path):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def example() -> Path:
    """The real trained checkpoint of the repository."""
    return Path(__file__).parent.parent / "examples" / "small-llama"


@pytest.fixture(scope="session")
def example_int8(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint converted with calibrated outlier columns; not to be changed."""
    out = tmp_path_factory.mktemp("example") / "int8"
    convert_checkpoint(example, out)
    return out


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small random Llama checkpoint, F16, in one file; to be changed at will."""
    return write_checkpoint(tmp_path / "source")


@pytest.fixture
def with_bos(example: Path, tmp_path: Path) -> Path:
    """The example, with a tokenizer that puts a token before and one after each prompt."""
    copy = Path(shutil.copytree(example, tmp_path / "with_bos"))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    token = tokenizer["added_tokens"][0]
    special = {"SpecialToken": {"id": token["content"], "type_id": 0}}
    processor = tokenizer["post_processor"]
    processor["single"] = [special, *processor["single"], special]
    processor["special_tokens"] = {
        token["content"]: {
            "id": token["content"],
            "ids": [token["id"]],
            "tokens": [token["content"]],
        }
    }
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    return copy


@pytest.fixture
def converted(example_int8: Path, tmp_path: Path) -> Path:
    """A copy of the converted example; to be changed at will."""
    return Path(shutil.copytree(example_int8, tmp_path / "converted"))
