"""Models of transformers that ours are held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from int8conv.formats.int8.folder import open_converted
from int8conv.formats.safetensors.stored import read_array
from int8conv.runtime.generate.generation import Continuation, continue_all
from int8conv.runtime.generate.sampling import Sampling
from int8conv.runtime.model import Model
from int8conv.runtime.models.architecture import Module, read_architecture
from int8conv.runtime.models.families import Family
from int8conv.runtime.text.detokenizer import Detokenizer

TOLERANCE = 1e-4
"""Largest difference of two float32 logits that counts as equal."""


def reference(config: PretrainedConfig, folder: Path, dtype: torch.dtype) -> Any:
    """A random transformers model, saved to ``folder`` in ``dtype`` and held in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for (
        name,
        parameter,
    ) in model.named_parameters():  # its own initialisation leaves biases and norms trivial
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "embed" not in name:
            parameter.data *= 4
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):  # Gemma 4's, which are 1
            buffer.data += 0.1 * torch.randn_like(buffer)
    model.to(dtype).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(reference: Any, token_ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = reference(token_ids).logits
    return logits


def token_by_token(model: Model, token_ids: Tensor, prompt: int) -> Tensor:
    """Logits of a prompt in one pass, a few tokens in a second, and the rest one at a time, through the cache."""
    batch, tokens = token_ids.shape
    cache = model.decoder.cache(batch=batch, capacity=tokens)
    steps = [token_ids[:, :prompt], token_ids[:, prompt : prompt + 3]]
    steps += token_ids[:, prompt + 3 :].split(1, dim=1)
    return torch.cat([model.decoder.forward(step, cache) for step in steps], dim=1)


def put_dequantized_weights(reference: Any, folder: Path) -> None:
    """Replace each quantized linear's weight in a transformers model."""
    parameters = dict(reference.named_parameters())
    for path, linear in open_converted(folder).linears.items():
        weight = torch.from_numpy(read_array(linear.weight).astype("float32")).squeeze(-1)
        weight *= torch.from_numpy(read_array(linear.scale).copy())[:, None]
        if linear.outlier_index is not None and linear.outlier_weight is not None:
            columns = torch.from_numpy(read_array(linear.outlier_index).astype("int64"))
            weight[:, columns] = torch.from_numpy(
                read_array(linear.outlier_weight).astype("float32")
            )
        parameters[f"{path}.weight"].data = weight


def dequantized_reference(source: Path, converted: Path, folder: Path) -> Any:
    """The transformers model of a source whose quantized linears have their dequantized weights, by way of a checkpoint."""
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    architecture = read_architecture(config, tensors)
    modules = {m.path: m for m in architecture.modules}
    for path, linear in open_converted(converted).linears.items():
        weight = torch.from_numpy(read_array(linear.weight).astype("float32")).squeeze(-1)
        weight *= torch.from_numpy(read_array(linear.scale).copy())[:, None]
        if linear.outlier_index is not None and linear.outlier_weight is not None:
            columns = torch.from_numpy(read_array(linear.outlier_index).astype("int64"))
            assert linear.outlier_weight.dtype == "F16"
            weight[:, columns] = torch.from_numpy(
                read_array(linear.outlier_weight).astype("float32")
            )
        stored = weight.t() if modules[path].transposed else weight
        if f"{path}.weight" in tensors:
            tensors[f"{path}.weight"] = stored.contiguous()
        else:
            _put_into_stack(tensors, architecture.family, modules[path], weight)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _put_into_stack(
    tensors: dict[str, Tensor], family: Family, module: Module, weight: Tensor
) -> None:
    """Replace one expert's matrix in the stack of its layer."""
    expert, _, role = module.role.partition(".")
    for path, roles in family.stacks.items():
        name = path.format(module.layer)
        name = name if name in tensors else f"{name}.weight"
        if role in roles and name in tensors:
            tensors[name] = tensors[name].float()
            matrix = tensors[name][int(expert)]
            matrix = matrix.t() if family.transposed_stacks else matrix
            matrix.chunk(len(roles))[roles.index(role)].copy_(weight)
            return
    raise AssertionError(f"no stack for {module.path}")


class NoText(Detokenizer):
    """These checkpoints have no tokenizer."""

    def __init__(self) -> None: ...

    def push(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens behind a prompt, end tokens among them, of a model whose folder has no tokenizer."""
    continuation = Continuation(
        prompt, count, Sampling(), end_tokens=frozenset(), detokenizer=NoText()
    )
    cache = model.decoder.cache(batch=1, capacity=len(prompt) + count)
    continue_all(model.decoder, [continuation], cache)
    return continuation.token_ids
