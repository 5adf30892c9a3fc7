"""How W8A8 may quantize activations: a scale per token or per token and block of channels, with and without the outlier fallback.

    python benchmarks/activation_scales.py MODEL --text EVAL.txt [--other OTHER.txt] [--tokens 1024] [--out FILE.md]

Converts MODEL in three ways: by default; by default with its outlier columns quantized all the same, so that every channel that
calibration found is one it missed ("columns emptied"); and with statistics of OTHER, text of another kind. On each, every way
of quantizing activations is simulated in float32 over the same windows of EVAL.txt, against the source. Codes and scales are those
of the method, and products are exact in float32 sums of this size, so the error is the method's.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from fidelity import score, windows_of
from tabulate import tabulate
from torch import Tensor

import int8conv
from int8conv.convert.outliers.calibrate import calibrate
from int8conv.formats.int8.folder import ConvertedFolder, open_converted
from int8conv.formats.int8.stats import write_stats
from int8conv.kernels.weight import MixedWeight, dequantized_rows
from int8conv.runtime.backends.parts import Projection
from int8conv.runtime.weights.weights import ConvertedWeights, Weights

Method = Callable[[Tensor, MixedWeight], Tensor]
"""float32 ``[tokens, in]`` without outlier channels -> what its codes stand for."""


def exact(x: Tensor, _: MixedWeight) -> Tensor:
    return x


def digits(x: Tensor, _: MixedWeight) -> Tensor:
    """Two int8 digits, scaled by the token's largest value."""
    step = (x.abs().amax(1, keepdim=True) / (127 * 256)).clamp_min(1e-30)
    return (x / step).round() * step


def scaled(block: int | None, *, fallback: bool = False) -> Method:
    """A scale per token and ``block`` channels (None: all of them)."""

    def method(x: Tensor, weight: MixedWeight) -> Tensor:
        over = x.abs() >= (weight.threshold if fallback and weight.threshold else torch.inf)
        small, channels = x.masked_fill(over, 0.0), x.shape[1]
        size = block or channels
        blocks = torch.nn.functional.pad(small, (0, -channels % size)).view(len(x), -1, size)
        step = (blocks.abs().amax(2, keepdim=True) / 127).clamp_min(1e-30)
        return ((blocks / step).round() * step).flatten(1)[:, :channels].where(~over, x)

    return method


def by_tails(heavy: Method, light: Method) -> Method:
    """One method for heavy-tailed inputs, another one for the rest."""
    return lambda x, weight: (heavy if weight.activation_bits == 16 else light)(x, weight)


TOKEN, NET = scaled(None), scaled(None, fallback=True)
METHODS: dict[str, Method] = {
    "weights alone (W8A16)": exact,
    "heavy tails in 16 bits, rest per token, fallback (before)": by_tails(exact, NET),
    "heavy tails in two digits, rest per token, fallback (CPU)": by_tails(digits, NET),
    "heavy tails in two digits, rest in blocks of 128": by_tails(digits, scaled(128)),
    "all per token": TOKEN,
    "all per token, fallback": NET,
    "heavy tails in blocks of 64, rest per token, fallback": by_tails(scaled(64), NET),
    "heavy tails in blocks of 128, rest per token, fallback": by_tails(scaled(128), NET),
    "heavy tails in blocks of 64, rest in blocks of 128 (GPU)": by_tails(scaled(64), scaled(128)),
    "the same, fallback": by_tails(scaled(64), scaled(128, fallback=True)),
    "all in blocks of 64": scaled(64),
    "all in blocks of 128": scaled(128),
    "all in blocks of 128, fallback": scaled(128, fallback=True),
    "all in blocks of 256": scaled(256),
}


class Simulated(ConvertedWeights):
    """A converted folder with activations of one method."""

    def __init__(self, converted: ConvertedFolder, method: Method) -> None:
        super().__init__(converted, torch.float32, "w8a8")
        self._method = method

    def _quantized(self, mixed: MixedWeight, bias: Tensor | None, sizes: Sequence[int]) -> Projection:  # fmt: skip
        full = dequantized_rows(mixed, slice(None)).t()
        columns = torch.empty(0) if mixed.outlier_index is None else mixed.outlier_index
        columns = columns.long()

        def project(x: Tensor, *, residual: Tensor | None = None) -> Sequence[Tensor]:
            rows = x.reshape(-1, x.shape[-1])
            values = self._method(rows.index_fill(1, columns, 0.0), mixed)
            values = values.index_copy(1, columns, rows.index_select(1, columns))
            y = values @ full if bias is None else torch.addmm(bias, values, full)
            y = y.reshape(*x.shape[:-1], -1)
            return y.split(list(sizes), -1) if residual is None else [residual + y]

        return project


def converted(model: Path, out: Path, text: Path | None, columns: bool) -> ConvertedFolder:
    stats = out.with_suffix(".safetensors")
    write_stats(calibrate(model, texts=[text] if text else (), tokens=4096), stats)
    more = {} if columns else {"max_outliers": 0.0}
    int8conv.convert_checkpoint(model, out, stats=stats, **more)  # type: ignore[arg-type]
    return open_converted(out)


def main(options: argparse.Namespace) -> None:
    windows = windows_of(options.model, options.text.read_text(), options.tokens, options.window)
    kinds: dict[str, tuple[Path | None, bool]] = {"default": (None, True), "columns emptied": (None, False)}  # fmt: skip
    if options.other:
        kinds[f"calibrated on {options.other.stem}"] = (options.other, True)
    kinds = {n: kind for n, kind in kinds.items() if re.search(options.conversions, n)}
    chosen = {n: m for n, m in METHODS.items() if re.search(options.only, n)}
    table: dict[str, list[str]] = {name: [] for name in chosen}
    for text, columns in kinds.values():
        with tempfile.TemporaryDirectory() as scratch:
            folder = converted(options.model, Path(scratch) / "int8", text, columns)
            candidates: dict[str, Weights] = {n: Simulated(folder, m) for n, m in chosen.items()}
            figures = score(options.model, candidates, windows)
        for name, cells in table.items():
            cells += [f"{1e3 * figures[name]['kl']:.2f}", f"{figures[name]['ratio']:.4f}"]
    headers = ["activations", *(cell for kind in kinds for cell in (f"{kind}: KL, 1e-3", "ratio"))]
    text = tabulate([[n, *cells] for n, cells in table.items()], headers, "github", disable_numparse=True)  # fmt: skip
    text = f"{options.model.name}, {windows.numel()} tokens of {options.text.name}\n\n{text}\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="To evaluate on.")
    parser.add_argument("--other", type=Path, help="Text of another kind, to calibrate on.")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--only", default="", metavar="REGEX", help="Methods whose name matches.")
    parser.add_argument("--conversions", default="", metavar="REGEX", help="Conversions whose name matches.")  # fmt: skip
    parser.add_argument("--out", type=Path)
    main(parser.parse_args())
