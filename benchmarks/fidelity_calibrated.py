"""Methods that look at activations first, simulated in float32: SmoothQuant, GPTQ, and scales along input channels with AdaDim's choice.

- SmoothQuant (arXiv:2211.10438): ``x / s`` and ``W s`` in int8, with ``s = max|x|^0.5 / max|w|^0.5`` per channel.
- GPTQ (arXiv:2210.17323): columns one after another, each error passed on to the columns that follow.
- per input channel (arXiv:2309.15531): a scale per column of the weight, or per group of 128 of a column's elements, instead of per row.
  AdaDim takes, linear by linear, the direction whose outputs are closer on the calibration text.

Codes and scales are those of the method; the activations are those of the source on the built-in calibration text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from fidelity_methods import Linear, absmax
from torch import Tensor

from int8conv.convert.outliers.texts import calibration_windows
from int8conv.convert.rounding.compensate import damping_for
from int8conv.formats.source.checkpoint import Checkpoint
from int8conv.runtime.models.architecture import Module, read_architecture
from int8conv.runtime.weights.streaming import BlockStream
from int8conv.runtime.weights.weights import CheckpointWeights, Projection

GROUP = 128
"""Elements with a scale of their own below 8 bits."""


@dataclass
class Input:
    """What the calibration text shows of one input."""

    absmax: Tensor
    gram: Tensor
    """``sum x x^T``, ``[in, in]``."""
    tokens: int


@torch.inference_mode()
def inputs_of(checkpoint: Checkpoint, windows: Sequence[Tensor] | None = None) -> dict[str, Input]:
    """By the path of an input's first linear; ``windows``: token ids of another text."""
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    if windows is None:
        windows, _ = calibration_windows(checkpoint, architecture, (), None, None, 0)
    found: dict[str, Input] = {}

    def observe(module: Module, x: Tensor) -> None:
        rows = x.flatten(0, -2)
        seen = found.get(module.path)
        if seen is None:
            seen = found[module.path] = Input(torch.zeros(x.shape[-1]), torch.zeros(x.shape[-1], x.shape[-1]), 0)  # fmt: skip
        seen.absmax = torch.maximum(seen.absmax, rows.abs().amax(0))
        seen.gram.addmm_(rows.t(), rows)
        seen.tokens += len(rows)

    stream = BlockStream(architecture, CheckpointWeights(checkpoint, torch.float32), windows)
    for layer in range(architecture.config.num_layers):
        stream.advance(layer, observe)
    return found


Method = Callable[[Sequence[Tensor], Input], Sequence[Linear]]
"""The weights of linears that share an input -> the linears."""


def smoothquant(weights: Sequence[Tensor], seen: Input) -> Sequence[Linear]:
    largest = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    s = (seen.absmax.sqrt() / largest.clamp_min(1e-30).sqrt()).clamp_min(1e-5)
    stored = [absmax(w * s, 1) for w in weights]
    return [lambda x, v=v: absmax(x / s, 1) @ v.t() for v in stored]  # type: ignore[misc]


def rounded(weight: Tensor, bits: int, group: int) -> Callable[[Tensor, slice], Tensor]:
    """Rounds columns of a weight ``[out, in]``, given which, to scales per ``group`` columns of a row: symmetric in 8 bits, else with a zero point."""
    parts = weight.split(group, 1)
    low = torch.cat([p.amin(1, keepdim=True).clamp(max=0).expand_as(p) for p in parts], 1)
    high = torch.cat([p.amax(1, keepdim=True).clamp(min=0).expand_as(p) for p in parts], 1)
    most = 2**bits - 1
    if bits == 8:
        high = torch.maximum(-low, high)
        low, most = -high, 254
    scale = ((high - low) / most).clamp_min(1e-30)
    zero = (-low / scale).round()

    def columns(values: Tensor, part: slice) -> Tensor:
        s, z = scale[:, part], zero[:, part]
        return ((values / s).round() + z).clamp(0, most).sub(z) * s

    return columns


def by_rows(weight: Tensor, bits: int) -> Tensor:
    return rounded(weight, bits, weight.shape[1] if bits == 8 else GROUP)(weight, slice(None))


def by_columns(weight: Tensor, bits: int) -> Tensor:
    return by_rows(weight.t(), bits).t()


def gptq(weight: Tensor, seen: Input, bits: int, block: int = 128) -> Tensor:
    """Scales from the weight as it was; columns in the order of their second moments."""
    round_columns = rounded(weight, bits, weight.shape[1] if bits == 8 else GROUP)
    order = seen.gram.diagonal().argsort(descending=True, stable=True)
    h = seen.gram[order][:, order].double()
    h /= h.diagonal().mean()
    h.diagonal().add_(damping_for(len(h), seen.tokens))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()  # fmt: skip
    rest, found = weight[:, order].clone(), torch.empty_like(weight)
    for first in range(0, len(h), block):
        last = min(first + block, len(h))
        errors = torch.empty(len(weight), last - first)
        for j in range(first, last):
            place = int(order[j])
            values = rest[:, j : j + 1]
            found[:, place : place + 1] = round_columns(values, slice(place, place + 1))
            errors[:, j - first] = (values[:, 0] - found[:, place]) / factor[j, j]
            rest[:, j:last].addr_(errors[:, j - first], factor[j, j:last], alpha=-1)
        rest[:, last:] -= errors @ factor[first:last, last:]
    return found


def adadim(weight: Tensor, seen: Input, bits: int) -> Tensor:
    def error(found: Tensor) -> float:
        lost = weight - found
        return float(((lost @ seen.gram) * lost).sum())

    return min((by_rows(weight, bits), by_columns(weight, bits)), key=error)


def _of_weights(change: Callable[[Tensor, Input], Tensor]) -> Method:
    """A method that leaves activations alone."""

    def method(weights: Sequence[Tensor], seen: Input) -> Sequence[Linear]:
        stored = [change(w, seen) for w in weights]
        return [lambda x, v=v: x @ v.t() for v in stored]  # type: ignore[misc]

    return method


def _weight_only(bits: int) -> dict[str, Method]:
    per = "" if bits == 8 else f", groups of {GROUP}"
    return {
        f"{bits}-bit weights, per row{per}": _of_weights(lambda w, _: by_rows(w, bits)),
        f"{bits}-bit weights, per column{per}": _of_weights(lambda w, _: by_columns(w, bits)),
        f"{bits}-bit weights, AdaDim{per}": _of_weights(lambda w, seen: adadim(w, seen, bits)),
        f"{bits}-bit weights, GPTQ per row{per}": _of_weights(lambda w, seen: gptq(w, seen, bits)),
    }


CALIBRATED_METHODS: dict[str, Method] = {
    "SmoothQuant 0.5, vector-wise W8A8": smoothquant,
    **_weight_only(8),
    **_weight_only(4),
    **_weight_only(3),
}


class CalibratedWeights(CheckpointWeights):
    """A source whose attention and FFN linears are simulated."""

    def __init__(self, checkpoint: Checkpoint, method: Method, inputs: dict[str, Input]) -> None:
        super().__init__(checkpoint, torch.float32)
        self._method, self._inputs = method, inputs

    def projection(self, modules: Sequence[Module]) -> Projection:
        if not modules[0].group:
            return super().projection(modules)
        weights = [self.tensor(module) for module in modules]
        linears = self._method(weights, self._inputs[modules[0].group[0]])
        biases = [self.tensor(m, "bias") if m.bias else 0.0 for m in modules]

        def project(x: Tensor, *, residual: Tensor | None = None) -> list[Tensor]:
            rows = x.reshape(-1, x.shape[-1])
            outputs = [
                (linear(rows) + bias).reshape(*x.shape[:-1], -1)
                for linear, bias in zip(linears, biases, strict=True)
            ]
            return outputs if residual is None else [residual + outputs[0]]

        return project
