"""Activations of a transformers model by the operators of the runtime, where they are the same function."""

from __future__ import annotations

from torch import nn
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.modeling_utils import PreTrainedModel


def use_operators(model: PreTrainedModel) -> None:
    """Replace the tanh form of GELU that is written out, GPT-2's, by PyTorch's operator.

    The last bits differ, and activations that are then rounded to 8 or 16 bits may get the next code.
    """
    for name, module in list(model.named_modules()):
        if type(module) is NewGELUActivation:
            operator: nn.Module = ACT2FN["gelu_pytorch_tanh"]
            model.set_submodule(name, operator.train(module.training))
