"""A generation as an iterator: the same text, ended early without a trace, one at a time for a session."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import int8conv
from int8conv.errors import ArgumentError, GenerationError
from int8conv.runtime.generate.session import Session
from int8conv.runtime.model import Model

PROMPT = "A vector is"


@pytest.fixture(scope="module")
def model(example: Path) -> Model:
    return int8conv.load(example)


def test_pieces_are_the_text(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=12, logprobs=True)
    stream = model.stream(PROMPT, max_new_tokens=12, logprobs=True)
    pieces = list(stream)
    assert "".join(pieces) == expected.text
    assert len(pieces) > 5
    assert stream.result == expected
    assert list(stream) == []
    assert expected.prompt_tokens == len(model.tokenizer.encode(PROMPT))


def test_arguments_are_checked_before_it_returns(model: Model) -> None:
    with pytest.raises(ArgumentError):
        model.stream(PROMPT, temperature=-1)
    with pytest.raises(GenerationError, match="do not fit the context"):
        model.stream(PROMPT, max_new_tokens=5000)


def test_one_that_is_closed_leaves_the_session_usable(model: Model) -> None:
    session = Session(model.decoder)
    with model.stream(PROMPT, max_new_tokens=30, session=session) as stream:
        first = next(stream)
        with pytest.raises(GenerationError, match="the session is in use"):
            model.generate(PROMPT, max_new_tokens=1, session=session)
    stream.close()  # twice is once
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text.startswith(first)
    assert next(stream, None) is None
    ids = model.tokenizer.encode(PROMPT)
    assert session.token_ids[: len(ids)] == ids
    again = model.generate(PROMPT, max_new_tokens=12, session=session)
    assert again == model.generate(PROMPT, max_new_tokens=12)


def test_a_session_in_two_threads_is_refused_to_the_second(model: Model) -> None:
    session, ids = Session(model.decoder), model.tokenizer.encode(PROMPT)
    expected = model.generate(PROMPT, max_new_tokens=6)
    with ThreadPoolExecutor(2) as threads:
        begun, tried = threading.Event(), threading.Event()

        def wait(_text: str) -> None:
            begun.set()
            tried.wait(60)

        first = threads.submit(model.generate, PROMPT, max_new_tokens=6, session=session, on_text=wait)  # fmt: skip
        assert begun.wait(60)
        second = threads.submit(model.generate, [5, 6], max_new_tokens=2, session=session)
        with pytest.raises(GenerationError, match="a session for each thread"):
            second.result(60)
        tried.set()
        assert first.result(60) == expected
    assert session.token_ids[: len(ids)] == ids


def test_one_that_nobody_reads_on_gives_the_session_back(model: Model) -> None:
    session = Session(model.decoder)
    stream = model.stream(PROMPT, max_new_tokens=30, session=session)
    next(stream)
    del stream
    assert len(model.generate(PROMPT, max_new_tokens=2, session=session).token_ids) == 2
