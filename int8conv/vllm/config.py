"""``quantization_config`` of a converted folder as vLLM takes it: which layers are int8, with how many outlier columns."""

from __future__ import annotations

from typing import Any, Final

import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.models.utils import WeightsMapper

from ..errors import JsonFileError, UnsupportedFeatureError
from ..formats.int8.manifest import check_version
from ..formats.int8.names import PADDING_PREFIX, QUANT_METHOD, VERSION
from ..formats.int8.section import GROUPS, SECTION, Group, read_groups
from ..kernels.dispatch import Mode, check_mode
from .experts import Int8convExpertsMethod, check_supported, expert_pairs
from .linear import Int8convLinearMethod

_OLDEST_GPU: Final = 80
_MODE: Final = "mode"


@register_quantization_config(QUANT_METHOD)
class Int8convConfig(QuantizationConfig):
    """The linears of a folder by path, and how their activations are treated.

    Args:
        groups: linears by shared input.
        mode: ``"w8a16"``, ``"w8a8"``, or None to choose by the number of tokens.
    """

    def __init__(self, groups: tuple[Group, ...] = (), mode: Mode | None = None) -> None:
        super().__init__()
        self.mode: Mode | None = mode
        self.groups = {path: group for group in groups for path in group.linears}

    # as vLLM calls it, with the fields of the section as JSON
    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Int8convConfig:
        """From the section in ``config.json``.

        Raises:
            JsonFileError: it is malformed, or has no groups.
            UnknownVersionError, ArgumentError: another version of the format, or an unknown mode.
        """
        check_version(config.get("version", VERSION), SECTION)
        check_mode(config.get(_MODE))
        groups = read_groups(config, SECTION)
        if groups is None:
            raise JsonFileError(f"no '{GROUPS}' in {SECTION}", hint="convert the source again")
        return cls(groups, config.get(_MODE))

    def get_name(self) -> str:
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return _OLDEST_GPU

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @staticmethod
    def get_checkpoint_weight_mapper() -> WeightsMapper:
        """Padding tensors are not loaded."""
        return WeightsMapper(orig_to_new_prefix={PADDING_PREFIX: None})

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """Rename linears as vLLM renames modules."""
        renamed = hf_to_vllm_mapper.apply_dict(dict(self.groups))
        self.groups = dict(renamed)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> object:
        """The method of a layer; None leaves it to vLLM.

        Raises:
            UnsupportedFeatureError: the folder has int8 weights for it that vLLM cannot run.
        """
        paths = self.paths(prefix)
        if isinstance(layer, LinearBase):
            found = [self.groups.get(path) for path in paths]
            return self._method(prefix, paths, found)
        if isinstance(layer, RoutedExperts):
            return self._experts(layer, prefix)
        inside = [path for path in self.groups if path == prefix or path.startswith(f"{prefix}.")]
        if inside and hasattr(layer, "weight_loader"):  # of embeddings and heads
            raise UnsupportedFeatureError(
                f"int8 weights of a {type(layer).__name__} are not supported in vLLM", tensor=f"{inside[0]}.weight",
                hint="int8conv export --to dense",
            )  # fmt: skip
        return None

    def _experts(self, layer: RoutedExperts, prefix: str) -> object:
        if not any(path.startswith(f"{prefix}.") for path in self.groups):
            return None
        check_supported(layer, prefix)
        moe = layer.moe_config
        pairs = expert_pairs(prefix, self.groups, moe.num_logical_experts, moe.is_act_and_mul)
        return Int8convExpertsMethod(layer, pairs, self.mode)

    def paths(self, prefix: str) -> list[str]:
        """The paths in the folder of a layer, which vLLM may have fused."""
        parent, _, name = prefix.rpartition(".")
        return [f"{parent}.{part}" for part in self.packed_modules_mapping.get(name, [name])]

    def _method(self, prefix: str, paths: list[str], found: list[Group | None]) -> object:
        groups = [group for group in found if group is not None]
        if not groups:
            return UnquantizedLinearMethod()
        if len(groups) < len(found):
            raise UnsupportedFeatureError("vLLM fuses linears of which only some are int8", tensor=prefix, found=", ".join(paths))  # fmt: skip
        if len({(g.outliers, g.dtype, g.threshold) for g in groups}) > 1:
            raise UnsupportedFeatureError("vLLM fuses linears whose outlier columns differ", tensor=prefix, found=", ".join(paths))  # fmt: skip
        return Int8convLinearMethod(groups[0], self.mode)
