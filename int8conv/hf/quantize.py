"""``quantize_model``: quantize a model in memory by the rules of ``convert``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..convert.by_name.generic import SMALLEST_SIDE
from ..convert.by_name.linear_names import is_kept_by_name, is_numbered, is_vision_or_audio
from ..convert.outliers.calibrate import Sums
from ..convert.outliers.rule import NO_OUTLIERS, Choosing, OutlierChoice, choose_outliers
from ..convert.outliers.selection import matches
from ..convert.outliers.source_weights import column_errors
from ..convert.rounding.float16_bits import round_to_half
from ..convert.rounding.quantize import NonFiniteRowError, QuantizedRows, RowQuantizer
from ..errors import (
    ArgumentError,
    CalibrationError,
    HalfOverflowError,
    NonFiniteWeightError,
    UnsupportedModelError,
)
from ..formats.int8.section import Group
from ..formats.safetensors.dtypes import INFINITY_BITS
from ..kernels.dispatch import Mode, check_mode
from ..runtime.weights.mapping import TORCH_DTYPES, from_bits
from .activations import use_operators
from .compiled_layer import compile_steps
from .config import Int8convConfig
from .head import narrow_head
from .linear import Int8convLinear, int8_linears
from .quantizer import Int8convQuantizer

_NAMES: Final = {TORCH_DTYPES[name]: name for name in ("F16", "BF16", "F32")}
_BITS: Final = {2: np.uint16, 4: np.uint32}
_DEFAULT: Final = Choosing()
_BLOCK_ELEMENTS: Final = 1 << 19

_SOURCES: Final = (nn.Linear, Conv1D)


def quantize_model(
    model: PreTrainedModel,
    token_ids: Tensor | None = None,
    *,
    keep: Sequence[str] = (),
    choosing: Choosing = _DEFAULT,
    mode: Mode | None = None,
) -> PreTrainedModel:
    """Replace a model's linears by int8 ones, in place and one at a time, as ``int8conv convert`` would.

    What becomes int8 are the linears of numbered blocks, but for routers, adapters, and what sees or hears. The others, and experts that
    transformers has fused, stay as they are.

    Args:
        model: a transformers model in float16, bfloat16 or float32, on any device.
        token_ids: int64 ``[batch, tokens]``, a text of the kind that the model is for: outlier columns and thresholds are found by running
            it. None: no columns and no outlier fallback.
        keep: regular expressions; linears whose path contains a match are not quantized.
        choosing: the rule for columns.
        mode: mode of the new linears: ``"w8a16"``, ``"w8a8"``, or None to choose by the number of tokens.

    Returns:
        The same model; ``save_pretrained`` and ``int8conv adopt`` turn it into a converted folder.

    Raises:
        ArgumentError: the mode is unknown, or the model is already quantized.
        UnsupportedModelError: there is no linear to quantize.
        NonFiniteWeightError, HalfOverflowError: a weight cannot be represented in int8 or 16 bits.
        CalibrationError: activations overflow.
    """
    check_mode(mode)
    if getattr(model, "hf_quantizer", None) is not None or int8_linears(model):
        raise ArgumentError("the model is already quantized", found=type(model).__name__)
    linears = dict(_candidates(model, keep))
    if not linears:
        raise UnsupportedModelError("no linear found by names and shapes",
                                    found=type(model).__name__)  # fmt: skip
    inputs = _observe(model, linears, token_ids)
    groups = []
    for members in inputs:
        choice = NO_OUTLIERS
        if members.sums is not None and token_ids is not None:
            found = members.sums.finish(_weight_error(model, members.paths))
            choice = choose_outliers(found, token_ids.numel(), choosing)
        for path in members.paths:
            _replace(model, path, choice, mode)
        kept = model.get_submodule(next(iter(members.paths))).outlier_weight
        dtype = None if kept is None else _NAMES[kept.dtype]
        groups.append(Group(tuple(members.paths), len(choice.columns), dtype, choice.threshold))
    _register(model, groups, "none" if token_ids is None else "calibrated", mode)
    return model


def _candidates(model: PreTrainedModel, keep: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in model.named_modules():
        if not isinstance(module, _SOURCES) or min(module.weight.shape) < SMALLEST_SIDE:
            continue
        if not is_numbered(f"{path}.weight") or is_kept_by_name(path) or is_vision_or_audio(path):
            continue
        if not matches(keep, path) and module.weight.dtype in _NAMES:
            yield path, module


@dataclass
class _Input:
    """Linears that share an activation."""

    paths: list[str] = field(default_factory=list)
    sums: Sums | None = None


def _observe(
    model: PreTrainedModel, linears: dict[str, nn.Linear], token_ids: Tensor | None
) -> list[_Input]:
    """Linears that share an input, with its statistics; without tokens each linear is separate."""
    if token_ids is None:
        return [_Input([path]) for path in linears]
    inputs: list[_Input] = []
    with _hooks(linears, inputs), torch.inference_mode():
        model(token_ids.to(model.device))
    seen = {path for each in inputs for path in each.paths}
    return inputs + [_Input([path]) for path in linears if path not in seen]


@contextmanager
def _hooks(linears: dict[str, nn.Linear], inputs: list[_Input]) -> Iterator[None]:
    last: list[Any] = [None, None, None]  # the activation, whose linears they are, biased or not

    def observe(path: str, module: nn.Linear, x: Tensor) -> None:
        like = (path.rpartition(".")[0], module.bias is None, module.weight.dtype)
        if x is not last[0] or like != last[1]:
            inputs.append(_Input(sums=Sums(x.shape[-1], x.device)))
            last[:] = [x, like, inputs[-1]]
            channel = last[2].sums.add(x.flatten(0, -2).float())
            if channel is not None:
                raise CalibrationError(f"activation is NaN or infinite in channel {channel}",
                                       tensor=f"{path}.weight")  # fmt: skip
        if path not in last[2].paths:
            last[2].paths.append(path)

    handles = [
        module.register_forward_pre_hook(lambda m, args, path=path: observe(path, m, args[0]))
        for path, module in linears.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weight_error(model: PreTrainedModel, paths: Iterable[str]) -> Tensor:
    """Error of each column of all linears of an input, float32 ``[in]``."""
    squares = [column_errors(_matrix(model.get_submodule(path))) for path in paths]
    return torch.stack(squares).sum(0).sqrt().float()


def _matrix(linear: nn.Module) -> Tensor:
    """The weight ``[out, in]``."""
    weight: Tensor = linear.weight.detach()  # type: ignore[operator]
    return weight.t() if isinstance(linear, Conv1D) else weight


def _replace(model: PreTrainedModel, path: str, choice: OutlierChoice, mode: Mode | None) -> None:
    old = model.get_submodule(path)
    weight = _matrix(old)
    out_features, in_features = weight.shape
    kind = _NAMES[weight.dtype]
    half = TORCH_DTYPES["F16" if kind == "F32" else kind]
    columns = choice.columns
    with torch.device("meta"):
        linear = Int8convLinear(
            in_features, out_features, bias=False, outliers=len(columns), half=half if len(columns) else None,
            threshold=choice.threshold, mode=mode, conv1d=isinstance(old, Conv1D),
        )  # fmt: skip
    linear.to_empty(device=old.weight.device)
    if linear.outlier_index is not None:
        linear.outlier_index.copy_(torch.from_numpy(columns))
    for first, block in _blocks(weight, columns, path):
        rows = slice(first, first + len(block.codes))
        with torch.no_grad():
            linear.weight[rows, :, 0] = torch.from_numpy(block.codes)
            linear.weight_scale[rows] = torch.from_numpy(block.scale)
            if linear.outlier_weight is not None:
                linear.outlier_weight[rows] = _half_bits(block, kind, half, path)
    linear.bias = old.bias
    model.set_submodule(path, linear.train(old.training))


def _blocks(
    weight: Tensor, columns: np.ndarray[Any, Any], path: str
) -> Iterator[tuple[int, QuantizedRows]]:
    kind = _NAMES[weight.dtype]
    quantizer = RowQuantizer(kind, columns)
    step = max(1, _BLOCK_ELEMENTS // weight.shape[1])
    integers = {2: torch.int16, 4: torch.int32}[weight.itemsize]
    for first in range(0, weight.shape[0], step):
        part = weight[first : first + step].contiguous().view(integers).cpu().numpy()
        try:
            yield first, quantizer.quantize(part.view(_BITS[weight.itemsize]).copy())
        except NonFiniteRowError as error:
            raise NonFiniteWeightError(f"NaN or infinity in row {first + error.row}",
                                       tensor=f"{path}.weight", expected="finite weights") from None  # fmt: skip


def _half_bits(block: QuantizedRows, kind: str, half: torch.dtype, path: str) -> Tensor:
    bits = np.ascontiguousarray(block.outliers)
    if kind == "F32":
        bits, _ = round_to_half(bits.view(np.float32), _NAMES[half])
        if (bits & 0x7FFF >= INFINITY_BITS[_NAMES[half]]).any():
            raise HalfOverflowError(f"an outlier column does not fit {_NAMES[half]}", tensor=f"{path}.weight",
                                    hint="load the model in bfloat16")  # fmt: skip
    return from_bits(bits, _NAMES[half])


def _register(
    model: PreTrainedModel, groups: Sequence[Group], outliers: str, mode: Mode | None
) -> None:
    """Register the quantization with transformers, as if the model had been loaded quantized."""
    dtype = str(model.dtype).removeprefix("torch.")
    config = Int8convConfig(
        groups=[asdict(group) for group in groups], mode=mode, outliers=outliers,
        dtype=dtype if dtype == "bfloat16" else "float16",
    )  # fmt: skip
    quantizer = Int8convQuantizer(config)
    quantizer.take_over(groups)
    model.hf_quantizer = quantizer
    model.is_quantized, model.quantization_method = True, config.quant_method
    model.config.quantization_config = config
    use_operators(model)
    compile_steps(model)
    narrow_head(model)
