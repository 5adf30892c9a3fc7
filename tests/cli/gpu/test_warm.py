"""``int8conv warm``: which GPU, and what is printed; what is compiled is in tests/runtime/backends/gpu/test_warm.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from int8conv.runtime.backends.gpu import warm as warming
from int8conv.runtime.backends.gpu.warm import Warmed
from int8conv.runtime.devices import Target

from ..helpers import check_refused, run, succeed

WARMED = Warmed(90, 37, 30, 61.25, 100.5, "/cache")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been compiled."""
    asked: list[Any] = []

    def warm(path: str, target: Target, *, progress: object, **options: Any) -> Warmed:
        asked.append((path, target, options))
        return WARMED

    monkeypatch.setattr(warming, "warm", warm)
    return asked


def test_for_a_gpu_that_is_elsewhere(asked: list[Any]) -> None:
    shown = succeed("warm", "some", "--capability", "9.0", "--batch", "1", "--batch", "8", "--kv-cache", "int8", "--jobs", "3")  # fmt: skip
    assert shown.stdout == "37 kernels for compute capability 9.0: 30 compiled, 7 were in the cache, in 61.2 s; /cache\n"  # fmt: skip
    assert asked == [("some", Target(90, None), {
        "batches": (1, 8), "mode": None, "dtype": None, "kv_cache": "int8", "outlier_fallback": True, "jobs": 3,
    })]  # fmt: skip
    shown = succeed("warm", "some", "--capability", "10.3", "--json")
    assert json.loads(shown.stdout) == vars(WARMED)
    assert asked[1][1] == Target(103, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["device: expected a capability to compile for", "found cuda"]),
        (["--device", "cpu"], ["device: expected cuda or cuda:N, found cpu"]),
        (["--capability", "7.5"], ["capability: expected 8.0 (Ampere) or newer, found 7.5"]),
        (["--capability", "9.0"], ["nowhere: no such folder"]),
    ],
    ids=str,
)
def test_what_cannot_be(options: list[str], words: list[str], tmp_path: Path) -> None:
    check_refused(run("warm", tmp_path / "nowhere", *options), *words)


@pytest.mark.parametrize("text", ["9", "90", "9.00", "sm_90", "-9.0", "9.x"])
def test_a_capability_is_two_numbers(text: str) -> None:
    result = run("warm", "some", f"--capability={text}")
    assert result.exit_code == 2
    assert "is not a compute capability such as 9.0" in result.stderr


def test_one_gpu_at_a_time() -> None:
    result = run("warm", "some", "--capability", "9.0", "--device", "cuda")
    assert result.exit_code == 2
    assert "give --device or --capability, not both" in result.stderr
