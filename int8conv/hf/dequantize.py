"""Dequantizing while transformers loads, for modules that are not linears there: embeddings and fused experts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.modeling_utils import PreTrainedModel

from ..errors import UnsupportedFeatureError
from ..formats.int8.names import OUTLIER_INDEX, OUTLIER_WEIGHT, SCALE, WEIGHT
from ..kernels.torch_operator import mixed_weight
from ..kernels.weight import dequantized_rows
from .places import Places

KINDS = (WEIGHT, SCALE, OUTLIER_INDEX, OUTLIER_WEIGHT)

Sources = Mapping[str, list[Tensor]]
"""The input of a transformers operation: tensors by name pattern, each in the order of the names."""


class Quantizer(Protocol):
    """The required interface of the quantizer."""

    def outliers_of(self, path: str) -> int:
        """k of a linear in the file."""


class Dequantize(ConversionOps):
    """Int8 weights and their companions -> weights in the dtype of the parameter that they become, in their order."""

    def __init__(self, quantizer: Quantizer, paths: Mapping[tuple[str, str], Sequence[str]]) -> None:  # fmt: skip
        self.hf_quantizer = quantizer
        """Its presence tells transformers not to change the dtypes of tensors that are read."""
        self.paths = paths
        """The linears behind the tensors, by the parameter that they become and the pattern of their names."""

    def __deepcopy__(self, memo: object) -> Dequantize:
        return self  # copied for each parameter, and never changed

    def convert(
        self, input_dict: Sources, full_layer_name: str, model: PreTrainedModel, **others: object
    ) -> dict[str, list[Tensor]]:  # fmt: skip
        """Weights by name pattern."""
        dtype = model.get_parameter_or_buffer(full_layer_name).dtype
        return {
            pattern: self._weights(input_dict, pattern, self.paths[full_layer_name, pattern], dtype)
            for pattern in input_dict
            if not pattern.endswith(KINDS[1:])
        }

    def _weights(
        self, sources: Sources, pattern: str, paths: Sequence[str], dtype: torch.dtype
    ) -> list[Tensor]:
        """Of int8, with or without outlier columns, and of 16 bits among them."""
        stem = pattern.removesuffix(WEIGHT)
        scales, indices, slices = (iter(sources.get(stem + kind, ())) for kind in KINDS[1:])
        quantized = iter(paths)
        weights = []
        for tensor in sources[pattern]:
            if tensor.dtype != torch.int8:
                weights.append(tensor.to(dtype))
                continue
            has_columns = self.hf_quantizer.outliers_of(next(quantized)) > 0
            index, kept = (next(indices), next(slices)) if has_columns else (None, None)
            weight = mixed_weight(tensor, next(scales), index, kept, None)
            weights.append(dequantized_rows(weight, slice(None)).to(dtype))
        return weights


class DequantizeAlone(Dequantize):
    """A matrix or a stack of matrices as a parameter, transposed if the model has ``[experts, in, out]``."""

    def __init__(self, quantizer: Quantizer, paths: Sequence[str]) -> None:
        super().__init__(quantizer, {})
        self.members = paths

    def convert(
        self, input_dict: Sources, full_layer_name: str, model: PreTrainedModel, **others: object
    ) -> dict[str, list[Tensor]]:  # fmt: skip
        parameter = model.get_parameter_or_buffer(full_layer_name)
        (pattern,) = (found for found in input_dict if not found.endswith(KINDS[1:]))
        weights = self._weights(input_dict, pattern, self.members, parameter.dtype)
        if parameter.ndim == 2:
            return {full_layer_name: weights}
        stack = torch.stack(weights)
        owner = model.get_submodule(full_layer_name.rpartition(".")[0])
        transposed = getattr(owner, "is_transposed", None)
        if transposed is None:
            transposed = stack.shape != parameter.shape
            if stack.shape[1] == stack.shape[2]:
                raise UnsupportedFeatureError(
                    "square experts, of which transformers does not say how they lie", tensor=full_layer_name
                )  # fmt: skip
        return {full_layer_name: [stack.transpose(1, 2).contiguous() if transposed else stack]}


def converters(quantizer: Quantizer, places: Places) -> Iterator[WeightConverter]:
    """The converters of matrices and stacks that become parameters directly."""
    for name, path in places.whole.items():
        yield _converter(quantizer, re.escape(name), f"{name}.{WEIGHT}", [path])
    for name, paths in places.stacks.items():
        yield _converter(quantizer, rf"{re.escape(name)}\.\d+", name, paths)


def _converter(
    quantizer: Quantizer, pattern: str, target: str, paths: Sequence[str]
) -> WeightConverter:
    sources = [rf"{pattern}\.{kind}" for kind in KINDS]
    return WeightConverter(sources, target, [DequantizeAlone(quantizer, paths)])


def dequantizing(
    converter: WeightConverter, quantizer: Quantizer, places: Places
) -> WeightConverter:
    """A transformers converter that also reads int8 weights, or the same one if there are none."""
    patterns = {pattern for _, pattern in places.fused}
    if not patterns & set(converter.source_patterns):
        return converter
    sources = [
        source.removesuffix(WEIGHT) + kind for source in converter.source_patterns for kind in KINDS
    ]
    operations = [Dequantize(quantizer, places.fused), *converter.operations]
    return converter.copy(sources, list(converter._original_target_patterns), operations=operations)
