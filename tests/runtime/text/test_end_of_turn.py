"""What ends a reply where no list says: the token behind a reply in the template, and tokens with names that everybody knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel

from int8conv.runtime.text.chat_template import ChatTemplate
from int8conv.runtime.text.end_of_turn import end_of_turn_tokens
from int8conv.runtime.text.tokenizer import Tokenizer

TURNS = "{% for m in messages %}<|start|>{{ m.role }}: {{ m.content }}END\n{% endfor %}"
SPECIAL = ("<|start|>", "<x>", "<|im_end|>", "<|end|>", "<|return|>", "</s>")


def found(end: str, *special: str, names: dict[str, str] | None = None, source: str = TURNS) -> set[str]:  # fmt: skip
    rust = RustTokenizer(WordLevel({"?": 0}, unk_token="?"))
    rust.add_special_tokens([*special])
    rust.add_tokens(["word"])
    template = ChatTemplate(source.replace("END", end), names or {}, Path("t"))
    tokens = end_of_turn_tokens(template, Tokenizer(rust))
    return {rust.id_to_token(token) for token in tokens}


@pytest.mark.parametrize(
    ("end", "special", "expected"),
    [
        ("<x>", ["<x>", "<|start|>"], {"<x>"}),  # of the template only
        (" <x>", ["<x>"], {"<x>"}),  # as Llama 2 has it
        ("", ["<|start|>"], {"<|start|>"}),  # nothing but the next turn ends it: GLM
        ("word", ["<x>"], set()),  # no special token
        ("word", ["<|im_end|>", "<|end|>"], {"<|im_end|>", "<|end|>"}),  # by name
        ("<|end|>", ["<|end|>", "<|return|>"], {"<|return|>"}),  # ends a message, not a turn: gpt-oss
    ],
)  # fmt: skip
def test_tokens(end: str, special: list[str], expected: set[str]) -> None:
    assert found(end, *special) == expected


def test_the_tokenizers_own_counts_too() -> None:
    assert found("", "</s>", names={"eos_token": "</s>"}) == {"</s>"}


def test_a_template_that_refuses_or_hides_a_reply() -> None:
    refusing = "{% if messages[1].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
    assert found("", "<|im_end|>", source=refusing) == {"<|im_end|>"}
    assert found("", "<x>", source="{{ messages[0].content }}<x>") == set()
