"""An int8 linear in vLLM: its tensors, their part on each rank of tensor parallelism, and the product by int8conv's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    RowParallelLinear,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.parameter import (
    BasevLLMParameter,
    ChannelQuantScaleParameter,
    ModelWeightParameter,
)

from ..formats.int8.section import Group
from ..kernels.dispatch import Mode
from ..kernels.torch_operator import mixed_linear_op
from ..runtime.weights.mapping import TORCH_DTYPES
from .columns import aligned, own_columns


@register_weight_loader_v2_supported_method
class Int8convLinearMethod(LinearMethodBase):
    """The tensors of SPEC.md section 1 under their names; rows are split in column-parallel layers, input channels in row-parallel ones.

    Args:
        group: the input that the layer reads.
        mode: how activations are treated; None: by the number of tokens.
    """

    def __init__(self, group: Group, mode: Mode | None) -> None:
        self.group = group
        self.mode: Mode | None = mode

    # what vLLM has beside the sizes
    def create_weights(
        self, layer: torch.nn.Module, input_size_per_partition: int, output_partition_sizes: Sequence[int],
        input_size: int, output_size: int, params_dtype: torch.dtype, **extra: Callable[..., object],
    ) -> None:  # fmt: skip
        """Register empty parameters: ``[out, in, 1]`` as in the file, so that a loader's checks of shapes hold."""
        loader, rows = extra["weight_loader"], sum(output_partition_sizes)
        codes = torch.zeros(rows, input_size_per_partition, 1, dtype=torch.int8)
        weight = ModelWeightParameter(data=codes, input_dim=1, output_dim=0, weight_loader=loader)
        layer.register_parameter("weight", weight)
        self._by_rows(layer, "weight_scale", torch.zeros(rows), loader)
        count = self.group.outliers
        if not count:
            return
        # the same for all shards of a fused layer
        index = BasevLLMParameter(data=torch.zeros(count, dtype=torch.int32), weight_loader=loader)
        layer.register_parameter("outlier_index", index)
        # all columns on each rank, until those of the other ranks' channels are dropped
        columns = torch.zeros(rows, count, dtype=TORCH_DTYPES[self.group.dtype or "F16"])
        self._by_rows(layer, "outlier_weight", columns, loader)

    @staticmethod
    def _by_rows(layer: torch.nn.Module, name: str, data: Tensor, loader: object) -> None:
        made = ChannelQuantScaleParameter(data=data, output_dim=0, weight_loader=loader)
        layer.register_parameter(name, made)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Keep the outlier columns among this rank's input channels, and plain parameters."""
        names = ("weight", "weight_scale", "outlier_index", "outlier_weight")
        kept: dict[str, Tensor | None] = {name: getattr(layer, name, None) for name in names}
        index, columns = kept["outlier_index"], kept["outlier_weight"]
        if index is not None and columns is not None:
            index, columns = index.data, columns.data
            if isinstance(layer, RowParallelLinear) and layer.tp_size > 1:
                size = layer.input_size_per_partition
                index, columns = own_columns(index, columns, layer.tp_rank * size, size)
            if columns.is_cuda:
                index, columns = aligned(index, columns)
            kept |= {"outlier_index": index, "outlier_weight": columns}
        for name, tensor in kept.items():
            plain = None
            if tensor is not None and tensor.numel():
                plain = torch.nn.Parameter(tensor.data, requires_grad=False)
            layer.register_parameter(name, plain)

    def apply(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """float ``[tokens, in]`` -> ``[tokens, out]`` of this rank, in the same dtype."""
        y: Tensor = mixed_linear_op(
            x, layer.weight, layer.weight_scale, layer.outlier_index, layer.outlier_weight, bias, self.group.threshold, self.mode,
        )  # fmt: skip
        return y
