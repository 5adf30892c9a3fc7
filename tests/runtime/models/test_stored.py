"""What tensor names say of prefix and head."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from int8conv.errors import WrappedNamesError
from int8conv.runtime.models.architecture import read_architecture

from ...checkpoints import LLAMA, OPT, random_tensors

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


def test_the_base_models_prefix_may_be_absent() -> None:
    stripped = [name.removeprefix("model.") for name in NAMES]
    outside = read_architecture(LLAMA, stripped).outside()
    assert (outside["embed"].path, outside["head"].path) == ("embed_tokens", "lm_head")


def test_heads() -> None:
    """Tied as the config says, or stored in its place alone; untied because it is there; none."""
    tied = {**LLAMA, "tie_word_embeddings": True}
    headless = [name for name in NAMES if name != "lm_head.weight"]
    assert read_architecture(tied, headless).head().path == "model.embed_tokens"
    swapped = [name for name in NAMES if "embed" not in name]
    assert read_architecture(tied, swapped).head().path == "lm_head"
    assert read_architecture(tied, NAMES).untied
    assert "head" not in read_architecture(LLAMA, headless).outside()
    assert read_architecture(OPT, ()).config.tied
