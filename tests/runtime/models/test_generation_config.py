"""What generation_config.json says where the user says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import int8conv
from int8conv.errors import JsonFileError
from int8conv.runtime.models.generation_config import GenerationDefaults, read_generation_defaults


def read(folder: Path, config: dict[str, Any] | None = None, /, **values: Any) -> GenerationDefaults:  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(values))
    return read_generation_defaults(folder, config or {})


def test_no_file(tmp_path: Path) -> None:
    config = {"eos_token_id": [2, 5]}
    assert read_generation_defaults(tmp_path, config) == GenerationDefaults(frozenset({2, 5}))


def test_an_empty_file_is_greedy(tmp_path: Path) -> None:
    assert read(tmp_path) == GenerationDefaults()


def test_drawing_as_the_file_says(tmp_path: Path) -> None:
    values = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1}  # fmt: skip
    more = {"max_new_tokens": 7, "stop_strings": ["\n\n"], "eos_token_id": [3, 4]}
    defaults = read(tmp_path, do_sample=True, **values, **more)
    assert defaults == GenerationDefaults(
        frozenset({3, 4}), **values, max_new_tokens=7, stop=("\n\n",)
    )
    assert type(defaults.top_k) is int


@pytest.mark.parametrize("do_sample", [{"do_sample": False}, {}, {"do_sample": None}])
def test_not_drawing_is_greedy(tmp_path: Path, do_sample: dict[str, Any]) -> None:
    defaults = read(tmp_path, **do_sample, temperature=0.6, top_p=0.9)
    assert (defaults.temperature, defaults.top_p) == (0.0, 0.9)


def test_drawing_without_a_temperature(tmp_path: Path) -> None:
    assert read(tmp_path, do_sample=True, temperature=None).temperature == 1.0


def test_end_tokens_of_the_file_go_first(tmp_path: Path) -> None:
    assert read(tmp_path, {"eos_token_id": 2}, eos_token_id=9).end_tokens == {9}
    assert read(tmp_path, {"eos_token_id": 2}).end_tokens == {2}
    assert read(tmp_path, eos_token_id=None).end_tokens == frozenset()


def test_what_is_not_followed_is_named(tmp_path: Path) -> None:
    neutral = {"num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": []}
    assert read(tmp_path, **neutral, guidance_scale=None).unsupported == ()
    assert read(tmp_path, num_beams=4, typical_p=0.9).unsupported == ("num_beams=4", "typical_p=0.9")  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_sample", "yes"), ("repetition_penalty", 0), ("repetition_penalty", 10**400), ("max_new_tokens", 0),
        ("max_new_tokens", [8]), ("stop_strings", 3), ("stop_strings", [""]), ("stop_strings", {"a": 1}),
    ],
)  # fmt: skip
def test_values_that_cannot_be(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(JsonFileError, match=f"generation_config.json: key '{key}': expected"):
        read(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "hot"), ("temperature", -1), ("temperature", True), ("temperature", 10**400), ("top_k", 2.5),
        ("top_k", -2), ("top_k", [3]), ("top_p", 0), ("top_p", 1.5), ("top_p", "0.9"), ("min_p", 2),
    ],
)  # fmt: skip
def test_drawing_values_that_cannot_be_are_read_when_drawing_only(
    tmp_path: Path, key: str, value: Any
) -> None:
    assert read(tmp_path, do_sample=False, **{key: value}) == GenerationDefaults()
    drawn = read(tmp_path, do_sample=True, **{key: value})
    assert drawn == GenerationDefaults(temperature=1.0, unsupported=(f"{key}={value!r}",))


def test_other_programs_way_of_saying_off(tmp_path: Path) -> None:
    assert read(tmp_path, do_sample=True, top_k=-1) == GenerationDefaults(temperature=1.0)


def test_a_model_follows_it_and_the_user_goes_first(converted: Path) -> None:
    path = converted / "generation_config.json"
    greedy = int8conv.load(converted).generate("The function", max_new_tokens=9)
    path.write_text(json.dumps({"do_sample": True, "temperature": 5.0, "max_new_tokens": 9}))
    model = int8conv.load(converted)
    drawn = model.generate("The function", seed=1)
    assert len(drawn.token_ids) == 9
    assert drawn == model.generate("The function", seed=1, temperature=5.0)
    assert drawn.token_ids != greedy.token_ids
    assert model.generate("The function", temperature=0.0) == greedy
    assert model.generate("The function", top_k=1) == greedy
    path.write_text(json.dumps({"stop_strings": greedy.text[5:8], "max_new_tokens": 9}))
    model = int8conv.load(converted)
    assert model.generate("The function").text == greedy.text[:5]
    assert model.generate("The function", stop=[]) == greedy
