"""Int8 experts in vLLM, which keeps those of a layer in one module: their tensors, their part on each rank, and their products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.utils import set_weight_attrs

from ..errors import UnsupportedFeatureError
from ..formats.int8.names import OUTLIER_INDEX, OUTLIER_WEIGHT, SCALE, WEIGHT
from ..formats.int8.section import Group
from ..kernels.dispatch import Mode
from ..runtime.weights.mapping import TORCH_DTYPES
from .columns import aligned, own_columns
from .expert_products import NO_THRESHOLD, knows, mixed_experts

_WIDE, _DOWN = "w13", "w2"
"""vLLM's names of the linears before and after the activation."""
_KINDS: Final = (WEIGHT, SCALE, OUTLIER_INDEX, OUTLIER_WEIGHT)
_NAMES: Final = {"gate_proj": "w1", "w1": "w1", "up_proj": "w3", "w3": "w3", "down_proj": "w2", "w2": "w2"}  # fmt: skip
"""What an expert's linears are called in files -> vLLM's names of its parts."""

Pair = tuple[Group, Group]
"""The input of an expert, and that of its last linear."""


def expert_pairs(prefix: str, groups: Mapping[str, Group], count: int, gated: bool) -> list[Pair]:
    """The groups of each expert.

    Args:
        prefix: path of the experts of a layer.
        groups: int8 linears by path.
        count: number of experts.
        gated: whether each has a gate.

    Raises:
        UnsupportedFeatureError: only some are int8, or under names that vLLM does not load one by one.
    """
    found: dict[tuple[int, str], Group] = {}
    for path, group in groups.items():
        if path.startswith(f"{prefix}."):
            number, _, name = path.removeprefix(f"{prefix}.").partition(".")
            if not number.isdecimal() or name not in _NAMES:
                raise _refused("the names of these int8 experts are not known in vLLM", path)
            found[int(number), _NAMES[name]] = group
    names = ("w1", "w3", "w2") if gated else ("w1", "w2")
    missing = [(n, name) for n in range(count) for name in names if (n, name) not in found]
    if missing or len(found) != count * len(names):
        raise _refused(f"only {len(found)} of {count * len(names)} linears of experts are int8", prefix)  # fmt: skip
    if any(gated and found[n, "w1"] != found[n, "w3"] for n in range(count)):
        raise _refused("vLLM fuses gate and up of experts, whose outlier columns differ", prefix)
    return [(found[n, "w1"], found[n, "w2"]) for n in range(count)]


def _refused(text: str, path: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(text, tensor=path, hint="int8conv export --to dense")


def check_supported(layer: RoutedExperts, prefix: str) -> None:
    """Raise UnsupportedFeatureError if the experts of a layer compute something that is not built, or wait for a GPU inside of a graph."""
    activation = layer.activation.value
    limited = layer.swiglu_limit is not None
    if layer.moe_config.has_bias or limited or not knows(activation):
        found = "a bias" if layer.moe_config.has_bias else f"the activation {activation}"
        raise _refused(f"int8 experts with {found} are not supported in vLLM", prefix)
    config = get_current_vllm_config().model_config
    if layer.moe_config.device != "cpu" and config is not None and not config.enforce_eager:
        raise UnsupportedFeatureError("int8 experts cannot be in a CUDA graph", tensor=prefix, hint="vllm serve --enforce-eager")  # fmt: skip


class Int8convExpertsMethod(FusedMoEMethodBase):
    """The tensors of SPEC.md section 1 of all experts of a layer, in stacks.

    With tensor parallelism, rows of gate and up and input channels of down are split; with expert parallelism a rank has some experts.

    Args:
        layer: vLLM's module.
        pairs: each expert's groups.
        mode: how activations are treated; None: by the number of tokens.
    """

    def __init__(self, layer: RoutedExperts, pairs: Sequence[Pair], mode: Mode | None) -> None:
        super().__init__(layer.moe_config)
        places = [(layer._map_global_expert_id_to_local_expert_id(n), p) for n, p in enumerate(pairs)]  # fmt: skip
        self.pairs = [pair for place, pair in sorted(places, key=lambda p: p[0]) if place >= 0]
        self.mode: Mode | None = mode
        self._columns: dict[str, list[int]] = {}
        """Each expert's number of outlier columns on this rank."""

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> None:
        """None: vLLM's own kernels are not used."""

    # what vLLM has beside the sizes
    def create_weights(
        self, layer: RoutedExperts, num_experts: int, hidden_size: int, intermediate_size_per_partition: int,
        params_dtype: torch.dtype, **extra: Callable[..., object],
    ) -> None:  # fmt: skip
        """Register empty parameters, ``[experts, ...]``."""
        inner = intermediate_size_per_partition
        wide = inner * (2 if self.moe.is_act_and_mul else 1)
        for name, rows, columns, groups in (
            (_WIDE, wide, hidden_size, [pair[0] for pair in self.pairs]),
            (_DOWN, hidden_size, inner, [pair[1] for pair in self.pairs]),
        ):
            most = max((group.outliers for group in groups), default=0)
            half = next((group.dtype for group in groups if group.dtype), "F16")
            shapes = {
                WEIGHT: torch.zeros(num_experts, rows, columns, 1, dtype=torch.int8),
                SCALE: torch.zeros(num_experts, rows),
                OUTLIER_INDEX: torch.zeros(num_experts, most, dtype=torch.int32),
                OUTLIER_WEIGHT: torch.zeros(num_experts, rows, most, dtype=TORCH_DTYPES[half]),
            }
            for kind, data in shapes.items():
                parameter = torch.nn.Parameter(data, requires_grad=False)
                layer.register_parameter(f"{name}_{kind}", parameter)
                set_weight_attrs(parameter, {"weight_loader": self._loader(layer)})
            self._columns[name] = [group.outliers for group in groups]

    def _loader(self, layer: RoutedExperts) -> Callable[..., bool | None]:
        rank = self.moe.tp_rank

        # as vLLM calls it
        def load(
            param: torch.nn.Parameter, loaded_weight: Tensor, weight_name: str, shard_id: str, expert_id: int,
            return_success: bool = False,
        ) -> bool | None:  # fmt: skip
            place = layer._map_global_expert_id_to_local_expert_id(expert_id)
            if place >= 0:
                kind = weight_name.rpartition(f".{_DOWN if shard_id == 'w2' else _WIDE}_")[2]
                _copy(param.data[place], loaded_weight, kind, shard_id, rank, self.moe.is_act_and_mul)  # fmt: skip
            return place >= 0 if return_success else None

        return load

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        """Keep the outlier columns among this rank's input channels of down."""
        size, rank = layer.w2_weight.shape[2], self.moe.tp_rank
        if self.moe.tp_size > 1:
            self._keep(layer, _DOWN, lambda index, kept: own_columns(index, kept, rank * size, size))  # fmt: skip
        if layer.w2_weight.is_cuda:
            for name in (_WIDE, _DOWN):
                self._keep(layer, name, aligned)

    def _keep(
        self, layer: RoutedExperts, name: str, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> None:  # fmt: skip
        stacks = [getattr(layer, f"{name}_{kind}").data for kind in (OUTLIER_INDEX, OUTLIER_WEIGHT)]
        indices, columns = stacks
        found = [change(indices[e, :k], columns[e, :, :k]) for e, k in enumerate(self._columns[name])]  # fmt: skip
        counts = [len(index) for index, _ in found]
        most = max(counts, default=0)
        made = indices.new_zeros(len(found), most), columns.new_zeros(*columns.shape[:2], most)
        for expert, (index, kept) in enumerate(found):
            made[0][expert, : len(index)] = index
            made[1][expert, :, : len(index)] = kept
        for kind, data in zip((OUTLIER_INDEX, OUTLIER_WEIGHT), made, strict=True):
            layer.register_parameter(f"{name}_{kind}", torch.nn.Parameter(data, requires_grad=False))  # fmt: skip
        self._columns[name] = counts

    def apply(
        self, layer: RoutedExperts, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, shared_experts: object,
        shared_experts_input: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """float ``[tokens, hidden]`` -> the same, this rank's part."""
        shares = topk_weights.float()
        if layer.apply_router_weight_on_input:
            x, shares = x * shares.to(x.dtype), torch.ones_like(shares)
        chosen = topk_ids if layer.expert_map is None else layer.expert_map[topk_ids.long()]
        parts: list[Sequence[Tensor] | Sequence[int] | Sequence[float]] = []
        for place, name in enumerate((_WIDE, _DOWN)):
            thresholds = [pair[place].threshold for pair in self.pairs]
            parts += [
                [getattr(layer, f"{name}_{kind}") for kind in _KINDS], self._columns[name],
                [NO_THRESHOLD if each is None else each for each in thresholds],
            ]  # fmt: skip
        y: Tensor = mixed_experts(x, chosen, shares, *parts, layer.activation.value, self.mode)
        return y


def _copy(stacked: Tensor, loaded: Tensor, kind: str, shard: str, rank: int, gated: bool) -> None:
    """One expert's tensor from the file into its place, as far as it is this rank's."""
    if kind == OUTLIER_INDEX:  # gate and up have the same
        stacked[: len(loaded)] = loaded
        return
    if shard == "w2":
        part = loaded
        if kind == WEIGHT:
            part = loaded.narrow(1, rank * stacked.shape[1], stacked.shape[1])
    else:
        rows = len(stacked) // 2 if gated else len(stacked)
        part = loaded.narrow(0, rank * rows, rows)
        stacked = stacked.narrow(0, rows if shard == "w3" else 0, rows)
    if kind == OUTLIER_WEIGHT:
        stacked[:, : part.shape[1]] = part
    else:
        stacked.copy_(part)
