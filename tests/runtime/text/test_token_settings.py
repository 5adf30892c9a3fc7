"""Which of a folder's files counts, and what of it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from int8conv.errors import JsonFileError
from int8conv.runtime.text.token_settings import AddedSpec, read_token_settings

from .layouts import special, write_json


def test_the_map_counts_unless_the_config_lists_tokens(tmp_path: Path) -> None:
    write_json(
        tmp_path, tokenizer_config={"eos_token": "new", "unk_token": special("<unk>", lstrip=True)},
        special_tokens_map={"eos_token": "old", "bos_token": "<s>"}, added_tokens={"old": 5, "more": 6},
        config={"model_type": "opt", "tokenizer_class": "GPT2TokenizerFast"},
    )  # fmt: skip
    found = read_token_settings(tmp_path)
    assert found.texts == {"eos_token": "old", "unk_token": "<unk>", "bos_token": "<s>"}
    assert found.named["unk_token"] == AddedSpec("<unk>", lstrip=True, normalized=False)
    assert found.added == {5: AddedSpec("old", normalized=False), 6: AddedSpec("more", normalized=True, special=False)}  # fmt: skip
    assert (found.kind, found.model_type) == ("GPT2Tokenizer", "opt")
    listed = {"7": {"content": "new"}, "8": {"content": "x"}}
    write_json(tmp_path, tokenizer_config={"eos_token": "new", "added_tokens_decoder": listed})
    found = read_token_settings(tmp_path)
    assert found.texts == {"eos_token": "new"}
    assert found.added == {7: AddedSpec("new"), 8: AddedSpec("x", special=False)}


def test_special_tokens_without_a_place_of_their_own(tmp_path: Path) -> None:
    write_json(tmp_path, tokenizer_config={"additional_special_tokens": ["<a>", {"content": "<b>"}]})  # fmt: skip
    assert [spec.content for spec in read_token_settings(tmp_path).extra] == ["<a>", "<b>"]
    write_json(tmp_path, tokenizer_config={"extra_special_tokens": {"image_token": "<i>"}})
    found = read_token_settings(tmp_path)
    assert (found.texts, found.extra) == ({"image_token": "<i>"}, ())
    assert read_token_settings(tmp_path / "nowhere").texts == {}


@pytest.mark.parametrize(
    "value",
    [{"added_tokens_decoder": [1]}, {"added_tokens_decoder": {"x": {"content": "a"}}}, {"added_tokens_decoder": {"1": "a"}}, {"extra_special_tokens": "a"}],
)  # fmt: skip
def test_malformed_ones_are_named(value: object, tmp_path: Path) -> None:
    write_json(tmp_path, tokenizer_config=value)
    with pytest.raises(JsonFileError, match=r"tokenizer_config.json: key '\w+': expected"):
        read_token_settings(tmp_path)
    write_json(tmp_path, tokenizer_config={}, added_tokens={"a": "b"})
    with pytest.raises(JsonFileError, match=r"added_tokens.json: key 'its values': expected ids"):
        read_token_settings(tmp_path)
