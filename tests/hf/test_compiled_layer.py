"""Layers as one call: the same logits and text as by their own ``forward``, which answers whatever else is asked."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

import int8conv
from int8conv.hf import set_mode
from int8conv.hf.compiled_layer import CompiledStep, compile_steps, compiled_class, release_steps
from int8conv.kernels.cpu import jit

from .models import load, token_ids

pytestmark = pytest.mark.skipif(not jit.available(), reason="needs numba")
Family = Callable[[str], Path]
COMPILED = ("llama", "phi3", "gemma3_text", "opt")
"""Of ``CONFIGS``; the others have no layers that are called with names, or experts."""


def layers(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, CompiledStep)]


def used(model: PreTrainedModel) -> set[bool | None]:
    return {layer.int8conv_step.is_same for layer in layers(model)}


def steps(model: PreTrainedModel, ids: Tensor, prompt: int, **options: Any) -> Tensor:
    """Logits of single tokens after a prompt, ``[batch, tokens - prompt, vocab]``."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :prompt], past_key_values=cache)
        found = [
            model(ids[:, i : i + 1], past_key_values=cache, **options).logits
            for i in range(prompt, ids.shape[1])
        ]
    return torch.cat(found, dim=1)


@pytest.fixture
def llama(family: Family) -> PreTrainedModel:
    return load(family("llama"))


@pytest.mark.parametrize("name", COMPILED)
def test_the_runtimes_logits(name: str, family: Family) -> None:
    """gemma3_text has windows of 8: beyond them, its own ``forward`` answers."""
    model, ids = load(family(name)), token_ids(2, 14)
    set_mode(model, "w8a16")
    own = int8conv.load(family(name), mode="w8a16").logits(ids)[:, 4:]
    found = steps(model, ids, 4)
    assert used(model) == {True}
    assert len(layers(model)) == 2
    assert (found - own).abs().max() <= 1e-5
    release_steps(model)
    assert not layers(model)
    assert (steps(model, ids, 4) - found).abs().max() <= 1e-5


def test_a_second_generation_and_beams(llama: PreTrainedModel) -> None:
    """Beams reorder the cache; a longer text needs more than the first room."""
    set_mode(llama, "w8a16")
    plain = copy.deepcopy(llama)
    release_steps(plain)
    for options in ({"max_new_tokens": 75}, {"num_beams": 3, "max_new_tokens": 12}):
        texts = [
            model.generate(token_ids(1, 5), do_sample=False, eos_token_id=None, **options).tolist()
            for model in (llama, llama, plain)
        ]
        assert texts[0] == texts[1] == texts[2]
    assert used(llama) == {True}


def test_whoever_looks_inside_sees_everything(llama: PreTrainedModel) -> None:
    ids, seen = token_ids(1, 8), []
    expected = steps(llama, ids, 4)
    handle = layers(llama)[0].mlp.down_proj.register_forward_hook(lambda *_: seen.append(1))
    assert (steps(llama, ids, 4) - expected).abs().max() <= 1e-5
    handle.remove()
    assert len(seen) == 5
    layer = layers(llama)[1]
    layer.mlp.up_proj = nn.Sequential(layer.mlp.up_proj)  # as adapters wrap it
    assert (steps(llama, ids, 4) - expected).abs().max() <= 1e-5
    cache = DynamicCache(config=llama.config)
    with torch.no_grad():
        llama(ids[:, :4], past_key_values=cache)
        found = llama(ids[:, 4:5], past_key_values=cache, output_hidden_states=True)
    assert len(found.hidden_states) == 3
    assert found.hidden_states[1].abs().max() > 0


def test_gradients_and_w8a8_are_the_layers_own(llama: PreTrainedModel) -> None:
    ids = token_ids(1, 6)
    steps(llama, ids, 4)
    calls: list[int] = []
    for layer in layers(llama):
        layer.int8conv_step.run = lambda *_: calls.append(1)
    cache = DynamicCache(config=llama.config)
    llama(ids[:, :5], past_key_values=cache)
    embedded = llama.get_input_embeddings()(ids[:, 5:]).detach().requires_grad_()
    llama(inputs_embeds=embedded, past_key_values=cache).logits.sum().backward()
    assert embedded.grad is not None
    set_mode(llama, "w8a8")
    steps(llama, ids, 4)
    assert not calls


def test_changed_weights_count_at_once(llama: PreTrainedModel) -> None:
    ids = token_ids(1, 8)
    before = steps(llama, ids, 4)
    layer = layers(llama)[0]
    with torch.no_grad():
        layer.input_layernorm.weight.mul_(1.5)
        layer.self_attn.k_proj.bias.add_(0.5)
        layer.mlp.up_proj.weight.data = layer.mlp.up_proj.weight.data.flip(0)
    after = steps(llama, ids, 4)
    assert used(llama) == {True}
    assert (after - before).abs().max() > 1e-2
    release_steps(llama)
    assert (steps(llama, ids, 4) - after).abs().max() <= 1e-5


def test_what_computes_something_else_is_never_used(llama: PreTrainedModel) -> None:
    ids = token_ids(1, 8)
    first, second = (layer.int8conv_step for layer in layers(llama))
    first.parts = replace(first.parts, config=replace(first.parts.config, norm_eps=0.1))
    second.parts = replace(second.parts, config=replace(second.parts.config, attention_scale=3.0))
    found = steps(llama, ids, 4)
    assert used(llama) == {False}
    release_steps(llama)
    assert torch.equal(steps(llama, ids, 4), found)


def test_masks_are_the_layers_own(llama: PreTrainedModel) -> None:
    """A row that is padded on the left, after the compiled layers have been used."""
    set_mode(llama, "w8a16")
    ids = token_ids(2, 9)
    options = {"max_new_tokens": 6, "do_sample": False}
    alone = llama.generate(ids[1:, 4:], **options)[0, 5:].tolist()
    ids[1, :4], mask = 0, torch.ones_like(ids)
    mask[1, :4] = 0
    assert llama.generate(ids, attention_mask=mask, **options)[1, 9:].tolist() == alone
    assert used(llama) == {True}


@pytest.fixture
def copies(llama: PreTrainedModel) -> Iterator[PreTrainedModel]:
    steps(llama, token_ids(1, 6), 4)
    return iter((copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))))


def test_copies_and_pickles(llama: PreTrainedModel, copies: Iterator[PreTrainedModel]) -> None:
    ids = token_ids(1, 8)
    expected = steps(llama, ids, 4)
    for other in copies:
        assert used(other) == {None}  # built anew
        assert (steps(other, ids, 4) - expected).abs().max() <= 1e-5
        assert used(other) == {True}
        assert layers(other)[0].mlp.up_proj is not layers(llama)[0].mlp.up_proj


def test_a_class_is_called_as_before(llama: PreTrainedModel) -> None:
    layer = layers(llama)[0]
    assert type(layer) is compiled_class(layer.original)
    assert type(layer).__name__ == layer.original.__name__ == "LlamaDecoderLayer"
    assert isinstance(layer, layer.original)
    compile_steps(llama)  # a second time changes nothing
    assert type(layer) is compiled_class(layer.original)
    llama.dequantize()
    assert not layers(llama)
