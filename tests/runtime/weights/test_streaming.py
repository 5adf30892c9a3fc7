"""Blocks streamed one by one compute what transformers computes at every block's input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.expert_stacks import take_apart
from int8conv.runtime.weights.streaming import BlockStream
from int8conv.runtime.weights.weights import CheckpointWeights

from ..models.test_families import CONFIGS as FAMILY_CONFIGS
from ..models.test_families import config_of
from ..reference import TOLERANCE, reference
from ..test_against_transformers import CONFIGS


@pytest.mark.parametrize("name", [*CONFIGS, *FAMILY_CONFIGS])
@torch.inference_mode()
def test_hidden_states(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name] if name in CONFIGS else config_of(name)
    model = reference(config, tmp_path, torch.float32)
    checkpoint = take_apart(open_checkpoint(tmp_path))
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    generator = torch.Generator().manual_seed(1)
    windows = [torch.randint(101, (length,), generator=generator) for length in (40, 40, 17)]
    stream = BlockStream(architecture, CheckpointWeights(checkpoint, torch.float32), windows)
    found = [list(stream.hidden)]
    for layer in range(architecture.config.num_layers):
        stream.advance(layer)
        found.append(list(stream.hidden))
    output = stream.output()
    for number, window in enumerate(windows):
        expected = model(window[None], output_hidden_states=True)
        # transformers' last hidden state has the final norm on it, where there is one
        for layer, states in enumerate(expected.hidden_states[:-1]):
            scale = max(1, float(states.abs().max()))  # 70 in one family
            assert (found[layer][number] - states).abs().max() <= TOLERANCE * scale
        assert (output(found[-1][number]) - expected.logits).abs().max() <= TOLERANCE
