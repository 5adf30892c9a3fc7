"""Texts as windows of token ids, for calibration and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import Int8convError, NotFoundError
from ...formats.safetensors.checksum import checksum
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Text:
    """A text to run a model on."""

    name: str
    """Name for error messages."""
    content: str
    xxh3_128: str


def read_text(path: Path, error: type[Int8convError]) -> Text:
    """Read a UTF-8 text file.

    Raises:
        NotFoundError: it cannot be read.
        error: it is empty or not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise NotFoundError(f"cannot be read: {problem.strerror}", file=path) from problem
    try:
        content = data.decode()
    except UnicodeDecodeError as problem:
        raise error(f"not UTF-8 text at byte {problem.start}", file=path) from problem
    if not content.strip():
        raise error("the text is empty", file=path, hint="use a file that contains text")
    return Text(str(path), content, checksum(data))


def encode(
    tokenizer: Tokenizer, text: Text, vocab_size: int, folder: Path, error: type[Int8convError]
) -> Tensor:
    """Token ids of a text alone, int64 ``[tokens]``; checked to be within the vocabulary."""
    ids = tokenizer.encode(text.content, special=False)
    if not ids or max(ids) >= vocab_size:
        raise error(
            "the tokenizer gives tokens outside the vocabulary", file=folder,
            expected=f"0..{vocab_size - 1}", found=max(ids, default=None),
            hint="the tokenizer does not belong to this config.json",
        )  # fmt: skip
    return torch.tensor(ids)


def leading_tokens(tokenizer: Tokenizer) -> Tensor:
    """Token ids that the tokenizer puts before every prompt, int64 ``[tokens]``: BOS or nothing in most families.

    Each window begins with them: some models have never seen a text without, and attend to the first token above all
    (Xiao et al., Efficient Streaming Language Models with Attention Sinks, section 3.1).
    """
    probe = "a"
    alone, prompt = tokenizer.encode(probe, special=False), tokenizer.encode(probe)
    count = next((i for i in range(len(prompt)) if prompt[i : i + len(alone)] == alone), 0)
    return torch.tensor(prompt[:count], dtype=torch.int64)


def check_context(context: int, max_positions: int, error: type[Int8convError]) -> None:
    """Refuse a window that is too long for the model or too short to predict anything."""
    if not 2 <= context <= max_positions:
        raise error("context does not fit the model", expected=f"2 to {max_positions} tokens",
                    found=context)  # fmt: skip


def too_short(text: Text, tokens: int, context: int, error: type[Int8convError]) -> Int8convError:
    """The error for a text shorter than one window."""
    return error(
        "the text is shorter than a window", file=text.name, expected=f"{context} tokens or more",
        found=tokens, hint="use a longer text or smaller windows",
    )  # fmt: skip


def disjoint_windows(ids: Tensor, context: int, leading: Tensor) -> Sequence[Tensor]:
    """Consecutive full windows of ``context`` tokens, the leading ones among them; a remainder at the end is dropped."""
    size = context - len(leading)
    return windows_at(range(0, len(ids) - size + 1, size), ids, size, leading)


def windows_at(starts: Iterable[int], ids: Tensor, size: int, leading: Tensor) -> list[Tensor]:
    """The leading tokens and ``size`` of the text from each start on."""
    return [torch.cat([leading, ids[start : start + size]]) for start in starts]
