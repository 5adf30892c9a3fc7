"""What names of tensors add to a config: the base model's prefix, and whether there is a head."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import pytest

from int8conv.errors import WrappedNamesError
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.families import FAMILIES
from int8conv.runtime.models.stored import Stored, as_stored

from ...checkpoints import LLAMA, random_tensors

FAMILY = FAMILIES["llama"]
UNTIED = read_architecture(LLAMA, ()).config
TIED = replace(UNTIED, tied=True)
EMBED, HEAD, BASE = "model.embed_tokens.weight", "lm_head.weight", "embed_tokens.weight"


@pytest.mark.parametrize(
    ("tied", "tensors", "untied", "headless"),
    [
        (False, (EMBED, HEAD), False, False),
        (False, (EMBED,), False, True),
        (True, (EMBED,), False, False),
        (True, (EMBED, HEAD), True, False),
    ],
)
def test_heads(tied: bool, tensors: Collection[str], untied: bool, headless: bool) -> None:
    config = TIED if tied else UNTIED
    found = as_stored(FAMILY, config, tensors)
    assert found == Stored(FAMILY, UNTIED if untied else config, untied, headless)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("tensors", [(), ("model.norm.weight",)])
def test_nothing_is_known_without_the_embedding(config: object, tensors: Collection[str]) -> None:
    assert as_stored(FAMILY, config, tensors) == Stored(FAMILY, config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tied", "tensors", "headless"),
    [(False, (BASE,), True), (True, (BASE,), False), (False, (BASE, HEAD), False)],
)
def test_names_of_the_base_model_have_no_prefix(
    tied: bool, tensors: Collection[str], headless: bool
) -> None:
    """Of any module; the head never had it."""
    found = as_stored(FAMILY, TIED if tied else UNTIED, tensors)
    assert (found.untied, found.headless) == (False, headless)
    assert found.family.names["embed"] == "embed_tokens"
    assert found.family.names["q"] == "layers.{}.self_attn.q_proj"
    assert found.family.names["head"] == "lm_head"
    assert replace(found.family, names=FAMILY.names) == FAMILY


def test_a_base_model_with_another_head_beside_its_tied_embedding() -> None:
    found = as_stored(FAMILY, TIED, (BASE, HEAD))
    assert (found.untied, found.config.tied) == (True, False)
    assert found.family.names["embed"] == "embed_tokens"


def test_the_full_name_goes_before_the_short_one() -> None:
    assert as_stored(FAMILY, UNTIED, (EMBED, BASE, HEAD)).family is FAMILY


def test_a_tied_model_that_was_stored_by_its_head() -> None:
    found = as_stored(FAMILY, TIED, (HEAD, "model.norm.weight"))
    assert found.family.names["embed"] == found.family.names["head"] == "lm_head"
    assert found.family.names["q"] == FAMILY.names["q"]
    assert (found.config, found.untied, found.headless) == (TIED, False, False)
    assert as_stored(FAMILY, UNTIED, (HEAD,)) == Stored(FAMILY, UNTIED)


NAMES = sorted(random_tensors(LLAMA))


@pytest.mark.parametrize(
    ("rename", "prefix"),
    [
        (lambda name: name.replace("model.", "model.language_model."), "model.language_model."),
        (lambda name: f"language_model.{name}", "language_model.model."),
        (lambda name: name.replace("model.", "transformer."), "transformer."),
    ],
)
def test_another_prefix_is_named(rename: Callable[[str], str], prefix: str) -> None:
    with pytest.raises(WrappedNamesError, match=f"expected 'model.', found '{prefix}'.*rename"):
        read_architecture(LLAMA, [rename(name) for name in NAMES], "here")


def test_an_embedding_of_a_block_is_no_prefix() -> None:
    """That of a further block (DeepSeek's prediction of several tokens), where the model's own is absent."""
    names = [n for n in NAMES if "embed" not in n] + ["model.layers.2.embed_tokens.weight"]
    assert read_architecture(LLAMA, names).outside()["embed"].path == "model.embed_tokens"
