"""From a config to the modules of the decoder: order, names, shapes and kinds; from headers alone, without torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...errors import ShapeError, UnsupportedModelError
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import Checkpoint
from .config import PER_LAYER, DecoderConfig, Experts, Heads, Rope
from .families import Family, find_family
from .latent import Latent
from .modules import Kind, Module, linears
from .raw_config import RawConfig
from .recurrent_modules import check_recurrence, recurrent_modules
from .reference_fields import FIELDS
from .stored import as_stored
from .stream_modules import modules_after_layers, modules_before_layers, modules_of_layer
from .wrapped import is_wrapper, text_part

__all__ = [
    "MOST_EXPERTS",
    "MOST_HEAD_DIM",
    "Architecture",
    "Kind",
    "Module",
    "find_tensor",
    "modules_of",
    "read_architecture",
    "shape_error",
]

MOST_HEAD_DIM: Final = 1 << 16
"""Limit on channels per head, for which rotary tables are created before any tensor is read; real heads have a few hundred."""
MOST_EXPERTS: Final = 100_000
"""Limit on experts in all layers; the largest models have 25,000."""
_KEYS_SHOWN: Final = 8
_KEY_LENGTH: Final = 40
_UNTIED: Final = "the config ties the head to the token embedding, but the checkpoint has a different head, which is kept and used"
_TEXT_ONLY: Final = "a multimodal model: its text part runs, from prompts without images or sound; the other parts stay in 16 bits"
_INDEXED: Final = (
    "contexts end at {} positions, up to which attention is dense: the indexer is kept but not used"
)
_HEADLESS: Final = "the checkpoint has no head, like embedding and reward models: it can be converted but cannot generate text"


@dataclass(frozen=True)
class Architecture:
    """A checkpoint's decoder: its parameters and modules."""

    family: Family
    config: DecoderConfig
    modules: tuple[Module, ...]
    notes: tuple[str, ...] = ()
    """Notes for the user on config and head."""
    untied: bool = False
    """Whether the config ties the head to the token embedding although the checkpoint has a head, which is used."""

    def groups(self) -> Iterator[tuple[Module, ...]]:
        """The quantized linears by shared input, in order."""
        by_path = {m.path: m for m in self.modules}
        for module in self.modules:
            if module.group and module.path == module.group[0]:
                yield tuple(by_path[path] for path in module.group)

    def layer(self, layer: int) -> dict[str, Module]:
        """The modules of a layer by role."""
        return {m.role: m for m in self.modules if m.layer == layer}

    def outside(self) -> dict[str, Module]:
        """The modules outside the layers by role."""
        return {m.role: m for m in self.modules if m.layer is None}

    @property
    def has_head(self) -> bool:
        """Whether it gives logits."""
        return ("embed" if self.config.tied else "head") in self.outside()

    def head(self) -> Module:
        """The module that computes logits: the head, or the token embedding if they are tied.

        Raises:
            UnsupportedModelError: the checkpoint has none.
        """
        modules = self.outside()
        role = "embed" if self.config.tied else "head"
        if role not in modules:
            raise UnsupportedModelError(
                f"the checkpoint has no head, '{self.family.names['head']}.weight': it is an embedding or reward model, "
                "which computes no logits and generates no text"
            )
        return modules[role]


def read_architecture(
    config: dict[str, Any], tensors: Collection[str], file: object = "config.json"
) -> Architecture:
    """The decoder described by a ``config.json``, with names as in the checkpoint's tensors; of a multimodal model, its text part.

    Args:
        config: the parsed file.
        tensors: names of the checkpoint's tensors, which show whether there is a prefix of the base model and a head. As in
            transformers, a head next to a tied embedding is used: leave its name out if it is the same matrix.
        file: file name for errors.

    Raises:
        UnknownFamilyError: the ``model_type`` is unknown.
        UnsupportedFeatureError: a key of the config asks for a feature that the decoder lacks.
        JsonFileError: a key is missing or malformed.
        WrappedNamesError: the tensors' names begin as those of another model.
    """
    wrapped, config = is_wrapper(config), text_part(config)
    family = find_family(config, file)
    raw = RawConfig(config, file)
    decoder = family.read_config(raw)
    passed_over = raw.finish(FIELDS[family.model_type])
    _check_sizes(decoder, raw)
    stored = as_stored(family, decoder, tensors, file, wrapped=wrapped)
    modules = modules_of(stored.config, stored.family.names)
    if stored.headless:
        modules = (module for module in modules if module.kind != "head")
    notes = [_TEXT_ONLY] if wrapped else []
    notes += [_passed_over(passed_over)] if passed_over else []
    notes += [_INDEXED.format(decoder.max_positions)] if decoder.indexed else []
    notes += [_UNTIED] if stored.untied else []
    notes += [_HEADLESS] if stored.headless else []
    return Architecture(stored.family, stored.config, tuple(modules), tuple(notes), stored.untied)


def _passed_over(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    shown = ", ".join(_shortened(key) for key in keys[:_KEYS_SHOWN])
    return f"config.json has keys that have no effect in this family: {shown}{more}"


def _shortened(key: str) -> str:
    return key if len(key) <= _KEY_LENGTH else f"{key[:_KEY_LENGTH]}..."


def find_tensor(checkpoint: Checkpoint, module: Module, kind: str = "weight") -> StoredTensor:
    """The tensor of a module, with the shape that the config implies.

    Raises:
        MissingTensorError: it is absent.
        ShapeError: it has another shape.
    """
    stored = checkpoint.tensor(module.tensor_name(kind))
    expected = module.shape if kind == "weight" else module.shape[:1]
    if kind == "weight" and (module.transposed or stored.name in checkpoint.transposed):
        expected = expected[::-1]
    if stored.shape != expected:
        raise shape_error(stored, expected, stored.shape)
    return stored


def shape_error(
    stored: StoredTensor, expected: tuple[int, ...], found: tuple[int, ...]
) -> ShapeError:
    """The error for a tensor without its module's shape."""
    return ShapeError(
        "the shape does not match config.json", file=stored.file, tensor=stored.name,
        expected=list(expected), found=list(found),
    )  # fmt: skip


def _check_sizes(config: DecoderConfig, raw: RawConfig) -> None:
    for name in PER_LAYER:
        if len(getattr(config, name)) not in (0, config.num_layers):
            raise raw.unsupported("layer_types", len(getattr(config, name)), f"{config.num_layers}")
    for heads in {Heads(config.num_kv_heads, config.head_dim), *config.heads}:
        if config.num_heads % heads.count:
            raise raw.unsupported(
                "num_key_value_heads", heads.count, f"a divisor of {config.num_heads}"
            )
        if heads.size > MOST_HEAD_DIM:
            raise raw.unsupported("head_dim", heads.size, f"at most {MOST_HEAD_DIM:,}")
    for rope, local in ((config.rope, False), (config.local_rope, True)):
        if rope is not None:
            _check_rotated(rope, config.rotated_size(local=local), raw)
    if config.latent is not None and config.latent.query + config.latent.value > MOST_HEAD_DIM:
        raise raw.unsupported("v_head_dim", config.latent.value, f"at most {MOST_HEAD_DIM:,}")
    check_recurrence(config, raw)
    experts = config.experts
    if experts is not None and experts.used > experts.count:
        raise raw.unsupported("num_experts_per_tok", experts.used, f"1 to {experts.count}")
    if experts is not None and experts.groups > 1:
        _check_groups(experts, raw)
    if experts is not None and experts.count * config.num_layers > MOST_EXPERTS:
        most = f"at most {MOST_EXPERTS // config.num_layers} in each of {config.num_layers} layers"
        raise raw.unsupported("num_experts", experts.count, most)


def _check_rotated(rope: Rope, size: int, raw: RawConfig) -> None:
    rotated = rope.rotated(size)
    if rotated % 2 or not 0 < rotated <= size:
        raise raw.unsupported("head_dim", size, "an even number of rotated channels")
    if rope.kind == "dynamic" and rotated == 2:
        raise raw.unsupported("head_dim", size, "more than 2 rotated channels")
    for factors in (rope.short_factors, rope.long_factors):
        if factors and len(factors) != rotated // 2:
            raise raw.unsupported("rope_scaling", len(factors), f"{rotated // 2} factors")


def _check_groups(experts: Experts, raw: RawConfig) -> None:
    if experts.count % experts.groups or experts.count < 2 * experts.groups:
        expected = f"a divisor of {experts.count} with 2 experts per group"
        raise raw.unsupported("n_group", experts.groups, expected)
    least = -(-experts.used * experts.groups // experts.count)
    if not least <= experts.groups_used <= experts.groups:
        raise raw.unsupported("topk_group", experts.groups_used, f"{least} to {experts.groups}")


def modules_of(config: DecoderConfig, names: Mapping[str, str]) -> Iterator[Module]:
    """The modules of a decoder, head included, under a family's names."""
    c = config
    hidden = c.hidden_size
    yield Module(
        "embed", names["embed"], "embedding", None, (c.vocab_size, c.embedding_size), False
    )
    if c.rope is None and not c.alibi:
        table = (c.max_positions + c.position_offset, hidden)
        yield Module("positions", names["positions"], "embedding", None, table, False)
    if c.embedding_norm:
        yield _norm(c, "embedding_norm", names, None)
    if c.embedding_size != hidden:
        shape = (hidden, c.embedding_size)
        yield Module("project_in", names["project_in"], "projection", None, shape, False)
    yield from modules_before_layers(c, names)
    for layer in range(c.num_layers):
        here = {role: name.replace("{}", str(layer), 1) for role, name in names.items()}
        yield from _layer(c, layer, here)
    yield from modules_after_layers(c, names)
    if c.final_norm:
        yield _norm(c, "final_norm", names, None)
    if c.embedding_size != hidden:
        shape = (c.embedding_size, hidden)
        yield Module("project_out", names["project_out"], "projection", None, shape, False)
    if not c.tied:
        shape = (c.vocab_size, c.embedding_size)
        yield Module("head", names["head"], "head", None, shape, c.head_bias)


def _norm(
    c: DecoderConfig,
    role: str,
    names: Mapping[str, str],
    layer: int | None,
    size: int | None = None,
) -> Module:
    has_bias = c.norm == "layer" if c.norm_bias is None else c.norm_bias
    return Module(role, names[role], "norm", layer, (size or c.hidden_size,), has_bias)


def _layer(c: DecoderConfig, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    if c.has_mixer(layer):
        if c.norms in ("before", "around", "after sum"):
            yield _norm(c, "attn_norm", names, layer)
        if c.is_recurrent(layer):
            yield from recurrent_modules(c, layer, names)
        if c.latent is not None:
            yield from _latent(c, c.latent, layer, names)
        elif c.has_attention(layer):
            yield from _attention(c, layer, names)
        if c.norms in ("around", "after"):
            yield _norm(c, "attn_post_norm", names, layer)
    if c.has_ffn(layer):
        yield from _whole_ffn(c, layer, names)
    yield from modules_of_layer(c, layer, names)


def _whole_ffn(c: DecoderConfig, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    """FFN or experts, or both, with their norms."""
    beside = c.is_sparse(layer) and c.experts is not None and c.experts.beside_ffn
    if c.norms != "after" and "mlp_norm" in names:
        yield _norm(c, "mlp_norm", names, layer)
    if beside or not c.is_sparse(layer):
        yield from _ffn(c, layer, names, "", c.ffn_size(layer))
    if beside:
        yield from (_norm(c, role, names, layer) for role in ("mlp_inner_norm", "experts_norm"))
    if c.is_sparse(layer):
        yield from _experts(c, layer, names)
    if beside:
        yield _norm(c, "experts_post_norm", names, layer)
    if c.norms in ("around", "after"):
        yield _norm(c, "mlp_post_norm", names, layer)


def _attention(c: DecoderConfig, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    yield from _qkv(c, layer, names)
    own, size = c.heads_of(layer), c.heads_of(layer).size
    if c.query_norm is not None:
        for role, heads in (("q_norm", c.num_heads), ("k_norm", own.count)):
            if role == "q_norm" or c.has_own_keys(layer):
                yield _norm(c, role, names, layer, size if c.query_norm == "head" else heads * size)
    if c.sinks:
        yield Module("sinks", names["sinks"], "attention", layer, (c.num_heads,), False, bare=True)
    queries, outs = c.num_heads * size, {"o": c.hidden_size}
    yield from linears("attention", layer, names, c.out_bias, queries, outs, c.transposed)


def _latent(c: DecoderConfig, a: Latent, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    queries = c.num_heads * a.query
    outs = {"q_a": a.query_rank} if a.query_rank else {"q": queries}
    outs["kv_a"] = sum(a.widths)
    yield from linears("attention", layer, names, c.qkv_bias, c.hidden_size, outs)
    if a.query_rank:
        yield _norm(c, "q_a_norm", names, layer, a.query_rank)
        yield from linears("attention", layer, names, False, a.query_rank, {"q_b": queries})
    yield _norm(c, "kv_a_norm", names, layer, a.rank)
    unfolded = {"kv_b": c.num_heads * a.unfolded}
    yield from linears("attention", layer, names, False, a.rank, unfolded)
    values, outs = c.num_heads * a.value, {"o": c.hidden_size}
    yield from linears("attention", layer, names, c.out_bias, values, outs)


def _qkv(c: DecoderConfig, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    heads = c.heads_of(layer)
    queries, keys = c.num_heads * heads.size, heads.count * heads.size
    outs = {"q": 2 * queries if c.gated_attention else queries}
    if c.has_own_keys(layer):
        outs["k"] = keys
        if not (c.keys_as_values and c.keys_as_values[layer]):
            outs["v"] = keys
    outs = {"qkv": queries + 2 * keys} if c.fused_qkv else outs
    return linears("attention", layer, names, c.qkv_bias, c.hidden_size, outs, c.transposed)


def _ffn(
    c: DecoderConfig, layer: int, names: Mapping[str, str], prefix: str, inner: int
) -> Iterator[Module]:
    """The FFN of a layer, an expert, or the shared expert."""
    if c.activation == "xielu":
        for role, size in (("rising", (1,)), ("falling", (1,)), ("beta", ()), ("eps", ())):
            role = f"xielu_{role}"
            yield Module(role, names[role], "ffn", layer, size, False, bare=True)
    outs = {f"{prefix}gate": inner} if c.gated else {}
    outs |= {f"{prefix}up": inner}
    if c.fused_gate:
        outs = {f"{prefix}gate_up": 2 * inner}
    yield from linears("ffn", layer, names, c.mlp_bias, c.hidden_size, outs, c.transposed)
    down = {f"{prefix}down": c.hidden_size}
    yield from linears("ffn", layer, names, c.mlp_bias, inner, down, c.transposed)


def _experts(c: DecoderConfig, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    assert c.experts is not None
    shape = (c.experts.count, c.hidden_size)
    yield Module("router", names["router"], "router", layer, shape, c.experts.router_bias)
    if c.experts.beside_ffn:
        for role, size in (("router_scale", shape[1:]), ("expert_scale", shape[:1])):
            yield Module(role, names[role], "router", layer, size, False, bare=True)
    if c.experts.biased:
        bias = names["router_bias"]
        row = (1,) if c.experts.bias_row else ()
        yield Module("router_bias", bias, "router", layer, (*row, shape[0]), False, bare=True)
    for expert in range(c.experts.count):
        here = {
            f"{expert}.{role.removeprefix('expert_')}": name.replace("{}", str(expert))
            for role, name in names.items()
            if role.startswith("expert_") and role != "expert_scale"
        }
        yield from _ffn(c, layer, here, f"{expert}.", c.experts.intermediate_size)
    if c.experts.shared_size:
        yield from _ffn(c, layer, names, "shared_", c.experts.shared_size)
    if c.experts.shared_size and c.experts.shared_gated:
        gate = names["shared_router"]
        yield Module("shared_router", gate, "router", layer, (1, c.hidden_size), False)
