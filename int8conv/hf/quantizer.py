"""The transformers quantizer for converted folders: places int8 linears according to the config's groups, and controls saving."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightConverter, revert_weight_conversion
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging

from ..errors import JsonFileError
from ..formats.int8.folder import open_converted
from ..formats.int8.names import MANIFEST_FILE, PADDING_PREFIX, QUANT_METHOD
from ..formats.int8.section import GROUPS, SECTION, Group, describe_groups, read_groups
from ..runtime.weights.mapping import TORCH_DTYPES
from .activations import use_operators
from .compiled_layer import compile_steps, release_steps
from .config import Int8convConfig
from .dequantize import converters, dequantizing
from .experts import put_experts, restore_experts
from .head import narrow_head, widen_head
from .linear import Int8convLinear, int8_linears
from .places import Places, find_places
from .versions import DEQUANTIZES_ON_LOAD, check_dequantizes, transformers_version

logger = logging.get_logger(__name__)


@register_quantizer(QUANT_METHOD)
class Int8convQuantizer(HfQuantizer):
    """Loads and saves; it does not quantize (``int8conv convert``, or ``quantize_model``)."""

    requires_calibration = True
    quantization_config: Int8convConfig

    # the options of the base class
    def __init__(self, quantization_config: Int8convConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.groups: tuple[Group, ...] = ()
        self._by_path: dict[str, Group] = {}
        self._places = Places({})
        self._dtypes: dict[str, torch.dtype] = {}
        self._replaced: list[tuple[WeightConverter, WeightConverter | None]] = []
        self._unused: list[WeightConverter] = []

    def take_over(self, groups: Sequence[Group]) -> None:
        """Groups of a model whose linears are already int8, under its own names."""
        self.groups = tuple(groups)
        self._by_path = {path: group for group in groups for path in group.linears}
        self._places = Places({path: path for path in self._by_path})

    def outliers_of(self, path: str) -> int:
        """k of a linear in the file."""
        return self._by_path[path].outliers

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **options: object
    ) -> None:  # fmt: skip
        self.groups = self._read_groups(checkpoint_files or ())
        self._by_path = {path: group for group in self.groups for path in group.linears}
        self._places = find_places(model, self._by_path)
        if dequantized := self._places.dequantized():
            check_dequantizes(dequantized[0])
            logger.warning(
                f"int8conv: {len(dequantized)} of {len(self._by_path)} int8 linears are dequantized while loading, the first is "
                f"'{dequantized[0]}': transformers has no linear for them"
            )
        put_experts(model, self._places.experts)
        for path, name in self._places.linears.items():
            _put_linear(model, name, self._by_path[path], self.quantization_config)
        _expect_padding(model)
        if transformers_version() < DEQUANTIZES_ON_LOAD:
            floats = ((n, p.dtype) for n, p in model.named_parameters() if p.is_floating_point())
            self._dtypes = dict(floats)

    def _read_groups(self, files: Sequence[str]) -> tuple[Group, ...]:
        """The groups from the config, or from the manifest of a folder written by an earlier release."""
        folder = Path(files[0]).parent if files else None
        section = {} if (groups := self.quantization_config.groups) is None else {GROUPS: groups}
        if (found := read_groups(section, folder or SECTION)) is not None:
            return found
        if folder is None or not (folder / MANIFEST_FILE).is_file():
            raise JsonFileError(
                f"no '{GROUPS}' in {SECTION}, and no {MANIFEST_FILE}", file=folder,
                hint="convert the source again, or give a local copy of the whole folder",
            )  # fmt: skip
        converted = open_converted(folder)
        dtypes = {name: tensor.dtype for name, tensor in converted.checkpoint.tensors.items()}
        return tuple(describe_groups(converted.manifest.inputs, dtypes))

    # conversions are private classes of transformers
    def update_weight_conversions(
        self, weight_conversions: list[Any], model: PreTrainedModel | None = None
    ) -> list[Any]:
        """The model's own conversions, which also read int8 weights, and those of embeddings and stacks."""
        updated = []
        for conversion in weight_conversions:
            changed = conversion
            if isinstance(conversion, WeightConverter):
                if self._places.unfused & set(conversion.source_patterns):
                    self._unused.append(conversion)
                    continue
                changed = dequantizing(conversion, self, self._places)
            if changed is not conversion:
                self._replaced.append((changed, conversion))
            updated.append(changed)
        added = list(converters(self, self._places))
        self._replaced += [(converter, None) for converter in added]
        return updated + added

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **options: object) -> PreTrainedModel:  # fmt: skip
        """What is saved later is what the model has now: dequantized weights in their source's form."""
        used = getattr(model, "_weight_conversions", None)
        if used and self._replaced:
            originals = {id(ours): theirs for ours, theirs in self._replaced}
            kept = [originals.get(id(each), each) for each in used]
            model._weight_conversions = [each for each in kept if each is not None]
        for name, parameter in model.named_parameters():
            # early releases leave what they rename in the dtype of the file
            wanted = self._dtypes.get(name, parameter.dtype)
            if (
                parameter.dtype in (torch.float16, torch.bfloat16)
                and parameter.device.type != "meta"
            ):
                parameter.data = parameter.data.to(wanted)
        use_operators(model)
        compile_steps(model)
        narrow_head(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, str]]:  # fmt: skip
        """Called before a model is saved: puts the groups that are int8 now into its config, under the saved names."""
        linears = int8_linears(model)
        if getattr(model, "_hf_peft_config_loaded", False):  # of which the adapter alone is saved
            return None, {}
        weights = {f"{name}.weight": linear.weight for name, linear in linears.items()}
        saved = revert_weight_conversion(model, dict(weights)) if weights else {}
        renamed = {id(tensor): key.removesuffix(".weight") for key, tensor in saved.items()}
        paths_in_file = {name: path for path, name in self._places.linears.items()}
        names = {paths_in_file[name]: renamed[id(linear.weight)] for name, linear in linears.items()}  # fmt: skip
        self.quantization_config.groups = [
            asdict(Group(paths, group.outliers, group.dtype, group.threshold))
            for group in self.groups
            if (paths := tuple(names[path] for path in group.linears if path in names))
        ]
        model.config.quantization_config = self.quantization_config
        return None, {}

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:  # fmt: skip
        restore_experts(model, dtype)
        if self._unused:  # what is saved from now on is fused
            model._weight_conversions = [*(getattr(model, "_weight_conversions", None) or ()), *self._unused]  # fmt: skip
        for name, linear in int8_linears(model).items():
            model.set_submodule(name, dense(linear, dtype))
        release_steps(model)
        widen_head(model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters are trainable; int8 weights have no gradient."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def dense(linear: Int8convLinear, dtype: torch.dtype | None = None) -> nn.Module:
    """A linear of the original class with the dequantized weight."""
    weight = linear.dequantized().to(dtype or torch.float32)
    bias = None if linear.bias is None else linear.bias.detach().to(weight.dtype)
    with torch.device("meta"):
        if linear.conv1d:
            found: nn.Module = Conv1D(linear.out_features, linear.in_features)
        else:
            found = nn.Linear(linear.in_features, linear.out_features, bias is not None)
    found.weight = nn.Parameter(weight.t().contiguous() if linear.conv1d else weight)
    found.bias = None if bias is None else nn.Parameter(bias)
    return found.train(linear.training)


def _put_linear(model: PreTrainedModel, name: str, group: Group, config: Int8convConfig) -> None:
    old = model.get_submodule(name)
    conv1d = isinstance(old, Conv1D)
    out_features, in_features = old.weight.shape[::-1] if conv1d else old.weight.shape
    with torch.device("meta"):
        linear = Int8convLinear(
            in_features, out_features, bias=old.bias is not None, outliers=group.outliers, half=None if group.dtype is None else TORCH_DTYPES[group.dtype],
            threshold=group.threshold, mode=config.mode, conv1d=conv1d,
        )  # fmt: skip
    if linear.bias is not None:
        linear.bias = nn.Parameter(torch.empty_like(old.bias, device="meta"))
    vars(linear)["_is_hf_initialized"] = (
        True  # or transformers draws what is left on the disk at random
    )
    model.set_submodule(name, linear)


def _expect_padding(model: PreTrainedModel) -> None:
    """Padding tensors are no surprise; what to ignore is None or a list in 5.0, a set later."""
    ignored = model._keys_to_ignore_on_load_unexpected
    pattern = rf"^{re.escape(PADDING_PREFIX)}\d+$"
    kind = set if isinstance(ignored, set) else list
    model._keys_to_ignore_on_load_unexpected = kind([*(ignored or ()), pattern])
