"""What has to become of each case of ``cases.py``: the table, and what a converted folder can be held to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from int8conv.formats.int8.folder import ConvertedFolder, open_converted
from int8conv.formats.safetensors.stored import StoredTensor, read_array
from int8conv.formats.source.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[1]
EXAMPLE = Path("examples", "small-llama")


@dataclass(frozen=True)
class Result:
    """A source and its conversion."""

    source: Path
    out: Path


Check = Callable[[Result], str | None]
"""None, or what is wrong."""


@dataclass(frozen=True)
class Case:
    """A checkpoint, and what is right."""

    script: str
    arguments: tuple[str, ...] = ()
    refused: str | None = None
    """In the one line of ``convert`` and ``footprint``; None: both work."""
    notes: tuple[str, ...] = ()
    """What ``convert`` says besides."""
    refuses: tuple[str, ...] = ("convert", "footprint")
    """Which of the two, if one has to."""
    footprint: tuple[str, ...] = ()
    """What it says."""
    generate: str | None = None
    """In the one line with which it refuses the output; None: it works."""
    holds: tuple[Check, ...] = ()
    peak_mib: int = 700
    """Of ``convert``, with PyTorch for calibration."""
    preload: str = ""
    """A library of the case that stands for a file system; the source is the example then."""
    suffix: bytes = field(default=b"")
    """Of the source's name."""
    model_type: str = ""
    """Instead of that in the script's config."""

    @property
    def name(self) -> str:
        return " ".join(
            (self.script, *self.arguments, *filter(None, [self.preload, self.model_type]))
        )


def has(*names: str) -> Check:
    """Files that the output has."""

    def check(result: Result) -> str | None:
        missing = [name for name in names if not (result.out / name).is_file()]
        return f"not copied: {', '.join(missing)}" if missing else None

    return check


def lacks(*names: str) -> Check:
    """Files that the output does not have."""

    def check(result: Result) -> str | None:
        found = [name for name in names if (result.out / name).exists()]
        return f"copied: {', '.join(found)}" if found else None

    return check


def keeps(pattern: str, dtype: str | None = None) -> Check:
    """Tensors of the source that a pattern fits stand in the output bit for bit."""

    def check(result: Result) -> str | None:
        source = open_checkpoint(result.source).tensors
        kept = open_converted(result.out).checkpoint.tensors
        names = [name for name in source if re.search(pattern, name)]
        for name in names:
            if name not in kept:
                return f"{name} is gone"
            if kept[name].dtype != (dtype or source[name].dtype):
                return f"{name} is {kept[name].dtype}"
            if _values(source[name]).tobytes() != _values(kept[name]).tobytes():
                return f"{name} has other values"
        return None if names else f"no tensor /{pattern}/"

    return check


def lacks_tensors(pattern: str) -> Check:
    def check(result: Result) -> str | None:
        names = open_converted(result.out).checkpoint.tensors
        return next((f"has {name}" for name in names if re.search(pattern, name)), None)

    return check


def quantizes(pattern: str, count: int) -> Check:
    """So many linears whose path a pattern fits are int8."""

    def check(result: Result) -> str | None:
        paths = [p for p in open_converted(result.out).linears if re.search(pattern, p)]
        return None if len(paths) == count else f"{len(paths)} int8 linears /{pattern}/"

    return check


def same_codes(result: Result) -> str | None:
    """The linears are those of the converted example: names (the base model's prefix apart), outlier columns, codes."""
    expected = {path: _codes(x) for path, x in _example().items()}
    folder = open_converted(result.out)
    found = {
        f"model.{p.removeprefix('model.')}": _codes(_arrays(folder, p)) for p in folder.linears
    }
    if found.keys() != expected.keys():
        return f"other linears: {sorted(found.keys() ^ expected.keys())[:3]}"
    return next((f"{p} has other codes" for p in expected if found[p] != expected[p]), None)


def near_example(result: Result) -> str | None:
    """Weights are within the error of FP8 and int8 of the example's: 2 to the power of -4 of each row's largest."""
    folder = open_converted(result.out)
    source = open_checkpoint(ROOT / EXAMPLE).tensors
    for path in folder.linears:
        found, expected = _dequantized(_arrays(folder, path)), _values(source[f"{path}.weight"])
        expected = expected.astype(np.float32)
        error = np.abs(found - expected).max(1) / np.abs(expected).max(1)
        if error.max() > 1 / 16:
            return f"{path} is off by {error.max():.2f}"
    return None if len(folder.linears) == 42 else f"{len(folder.linears)} int8 linears"


def near_powers_of_two(result: Result) -> str | None:
    """Weights are the codes times scales in powers of two for blocks of 128 x 128, within int8's error."""
    import torch
    from safetensors.torch import load_file

    source = load_file(result.source / "model.safetensors")
    folder = open_converted(result.out)
    for path in folder.linears:
        codes, scale = (source[f"{path}.{kind}"].float() for kind in ("weight", "weight_scale_inv"))
        wide = torch.kron(scale, torch.ones(128, 128))[: codes.shape[0], : codes.shape[1]]
        expected = (codes * wide).numpy()
        error = np.abs(_dequantized(_arrays(folder, path)) - expected).max(1)
        if (error > np.abs(expected).max(1) / 127).any():
            return f"{path} is not codes times scales"
    return None if len(folder.linears) == 42 else f"{len(folder.linears)} int8 linears"


def like_transformers(result: Result) -> str | None:
    """The source's logits are those of transformers, which is not asked where it is not installed."""
    command = [sys.executable, "-c", _LOGITS, str(result.source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"transformers: {done.stderr.strip().splitlines()[-1]}"
    difference = float(done.stdout.split()[-1])
    return None if difference <= 1e-3 else f"logits differ from transformers' by {difference:.4f}"


_LOGITS = """
import sys, torch
try:
    from transformers import AutoModelForCausalLM
except ImportError:
    print(0); sys.exit()
import int8conv
ids = torch.arange(5, 45)[None] * 7
theirs = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.inference_mode():
    print(float((theirs(ids).logits - int8conv.load(sys.argv[1]).logits(ids)).abs().max()))
"""


def _values(tensor: StoredTensor) -> npt.NDArray[np.generic]:
    return read_array(tensor)


_Arrays = tuple[npt.NDArray[np.generic], ...]


def _arrays(folder: ConvertedFolder, path: str) -> _Arrays:
    """Codes, scales, columns and their weights."""
    linear = folder.linears[path]
    parts = (linear.weight, linear.scale, linear.outlier_index, linear.outlier_weight)
    return tuple(np.zeros((0, 0)) if t is None else read_array(t) for t in parts)


def _codes(arrays: _Arrays) -> tuple[bytes, ...]:
    return tuple(array.tobytes() for array in arrays[:3])


def _dequantized(arrays: _Arrays) -> npt.NDArray[np.float32]:
    codes, scale, columns, weights = arrays
    values = codes[:, :, 0].astype(np.float32) * scale[:, None]
    if columns.size:
        if weights.dtype == np.uint16:  # the bits of BF16
            weights = (weights.astype(np.uint32) << 16).view(np.float32)
        values[:, columns] = weights.astype(np.float32)
    return np.asarray(values, np.float32)


@cache
def _example() -> dict[str, _Arrays]:
    with tempfile.TemporaryDirectory() as work:
        out = Path(work, "int8")
        command = [sys.executable, "-m", "int8conv", "convert", str(EXAMPLE), str(out)]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        folder = open_converted(out)
        return {path: _arrays(folder, path) for path in folder.linears}


def same_as(name: str, value: object, file: str = "generation_config.json") -> Check:
    """A key of a JSON file."""

    def check(result: Result) -> str | None:
        found = json.loads((result.out / file).read_text()).get(name)
        return None if found == value else f"{file}: {name} is {found!r}"

    return check


_UNKNOWN = "unknown model_type"
_NO_LAYERS, _OTHER = "'num_hidden_layers'.*found None", "another_deepseek"
"""The configs of two cases lack what any DeepSeek-V3 has; as a type that the runtime does not know, it is not needed."""
_CANNOT = (r"weights", r"KV cache.*unknown")
_ADAPTER = r"an adapter, not a model.*x/y.*merge"
_QUANTIZED = "the source is already quantized"
_NO_HEAD = "no head"
_FP8 = (near_example, lacks_tensors(r"(input|output|kv|k|v|[.])_?scale(_inv)?$"))

TABLE = (
    Case("adapter_no_config", refused=_ADAPTER),
    Case("adapter_only", refused=_ADAPTER),
    Case("appledouble", holds=(same_codes, lacks("._model-00001-of-00002.safetensors", "._config.json"))),
    Case("attn_mask_inf", footprint=_CANNOT, generate=_UNKNOWN, holds=(quantizes("fc1", 2), lacks_tensors("attn_mask"))),
    Case("big_txt", notes=("not copied.*train.txt",), holds=(same_codes, lacks("train.txt"))),
    Case("e_score_bias", refused=_NO_LAYERS),
    Case("e_score_bias", model_type=_OTHER, footprint=_CANNOT, generate=_UNKNOWN, peak_mib=150, holds=(
        keeps(r"e_score_correction_bias|A_log|dt_bias", "F32"), keeps(r"mlp\.gate\.weight|lm_head|embed"),
        quantizes("shared_experts", 6),
    )),
    Case("embedding_model", notes=(_NO_HEAD,), generate=_NO_HEAD, holds=(same_codes,)),
    Case("f64", holds=(same_codes,)),
    Case("f64_one", holds=(same_codes, like_transformers)),
    *(Case(name, holds=_FP8) for name in (
        "fp8_block64", "fp8_dot_scale", "fp8_kv_scale", "fp8_mixed", "fp8_modelopt",
    )),
    Case("fp8_ue8m0", holds=(near_powers_of_two, *_FP8[1:])),
    Case("fused_experts", holds=(quantizes("experts", 48), like_transformers)),
    Case("fused_experts", ("original",), holds=(quantizes("experts", 48), like_transformers)),
    Case("gen_topk", holds=(same_codes, same_as("top_k", -1))),
    Case("head_differs", notes=("different head.*kept",), holds=(keeps("lm_head"), like_transformers)),
    Case("head_only", holds=(same_codes, like_transformers)),
    Case("head_same", holds=(same_codes, lacks_tensors("lm_head"), like_transformers)),
    Case("latin1_path", suffix=b"_\xee", holds=(same_codes,)),
    Case("lfs_bin", refused="Git LFS pointer.*git lfs pull"),
    Case("lfs_tokenizer", refused="Git LFS pointer.*git lfs pull", refuses=("convert",)),
    Case("many_tensors", refused=_NO_LAYERS),
    Case("many_tensors", model_type=_OTHER, footprint=_CANNOT, generate=_UNKNOWN, peak_mib=500, holds=(quantizes("experts", 61 * 256 * 3),)),
    Case("merged_lora_f32", holds=(near_example, like_transformers)),
    *(Case("meta_none", kind, holds=(same_codes,)) for kind in ((), ("null",), ("odd",))),
    Case("mistral_no_index", notes=("consolidated",), holds=(same_codes,)),
    Case("no_prefix_tied", holds=(same_codes, like_transformers)),
    Case("nolock", preload="flock.so", notes=("lock",), holds=(same_codes,)),
    Case("nolock", preload="dirsync.so", notes=("flush|fsync",), holds=(same_codes,)),
    Case("odd_bias", notes=("q_proj.bias.*not mentioned in the config",), holds=(same_codes, keeps(r"_proj\.bias"), like_transformers)),
    Case("odd_names", holds=(same_codes, keeps("scalar|mask|pos|zero"))),
    Case("odd_shards", holds=(same_codes,)),
    Case("odd_shards", ("one",), holds=(same_codes,)),
    Case("old_config", notes=("keys that have no effect",), holds=(same_codes,)),
    Case("padded_vocab", refused=r"embed_tokens.*\[8192, 256\].*\[8256, 256\]"),
    Case("prefixes", ("_orig_mod.",), refused="'_orig_mod' from torch.compile"),
    Case("prefixes", ("module.",), refused="'module.' from DistributedDataParallel"),
    Case("prefixes", ("base_model.model.",), refused=r"'base_model.model.' from peft \(merge"),
    *(Case("prefixes", (prefix,), refused=rf"tensor names.*expected 'model\.', found '{prefix}.*rename") for prefix in (
        "model.language_model.", "language_model.", "transformer.",
    )),
    *(Case("quantised", (kind, family), refused=_QUANTIZED) for family in ("llama", "other") for kind in (
        "bnb8", "bnb4", "gptq", "ct_int", "quanto", "hqq", "mlx", "eetq", "mxfp4", "nvfp4", "torchao",
    )),
    Case("qwen_bpe", holds=(has("vocab.json", "merges.txt", "tokenizer_config.json"),)),
    Case("remote_code", holds=(same_codes, lacks("README.md"), has(
        "configuration_my.py", "modeling_my.py", "tokenization_my.py", "source.spm", "tokenizer.model.v3",
        "vocab.bpe", "qwen.tiktoken", "additional_chat_templates/rag.jinja",
    ))),
    Case("reward_model", notes=(_NO_HEAD,), generate=_NO_HEAD, holds=(same_codes, keeps("score"))),
    Case("router_names", footprint=_CANNOT, generate=_UNKNOWN, holds=(
        keeps(r"router|shared_head|embed|lm_head|medusa_head|mlp\.gate|visual|vision_tower"),
        quantizes("q_proj|eh_proj", 2),
    )),
    Case("single_and_index", notes=("left out.*index",), holds=(same_codes, like_transformers)),
    Case("single_and_stale_index", notes=("left out.*index",), holds=(same_codes,)),
    Case("stale_quant_files", notes=("adapter_config.json",), holds=(same_codes, has("vocab.txt"), lacks(
        "hf_quant_config.json", "quantize_config.json", "quant_config.json", "adapter_config.json",
        "trainer_state.json", "requirements.txt",
    ))),
    Case("unlisted", notes=("index does not list them",), holds=(same_codes, keeps(r"model\.norm"), like_transformers)),
    Case("unsloth_config", notes=("keys that have no effect.*unsloth_fixed",), holds=(same_codes,)),
    Case("wrong_shard", holds=(same_codes, like_transformers)),
)  # fmt: skip
