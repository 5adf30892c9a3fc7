"""The model card of a converted folder: what it is, how it was made, what it needs, how close it is to its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tabulate import tabulate

from .. import __version__
from ..errors import ArgumentError, UnsupportedModelError
from ..formats.hub.download import parse_id
from ..formats.int8.folder import ConvertedFolder
from ..formats.int8.summary import inspect_folder
from ..formats.json_file import MANIFEST, read_json
from ..runtime.measure.footprint import Predictor, open_predictor

TAGS: Final = ("int8", "int8conv", "llm-int8", "w8a8")
CONTEXTS: Final = (1024, 4096, 16384, 65536)
"""Contexts of the footprint table, as far as the model has so many positions."""


def model_card(name: str, converted: ConvertedFolder, evaluation: Mapping[str, Any] | None = None) -> str:  # fmt: skip
    """The text of ``README.md`` for the repository ``name``: YAML metadata and Markdown.

    Args:
        name: ``org/name``.
        converted: the folder.
        evaluation: what ``int8conv eval --json`` printed, if it was run (see ``read_evaluation``).
    """
    source = converted.manifest.source.get("id")
    known = source if isinstance(source, str) and parse_id(source) else None
    parts = [
        _metadata(converted, known), _head(name, converted, known), _use(name), _made(converted),
        _memory(converted), *([] if evaluation is None else [_fidelity(evaluation)]),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def read_evaluation(path: Path) -> dict[str, Any]:
    """What ``int8conv eval --json`` printed.

    Raises:
        JsonFileError, NotFoundError: the file is not JSON, or cannot be read.
        ArgumentError: it is not of an evaluation against the source.
    """
    value = read_json(path, limit=MANIFEST)
    against = value.get("against")
    numbers = ("ratio", "kl_mean", "kl_worst", "top1")
    if not isinstance(against, dict) or not all(isinstance(against.get(n), int | float) for n in numbers):  # fmt: skip
        raise ArgumentError("not an evaluation against a source", file=path,
                            hint="run int8conv eval OUT --text FILE --against SRC --json > FILE")  # fmt: skip
    return value


def _metadata(converted: ConvertedFolder, source: str | None) -> str:
    from huggingface_hub import ModelCardData

    causal = any("CausalLM" in str(name) for name in converted.config.get("architectures") or ())
    data = ModelCardData(
        library_name="int8conv", tags=list(TAGS), base_model=source,
        base_model_relation="quantized" if source else None,
        pipeline_tag="text-generation" if causal else None,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---"


def _head(name: str, converted: ConvertedFolder, source: str | None) -> str:
    manifest, total = converted.manifest, inspect_folder(converted).total
    columns = sum(group.outliers for group in manifest.inputs)
    origin = f"`{source}`" if source else "another checkpoint"
    revision = manifest.source.get("revision")
    at = f", revision `{revision}`" if source and revision else ""
    return (
        f"# {name.partition('/')[2]}\n\nThis is {origin}{at}, converted by {manifest.generator} to 8-bit integers: "
        f"{len(converted.linears)} linears have int8 rows with fp32 scales, and {columns:,} outlier columns of their inputs stay in 16 bits "
        f"(LLM.int8(), arXiv:2208.07339, done once, offline). {_size(total.nbytes)}, {total.nbytes / total.nbytes_16bit:.2f}x of 16 bits. "
        "The licence is that of the original model."
    )


def _use(name: str) -> str:
    return (
        f'## Use\n\n```sh\nint8conv generate {name} --prompt "Once"\nint8conv serve {name}\n```\n\n'
        f'```python\nimport int8conv\n\nmodel = int8conv.load("{name}")\nprint(model.generate("Once").text)\n```\n\n'
        f"In transformers, after `import int8conv.hf`:\n\n```python\nimport int8conv.hf\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n```'
    )


def _made(converted: ConvertedFolder) -> str:
    manifest = converted.manifest
    rows = [["generator", manifest.generator]]
    rows += [[f"`{key}`", f"`{value}`"] for key, value in sorted(manifest.options.items())]
    if manifest.calibration:
        plain = {k: v for k, v in manifest.calibration.items() if isinstance(v, str | int | float)}
        rows += [[f"calibration: {key}", f"`{value}`"] for key, value in sorted(plain.items())]
    return f"## How it was made\n\n{_table(['', ''], rows)}"


def _memory(converted: ConvertedFolder) -> str:
    try:
        predictor = open_predictor(converted.folder, device="cuda")
    except UnsupportedModelError:
        return ""
    rows = [
        [f"{context:,}", *map(_size, (found.total, found.total_16bit)), f"{found.total / found.total_16bit:.2f}x"]
        for context in _contexts(predictor) for found in [predictor.at(context, 1)]
    ]  # fmt: skip
    heads = ["context", "this model", "fp16", "ratio"]
    return (
        f"## Memory\n\nPredicted for one sequence on a GPU, with a KV cache in 16 bits (int8conv {__version__}, "
        f"`int8conv footprint`):\n\n{_table(heads, rows)}"
    )


def _contexts(predictor: Predictor) -> list[int]:
    most = predictor.config.max_positions
    return [n for n in CONTEXTS if n <= most] or [most]


def _fidelity(evaluation: Mapping[str, Any]) -> str:
    against = evaluation["against"]
    rows = [
        ["perplexity, relative to the original", f"{against['ratio']:.5f}"],
        ["KL divergence to the original, mean", f"{against['kl_mean']:.3e} nats"],
        ["KL divergence to the original, worst", f"{against['kl_worst']:.3e} nats"],
        ["same most likely token", f"{against['top1']:.2%}"],
    ]
    return (
        f"## Fidelity\n\nMeasured with `int8conv eval` in {evaluation.get('mode')} on {evaluation.get('scored')} tokens of a text with the "
        f"checksum {evaluation.get('text')}:\n\n{_table(['', ''], rows)}"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
