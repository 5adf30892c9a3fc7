"""Every causal type of the installed transformers: what ``convert`` makes of each tensor, against what the tensor is.

python -m benchmarks.census --headers > tests/convert/by_name/census.json   # names, shapes and kinds, of few layers at full width
python -m benchmarks.census                                                # converts small random models, verifies each
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import int8conv
from int8conv.errors import Int8convError

_EXPERTS: Final = 40
"""No other size is the same, and it is not small enough to stay in 16 bits for that alone."""
_FEW: Final[dict[str, Any]] = {
    "num_hidden_layers": 4, "depth": 2, "n_layer": 4, "n_layers": 4, "num_layers": 4, "decoder_layers": 4, "encoder_layers": 4,
    "num_experts": _EXPERTS, "num_local_experts": _EXPERTS, "n_routed_experts": _EXPERTS, "moe_num_experts": _EXPERTS, "num_experts_per_tok": 2,
    "vocab_size": 1024, "vocab_size_per_layer_input": 1024, "num_kv_shared_layers": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Keys of all models: few layers and experts, at the width of their class's defaults."""
_SMALL: Final[dict[str, Any]] = _FEW | {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "intermediate_size": 96, "num_attention_heads": 4, "n_head": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "n_positions": 64, "ffn_dim": 96,
    "moe_intermediate_size": 48, "vocab_size": 128, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8,
    "moe_num_experts": 8,
}  # fmt: skip
_EXTRA: Final[dict[str, dict[str, Any]]] = {
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "zaya": {"num_experts_per_tok": 1},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 1408},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "prophetnet": {"num_encoder_layers": 4, "num_decoder_layers": 4},
    "reformer": {"is_decoder": True},
}
"""Keys without which a type is not built."""
_SECTIONS: Final = ("text_config", "vision_config", "audio_config", "llm_config", "encoder_config")


Header = tuple[str, str, tuple[int, ...]]
"""Name, kind and shape of a tensor."""
_NUMBER: Final = re.compile(r"(?<![\w])\d+(?![\w])")


def causal_types() -> list[str]:
    """The types that ``AutoModelForCausalLM`` knows."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def built(model_type: str, changes: dict[str, Any], device: str) -> Any:
    """A random model with the changes that its config knows; nothing is allocated on ``meta``."""
    default = AutoConfig.for_model(model_type)
    known = _merged(changed(default, changes), _EXTRA.get(model_type, {}))
    if "num_decoder_layers" in known:
        known.pop("num_hidden_layers", None)
    config = AutoConfig.for_model(model_type, **known)
    torch.manual_seed(0)
    if device != "meta":
        return AutoModelForCausalLM.from_config(config)
    with torch.device("meta"), no_init_weights():
        return AutoModelForCausalLM.from_config(config)


def _is_settable(config: Any, key: str) -> bool:
    try:
        found = hasattr(config, key)
    except NotImplementedError:  # XLNet has no limit of positions
        return False
    computed = getattr(type(config), config.attribute_map.get(key, key), None)
    return found and not (isinstance(computed, property) and computed.fset is None)


def _merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """``values | more``, section by section."""
    inner = {
        key: _merged(values[key], value)
        for key, value in more.items()
        if isinstance(value, dict) and isinstance(values.get(key), dict)
    }
    return values | more | inner


def changed(default: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes that a config knows, in its sections too, with lists of layers to match."""
    default.allow_global_per_layer_attribute_access = True
    known = {key: value for key, value in changes.items() if _is_settable(default, key)}
    layers = known.get("num_hidden_layers")
    if known.get("num_kv_shared_layers") and not default.num_kv_shared_layers:
        del known["num_kv_shared_layers"]
    listed = ("layer_types", "layers_block_type", "mlp_layer_types", "attn_type_list", "no_rope_layers")  # fmt: skip
    each = [key for key, value in vars(default).items() if isinstance(value, list) and layers and len(value) == default.num_hidden_layers]  # fmt: skip
    for key in dict.fromkeys((*listed, *each)):
        value, name = getattr(default, key, None), default.attribute_map.get(key, key)
        settable = not isinstance(getattr(type(default), name, None), property)
        if layers and settable and isinstance(value, list) and len(value) > layers:
            known[key] = _mixed(value, layers)
    for name in _SECTIONS:
        section = getattr(default, name, None)
        if section is not None and not isinstance(section, dict):
            few = changed(section, {key: value for key, value in changes.items() if "token" not in key})  # fmt: skip
            if getattr(section, "pad_token_id", None) is not None:
                few["pad_token_id"] = 0
            known[name] = section.to_dict() | few
            known[name].pop("per_layer_config", None)  # follows from the kinds of layers
    return known


def _mixed(kinds: list[Any], layers: int) -> list[Any]:
    """So many layers with each kind at least once."""
    each = list(dict.fromkeys(map(str, kinds)))[:layers]
    picked = [next(kind for kind in kinds if str(kind) == name) for name in each]
    return (picked * layers)[:layers]


_NORM: Final = re.compile(r"Norm")
_ROUTER: Final = re.compile(r"Router|Gate$|TopK|Gating$")
_RECURRENT: Final = re.compile(
    r"Mamba|Delta|LinearAttention|Recurrent|Rwkv|KDA|Lightning|Ssm|Indexer", re.IGNORECASE
)
_LINEAR: Final = re.compile(r"Linear$|Conv1D$")


def kind_of(model: Any, name: str, tensor: torch.Tensor) -> str:
    """What a parameter is, by the classes of the modules that it belongs to."""
    path = name.rpartition(".")[0]
    owner = model.get_submodule(path)
    head = model.get_output_embeddings()
    parts = path.split(".")
    above = [type(model.get_submodule(".".join(parts[:i]))).__name__ for i in range(1, len(parts))]
    if head is not None and owner is head:
        return "head"
    if isinstance(owner, nn.Embedding) or "Embedding" in type(owner).__name__:
        return "embedding"
    if tensor.ndim < 2:
        return "vector"
    if _NORM.search(type(owner).__name__):
        return "norm"
    if any(_ROUTER.search(each) for each in (*above[-1:], type(owner).__name__)):
        return "router"
    if "conv" in type(owner).__name__.lower() and not _LINEAR.search(type(owner).__name__):
        return "convolution"
    if tensor.ndim == 2 and (tensor.shape[0] == _EXPERTS or _is_narrow_recurrence(above, tensor)):
        return "router" if tensor.shape[0] == _EXPERTS else "recurrence"
    if tensor.ndim == 2 and _LINEAR.search(type(owner).__name__):
        return "linear"
    if tensor.ndim == 3 and "xpert" in type(owner).__name__:
        return "experts"
    return "parameter"


def _is_narrow_recurrence(above: list[str], tensor: torch.Tensor) -> bool:
    """Whether a linear gives decays, step sizes and the like: its output or its input has few channels."""
    return any(map(_RECURRENT.search, above[-2:])) and 8 * min(tensor.shape) <= max(tensor.shape)


def stored(model: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Names, kinds and tensors of a model's parameters, as ``save_pretrained`` names them."""
    tensors, kinds, seen = {}, {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:  # tied
            continue
        seen.add(id(tensor))
        tensors[name] = tensor.detach()
        kind = kind_of(model, name, tensor)
        for new in _as_saved(model, {name: tensor.detach()}):
            kinds[new] = kind
    for name, tensor in _as_saved(model, tensors).items():
        yield name, kinds.get(name, "parameter"), tensor


def _as_saved(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    try:
        return dict(revert_weight_conversion(model, tensors))
    except Exception:  # one alone of several that are stored as one: its name within the model
        return tensors


def headers(model_type: str) -> dict[str, Any]:
    """Config, names, shapes and kinds."""
    model = built(model_type, _FEW, "meta")
    tensors = [(name, kind, tuple(tensor.shape)) for name, kind, tensor in stored(model)]
    return {
        "config": model.config.to_diff_dict() | {"model_type": model.config.model_type},
        "tensors": packed(tensors),
    }


def packed(tensors: list[Header]) -> dict[str, list[Any]]:
    """Names with numbers replaced by ``#``, and for each kind and shape the numbers: ``"4.8"`` if all below these, or a list."""
    found: dict[str, dict[tuple[Any, ...], list[tuple[int, ...]]]] = {}
    for name, kind, shape in tensors:
        pattern, numbers = _NUMBER.sub("#", name), tuple(map(int, _NUMBER.findall(name)))
        found.setdefault(pattern, {}).setdefault((kind, *shape), []).append(numbers)
    return {
        pattern: [[*what, _short(numbers)] for what, numbers in groups.items()]
        for pattern, groups in found.items()
    }


def _short(numbers: list[tuple[int, ...]]) -> Any:
    counts = [max(column) + 1 for column in zip(*numbers, strict=True)]
    full = list(itertools.product(*map(range, counts)))
    return counts if sorted(numbers) == full else [list(each) for each in numbers] + [[]]


def unpacked(patterns: dict[str, list[Any]]) -> Iterator[Header]:
    """The inverse of ``packed``."""
    for pattern, groups in patterns.items():
        for kind, *shape, numbers in groups:
            listed = bool(numbers) and isinstance(numbers[-1], list)
            each = numbers[:-1] if listed else itertools.product(*map(range, numbers))
            for one in each:
                yield pattern.replace("#", "{}").format(*one), kind, tuple(shape)


def converted(model_type: str) -> str:
    """Convert a small random model, and verify it against its source; what it became."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        built(model_type, _SMALL, "cpu").half().save_pretrained(source)
        report = int8conv.convert_checkpoint(source, out)
        int8conv.compare(out, source)
        return f"{report.quantized} tensors to int8"


def each(function: Callable[[str], Any], types: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Results by type, and why the others have none."""
    results, failed = {}, {}
    for model_type in types:
        try:
            results[model_type] = function(model_type)
        except Int8convError as error:
            failed[model_type] = f"REFUSED: {error}"
        except Exception as error:  # transformers' own checks, of any class
            failed[model_type] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
    return results, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--headers", action="store_true", help="print names, shapes and kinds")
    parser.add_argument("types", nargs="*", help="all if none is given")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    types = options.types or causal_types()
    if options.headers:
        results, failed = each(headers, types)
        sys.stdout.write(json.dumps(results))
    else:
        results, failed = {}, {}
        for model_type in types:  # told one by one: it takes minutes
            one, other = each(converted, [model_type])
            for result in one.values():
                print(f"{model_type:32} {result}", flush=True)
            results, failed = results | one, failed | other
    for model_type, reason in failed.items():
        print(f"{model_type:32} {reason}", file=sys.stderr)
    print(f"{len(results)} of {len(results) + len(failed)}", file=sys.stderr)


if __name__ == "__main__":
    main()
