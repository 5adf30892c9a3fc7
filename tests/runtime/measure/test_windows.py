"""Texts read and cut into windows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import xxhash

from int8conv.errors import EvaluationError, NotFoundError
from int8conv.formats.json_file import read_json
from int8conv.runtime.measure.windows import (
    Text,
    check_context,
    disjoint_windows,
    encode,
    leading_tokens,
    read_text,
    too_short,
)
from int8conv.runtime.text.tokenizer import Tokenizer

from ...formats.damage import rejected


def test_a_text_has_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("Größe\r\n".encode())
    text = read_text(path, EvaluationError)
    assert text == Text(str(path), "Größe\r\n", xxhash.xxh3_128_hexdigest("Größe\r\n".encode()))


def test_texts_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    with rejected(NotFoundError, str(path)):
        read_text(path, EvaluationError)
    for data, says in ((b"ab\xff", "byte 2"), (b"", "empty"), (b" \n\t", "empty")):
        path.write_bytes(data)
        with rejected(EvaluationError, str(path), says):
            read_text(path, EvaluationError)


def test_token_ids_within_the_vocabulary(example: Path) -> None:
    tokenizer = Tokenizer.load(example)
    text = Text("text", "The function", "")
    size = read_json(example / "config.json")["vocab_size"]
    ids = encode(tokenizer, text, size, example, EvaluationError)
    assert ids.dtype == torch.int64
    assert ids.tolist() == tokenizer.encode("The function")
    largest = int(ids.max())
    assert encode(tokenizer, text, largest + 1, example, EvaluationError).tolist() == ids.tolist()
    with rejected(EvaluationError, str(example), f"0..{largest - 1}", str(largest)):
        encode(tokenizer, text, largest, example, EvaluationError)


def test_a_window_predicts_a_token_and_fits_the_model() -> None:
    for context in (2, 64):
        check_context(context, 64, EvaluationError)
    for context in (1, 65, 0, -1):
        with rejected(EvaluationError, "2 to 64 tokens", str(context)):
            check_context(context, 64, EvaluationError)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(9, [[0, 1, 2, 3], [4, 5, 6, 7]]), (8, [[0, 1, 2, 3], [4, 5, 6, 7]]), (4, [[0, 1, 2, 3]]), (3, [])],
)  # fmt: skip
def test_whole_windows_one_after_the_other(tokens: int, expected: list[list[int]]) -> None:
    nothing = torch.tensor([], dtype=torch.int64)
    assert [w.tolist() for w in disjoint_windows(torch.arange(tokens), 4, nothing)] == expected


def test_each_window_begins_as_a_prompt_does() -> None:
    leading = torch.tensor([9])
    found = [w.tolist() for w in disjoint_windows(torch.arange(8), 4, leading)]
    assert found == [[9, 0, 1, 2], [9, 3, 4, 5]]


def test_what_a_tokenizer_puts_before_prompts(example: Path, with_bos: Path) -> None:
    """And not what it puts after them."""
    assert leading_tokens(Tokenizer.load(example)).tolist() == []
    tokenizer = Tokenizer.load(with_bos)
    bos, eos = tokenizer.encode("")
    assert leading_tokens(tokenizer).tolist() == [bos]
    ids = encode(tokenizer, Text("text", "The function", ""), 10**6, with_bos, EvaluationError)
    assert tokenizer.encode("The function") == [bos, *ids.tolist(), eos]


def test_a_text_that_is_too_short_is_named() -> None:
    error = too_short(Text("a.txt", "x", ""), 5, 64, EvaluationError)
    assert isinstance(error, EvaluationError)
    assert "a.txt" in str(error)
    assert "64 tokens or more" in str(error)
    assert "5" in str(error)
