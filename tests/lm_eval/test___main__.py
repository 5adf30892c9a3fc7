"""``python -m int8conv.lm_eval`` where the harness is not installed."""

from __future__ import annotations

import sys

import pytest

from int8conv.lm_eval import __main__


def test_without_the_harness_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit, match=r"^error: .*pip install 'int8conv\[lm-eval\]'$"):
        __main__.main()
