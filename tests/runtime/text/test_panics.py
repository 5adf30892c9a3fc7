"""What other threads write to stderr during a call is kept; what a panic writes is not."""

from __future__ import annotations

import os

import pytest

from int8conv.errors import TokenizerError
from int8conv.runtime.text.panics import unbroken


def test_lines_of_other_threads_come_later(capfd: pytest.CaptureFixture[str]) -> None:
    with unbroken(None):
        with unbroken(None):
            os.write(2, b"one\n")
        assert capfd.readouterr().err == ""
        os.write(2, b"two\n")
    assert capfd.readouterr().err == "one\ntwo\n"
    with unbroken(None):
        os.write(2, b"three\n")
    assert capfd.readouterr().err == "three\n"


def test_lines_of_a_panic_do_not(capfd: pytest.CaptureFixture[str]) -> None:
    class Panic(BaseException):
        pass

    with pytest.raises(TokenizerError, match="it fails: gone"), unbroken(None, "it fails"):
        os.write(2, b"thread panicked\n")
        raise Panic("gone")
    with pytest.raises(KeyboardInterrupt), unbroken(None):
        raise KeyboardInterrupt
    os.write(2, b"stderr is back\n")
    assert capfd.readouterr().err == "stderr is back\n"
