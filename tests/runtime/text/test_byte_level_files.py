"""``vocab.json`` and ``merges.txt``: tokens are those of transformers, class by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from int8conv.errors import TokenizerError
from int8conv.runtime.text.tokenizer import Tokenizer

from .layouts import TEXTS, special, write_json, write_pair


def settings(layout: str, free: int) -> dict[str, Any]:
    """The JSON files beside the two."""
    chat = {str(free): special("<|im_start|>"), str(free + 1): special("<|user|>", special=False, normalized=True)}  # fmt: skip
    return {
        "GPT-2": {"config": {"model_type": "gpt2"}, "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}},
        "a prefix, by the model's type": {"config": {"model_type": "gpt_neo"}, "tokenizer_config": {"add_prefix_space": True}},
        "OPT": {
            "config": {"model_type": "opt"},
            "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": special("<|im_start|>"), "pad_token": "<pad>"},
            "special_tokens_map": {"bos_token": special("</s>", lstrip=True), "unk_token": "</s>"},
        },
        "CodeGen": {"config": {"model_type": "codegen"}, "tokenizer_config": {"tokenizer_class": "CodeGenTokenizer"}, "added_tokens": {"<|im_start|>": free, "  ": free + 1}},
        "GPT-NeoX": {"config": {"model_type": "gpt_neox"}, "tokenizer_config": {"tokenizer_class": "GPTNeoXTokenizer", "add_bos_token": True, "add_eos_token": True, "extra_special_tokens": ["<|im_start|>"]}},
        "Qwen 2": {"config": {"model_type": "qwen2"}, "tokenizer_config": {"tokenizer_class": "Qwen2TokenizerFast", "added_tokens_decoder": chat, "bos_token": None}, "special_tokens_map": {"eos_token": "not read"}},
        "Qwen 3, by the model's type": {"config": {"model_type": "qwen3"}, "tokenizer_config": {"additional_special_tokens": ["<|im_start|>"]}},
        "tokens with names of their own": {"config": {"model_type": "qwen2"}, "tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"image_token": "<|im_start|>"}}},
    }[layout]  # fmt: skip


LAYOUTS = (
    "GPT-2", "a prefix, by the model's type", "OPT", "CodeGen", "GPT-NeoX", "Qwen 2", "Qwen 3, by the model's type",
    "tokens with names of their own",
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_those_of_transformers(layout: str, example: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    free = write_pair(example, tmp_path)
    write_json(tmp_path, **settings(layout, free))
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        bare = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, special=False) == bare
        assert ours.decode(bare) == theirs.decode(bare, skip_special_tokens=True, clean_up_tokenization_spaces=False)  # fmt: skip


def test_a_prompt_of_chat_tokens_is_not_split(example: Path, tmp_path: Path) -> None:
    free = write_pair(example, tmp_path)
    write_json(tmp_path, **settings("Qwen 2", free))
    ours = Tokenizer.load(tmp_path)
    assert ours.encode("<|im_start|><|user|>") == [free, free + 1]
    assert ours.visible(free) is None
    assert ours.visible(free + 1) == "<|user|>"


def test_an_added_token_has_the_id_that_its_file_gives(example: Path, tmp_path: Path) -> None:
    """The model has learnt it there, whatever ids lie between."""
    free = write_pair(example, tmp_path)
    write_json(tmp_path, tokenizer_config={"added_tokens_decoder": {str(free + 7): special("<|im_start|>")}})  # fmt: skip
    assert Tokenizer.load(tmp_path).encode("<|im_start|>") == [free + 7]
    write_json(tmp_path, tokenizer_config={"added_tokens_decoder": {str(free): special("a")}})
    with pytest.raises(TokenizerError, match=rf"token 'a': expected id \d+, as in vocab.json, found id {free} in"):  # fmt: skip
        Tokenizer.load(tmp_path)
