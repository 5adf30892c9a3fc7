"""Triton's interpreter without what it repeats for nothing: kernels' tests and rehearsals take less than half the time."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def interpret_quickly() -> None:
    """Interpret as a GPU computes, and no more slowly than that takes."""
    _patch_language_once()
    _check_no_sums()


def _check_no_sums() -> None:
    """Each sum and product of integers is otherwise computed again in 64 bits, a quarter of all time; compiled kernels have no such
    check either, and a wrong index or sum shows in the results."""
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)


@cache
def _patch_language_once() -> None:
    """Have a launch replace the language's functions by the interpreter's, and not each call of a device function again.

    What is replaced already is no builtin any more, so that the second time changes nothing; but finding that out takes a
    millisecond, which is longer than most device functions run.
    """
    if not hasattr(
        interpreter, "_LangPatchScope"
    ):  # another release of Triton; slower, as it comes
        return
    patch = interpreter._patch_lang

    def patch_if_needed(fn: FunctionType) -> Any:
        languages = [value for value in fn.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)]  # fmt: skip
        if languages and not any(tl.core.is_builtin(language.load) for language in languages):
            return interpreter._LangPatchScope()
        return patch(fn)

    interpreter._patch_lang = patch_if_needed
