"""How far the outputs of a real model's linears are off with each way of storing weights in 8 bits, as a fraction of the default conversion's.

    python benchmarks/output_error.py smollm2 gemma3 --text technical=EVAL.txt --text German=benchmarks/texts/german.txt [--layers 3]

The squared error of a linear's output over a text is ``sum |(w - v) x|^2``; figures are geometric means over the linears of some layers. Columns
and roundings come from the built-in text, and errors are those on other texts. "best row scale" searches 26 fractions of the default one for
the least expected error, so that codes saturate. "spread" adds uniform noise of a 32nd of each block's largest magnitude to the source first, as
much as its rounding to 4 or 5 bits may have changed: what the same comparison would be if its weights had never been rounded in blocks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean

import torch
import torch.nn.functional as F
from fidelity import windows_of
from fidelity_calibrated import Input, inputs_of
from fidelity_methods import q8_0
from real_checkpoints import PACKAGES, make_checkpoint
from tabulate import tabulate
from torch import Tensor

from int8conv.convert.outliers.source_weights import column_errors
from int8conv.convert.rounding.compensate import Compensation, damping_for
from int8conv.formats.int8.outlier_cap import most_outliers
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.weights.weights import CheckpointWeights

Stored = Callable[[Sequence[Tensor], Input], list[Tensor]]
"""Weights of linears that share an input -> what is stored of them, dequantized."""
FRACTIONS = torch.linspace(1.0, 0.5, 26).tolist()


def nearest(inner: Tensor, scale: Tensor) -> Tensor:
    return (inner / scale.clamp_min(1e-30)[:, None]).round().clamp(-127, 127)


def best_scale(inner: Tensor, moments: Tensor) -> Tensor:
    """The row scale, among fractions of the largest, with the least expected error."""
    largest = inner.abs().amax(1) / 127
    scales = torch.stack([largest * fraction for fraction in FRACTIONS])
    errors = torch.stack(
        [(inner - nearest(inner, s) * s[:, None]).square() @ moments for s in scales]
    )
    return scales.gather(0, errors.argmin(0)[None])[0]


def int8(
    weights: Sequence[Tensor], seen: Input, *, narrow: int = 16, search: bool = False, compensated: bool = False
) -> list[Tensor]:  # fmt: skip
    """As ``convert`` does; ``narrow``: columns of inputs less than 1024 wide."""
    width, moments = len(seen.gram), seen.gram.diagonal() / seen.tokens
    count = narrow if width < 1024 else most_outliers(width) if narrow else 0
    expected = moments * torch.stack([column_errors(w) for w in weights]).sum(0)
    columns = expected.argsort(descending=True)[:count]
    compensation = Compensation(seen.gram.clone(), columns, damping_for(width, seen.tokens)) if compensated else None  # fmt: skip
    found = []
    for weight in weights:
        inner = weight.index_fill(1, columns, 0.0)
        scale = best_scale(inner, moments) if search else inner.abs().amax(1) / 127
        codes = compensation.codes(inner, scale).float() if compensation else nearest(inner, scale)
        found.append((codes * scale[:, None]).index_copy(1, columns, weight[:, columns]))
    return found


def blocks(weights: Sequence[Tensor], _: Input) -> list[Tensor]:
    return [q8_0(weight) for weight in weights]


WAYS: dict[str, Stored] = {
    "default": int8,
    "no columns": partial(int8, narrow=0),
    "32 columns below a width of 1024": partial(int8, narrow=32),
    "48 columns below a width of 1024": partial(int8, narrow=48),
    "best row scale": partial(int8, search=True),
    "--rounding compensated": partial(int8, compensated=True),
    "Q8_0": blocks,
}
SPREAD = "spread: "


def spread(weight: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    padded = F.pad(weight, (0, -weight.shape[1] % 32)).unflatten(1, (-1, 32))
    noise = torch.rand(padded.shape, generator=generator) - 0.5
    moved = padded + noise * padded.abs().amax(-1, keepdim=True) / 16
    return moved.flatten(1)[:, : weight.shape[1]]


def errors_of(
    source: Path, layers: Sequence[int], grams: dict[str, dict[str, Input]]
) -> Iterator[tuple[str, str, str, float]]:
    """Way, text, linear and relative squared error; ``grams``: by text, "" for the built-in one."""
    checkpoint = open_checkpoint(source)
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    held = CheckpointWeights(checkpoint, torch.float32)
    for group in architecture.groups():
        if group[0].layer not in layers:
            continue
        exact = [held.tensor(module) for module in group]
        spread_out = [spread(weight) for weight in exact]
        ways = [(name, way, exact) for name, way in WAYS.items()]
        ways += [(SPREAD + name, WAYS[name], spread_out) for name in ("default", "Q8_0")]
        for name, way, weights in ways:
            stored = way(weights, grams[""][group[0].path])
            for text in filter(None, grams):
                gram = grams[text][group[0].path].gram
                for module, weight, value in zip(group, weights, stored, strict=True):
                    lost = weight - value
                    yield name, text, module.path, float(((lost @ gram) * lost).sum())


def main(arguments: argparse.Namespace) -> None:
    texts = dict(item.split("=", 1) for item in arguments.text)
    table: dict[str, list[str]] = {}
    for model in arguments.names:
        source = make_checkpoint(model, arguments.models)
        checkpoint = open_checkpoint(source)
        count = read_architecture(checkpoint.config, checkpoint.tensors).config.num_layers
        layers = [count * (2 * i + 1) // (2 * arguments.layers) for i in range(arguments.layers)]
        grams = {"": inputs_of(checkpoint)}
        for kind, file in texts.items():
            windows = windows_of(source, Path(file).read_text(), arguments.tokens, 256)
            grams[kind] = inputs_of(checkpoint, list(windows.unbind()))
        found: dict[tuple[str, str], dict[str, float]] = {}
        for name, text, path, error in errors_of(source, layers, grams):
            found.setdefault((name, text), {})[path] = error
        for (name, text), errors in found.items():
            base = found[SPREAD * name.startswith(SPREAD) + "default", text]
            mean = geometric_mean(errors[path] / base[path] for path in errors)
            table.setdefault(name, [name]).append(f"{mean:.2f}")
    headers = ["weights", *(f"{model}, {text}" for model in arguments.names for text in texts)]
    print(tabulate(list(table.values()), headers, disable_numparse=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=list(PACKAGES), metavar="MODEL")
    parser.add_argument("--text", action="append", required=True, metavar="KIND=FILE")
    parser.add_argument("--tokens", type=int, default=1024, help="Per text.")
    parser.add_argument("--layers", type=int, default=3, help="How many, evenly spaced.")
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "int8conv-real-models")  # fmt: skip
    with torch.inference_mode():
        main(parser.parse_args())
