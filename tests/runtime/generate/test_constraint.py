"""Text in a given form, by the real library: whatever a model would rather say, and whichever tokens are drawn."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import int8conv
from int8conv.errors import ArgumentError
from int8conv.runtime.generate.constraint import Constraint
from int8conv.runtime.model import Model

pytest.importorskip("llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"enum": ["list", "map"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "nested": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "sizes", "nested"], "additionalProperties": False,
}  # fmt: skip
GRAMMAR = 'start: item ("," item)*\nitem: "a" | "b" "!"\n'


@pytest.fixture(scope="module")
def model(example_int8: Path) -> Model:
    return int8conv.load(example_int8, mode="w8a16")


@pytest.mark.parametrize("seed", range(4))
def test_json_follows_its_schema(model: Model, seed: int) -> None:
    found = model.generate(
        "A list", constraint=Constraint.json_schema(SCHEMA), temperature=2.0, seed=seed, max_new_tokens=120,
    )  # fmt: skip
    assert found.finish_reason == "stop"
    value = json.loads(found.text)
    assert list(value) == ["name", "sizes", "nested"]
    assert value["name"] in ("list", "map")
    assert len(value["sizes"]) <= 3
    assert all(type(n) is int and 0 <= n <= 99 for n in value["sizes"])
    assert value["nested"] in (None, True, False)
    assert "\n" not in found.text


def test_a_regular_expression_and_a_grammar(model: Model) -> None:
    drawn: dict[str, Any] = {"temperature": 3.0, "max_new_tokens": 200}
    forms = {Constraint.regex("[0-9]{3}-(é|😀)[x-z]+;"): r"\d{3}-(é|😀)[xyz]+;", Constraint.grammar(GRAMMAR): r"(a|b!)(,(a|b!))*"}  # fmt: skip
    for form, pattern in forms.items():
        texts = {model.generate("A", constraint=form, seed=s, **drawn).text for s in range(3)}
        assert all(re.fullmatch(pattern, text) for text in texts), texts
        assert len(texts) > 1


def test_what_a_form_allows_keeps_its_probability(model: Model) -> None:
    """A form that the model's own text has changes nothing; log-probabilities are the model's own."""
    plain = model.generate("A vector is", max_new_tokens=6, logprobs=True)
    form = Constraint.regex(re.escape(plain.text).replace("\\ ", " ") + "(?s:.*)")
    held = model.generate("A vector is", constraint=form, max_new_tokens=6, logprobs=True)  # fmt: skip
    assert (held.token_ids, held.logprobs) == (plain.token_ids, plain.logprobs)


def test_each_text_of_a_batch_is_held_by_itself(model: Model) -> None:
    seen: list[int] = []

    def processor(ids: Any, logits: torch.Tensor) -> torch.Tensor:
        seen.append(len(ids))
        return logits

    found = model.generate_batch(
        ["A", "A much longer prompt"], n=2, constraint=Constraint.regex("[ab]{2}|[cd]{9}"), logits_processor=processor,
        temperature=5.0, seed=1, max_new_tokens=20,
    )  # fmt: skip
    assert all(re.fullmatch("[ab]{2}|[cd]{9}", each.text) for each in found)
    assert seen  # the caller's own comes first


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda: Constraint.json_schema("{"), "JSON schema: expected an object in JSON"),
        (lambda: Constraint.json_schema("[1]"), "found list"),
        (lambda: Constraint.json_schema({"type": "nothing"}), "JSON schema cannot be used"),
        (lambda: Constraint.regex("(?=a)b["), "regex cannot be used"),
        (lambda: Constraint.grammar("no rule"), "grammar cannot be used"),
        (lambda: "[0-9]", "constraint: expected a Constraint"),
    ],
)  # fmt: skip
def test_forms_that_are_none(model: Model, form: Any, words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        model.generate("A", constraint=form())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    endless = int8conv.load(converted)
    endless.end_tokens = frozenset()
    with pytest.raises(ArgumentError, match="a model with an end token, found none"):
        endless.generate("A", constraint=Constraint.regex("a"))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ArgumentError, match=r"pip install 'int8conv\[structured\]'"):
        endless.generate("A", constraint=Constraint.regex("a"))
