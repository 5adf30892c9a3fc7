"""Small tokenizers in the layouts that folders have, and texts on which tokenizers differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXTS = (
    "", " ", "  ", "\n", "\r\n\r\n", "\t", "a", " a", "a ", "A list of names", "I'm, you'RE; it's", "don't  stop",
    "12345 6,789.0", "größer naïve", "e\u0301cole \u212b", "日本語、漢字", "🙂🙂👩\u200d👩\u200d👧", "def f(x):\n    return x\n\n\n", "\u00a0nbsp\u3000wide",
    "<|endoftext|>", "x<|im_start|>user\n", "a<|endoftext|> b", "\x00\x7f\ufeff", "...!?---  $$$ ",
)  # fmt: skip


def special(token: str, **flags: bool) -> dict[str, Any]:
    return {
        "content": token, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True,
    } | flags  # fmt: skip


def write_pair(example: Path, folder: Path) -> int:
    """``vocab.json`` and ``merges.txt`` of the example's tokenizer -> the first id that is free."""
    model = json.loads((example / "tokenizer.json").read_text())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return max(model["vocab"].values()) + 1


def write_json(folder: Path, **files: object) -> None:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
