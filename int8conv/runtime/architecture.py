"""From a config to the modules of the decoder: their order, names, shapes and kinds; from headers alone, without torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import ShapeError
from ..formats.checkpoint import Checkpoint, StoredTensor
from .config import DecoderConfig, RawConfig
from .families import Family, find_family

Kind = Literal["embedding", "norm", "attention", "ffn", "projection", "head"]
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Module:
    """One module with a weight, in the order in which the decoder runs them."""

    role: str
    path: str
    kind: Kind
    layer: int | None
    shape: tuple[int, ...]
    """Of its weight."""
    bias: bool
    group: tuple[str, ...] = ()
    """For a linear of attention or FFN: the paths that share its input, itself included."""


@dataclass(frozen=True)
class Architecture:
    """A checkpoint's decoder: its parameters and modules."""

    family: Family
    config: DecoderConfig
    modules: tuple[Module, ...]

    def groups(self) -> Iterator[tuple[Module, ...]]:
        """The quantised linears by shared input, in order."""
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


def read_architecture(
    config: dict[str, Any], tensors: Collection[str], file: object = "config.json"
) -> Architecture:
    """The decoder that a ``config.json`` describes, with names as the checkpoint's tensors have them.

    Args:
        config: the parsed file.
        tensors: names of the checkpoint's tensors, to tell whether the base model's prefix is there.
        file: named in errors.

    Raises:
        UnknownFamilyError: the ``model_type`` is not known.
        UnsupportedFeatureError: a key of the config asks for something that the decoder does not have.
        JsonFileError: a key is absent or malformed.
    """
    family = find_family(config, file)
    raw = RawConfig(config, file)
    decoder = family.read_config(raw)
    raw.finish()
    _check_sizes(decoder, raw)
    embed = family.names["embed"] + ".weight"
    stripped = embed.removeprefix(family.base_prefix)
    if embed not in tensors and stripped in tensors:
        names = {r: n.removeprefix(family.base_prefix) for r, n in family.names.items()}
        family = replace(family, names=names)
    elif decoder.tied and embed not in tensors and family.names["head"] + ".weight" in tensors:
        # of tensors that share memory, safetensors' save_model keeps the first name
        names = {**family.names, "embed": family.names["head"]}
        family = replace(family, names=names)
    return Architecture(family, decoder, tuple(_modules(decoder, family.names)))


def find_tensor(checkpoint: Checkpoint, module: Module, kind: str = "weight") -> StoredTensor:
    """The tensor of a module, with the shape that the config implies.

    Raises:
        MissingTensorError: it is absent.
        ShapeError: it has another shape.
    """
    stored = checkpoint.tensor(f"{module.path}.{kind}")
    expected = module.shape if kind == "weight" else module.shape[:1]
    if stored.shape != expected:
        raise shape_error(stored, expected, stored.shape)
    return stored


def shape_error(
    stored: StoredTensor, expected: tuple[int, ...], found: tuple[int, ...]
) -> ShapeError:
    """The error for a tensor that does not have its module's shape."""
    return ShapeError(
        "shape is not what config.json implies", file=stored.file, tensor=stored.name,
        expected=list(expected), found=list(found),
    )  # fmt: skip


def _check_sizes(config: DecoderConfig, raw: RawConfig) -> None:
    if config.num_layers > MOST_LAYERS:  # a list is made of them before any tensor is looked at
        raise raw.unsupported("num_hidden_layers", config.num_layers, f"at most {MOST_LAYERS}")
    if config.num_heads % config.num_kv_heads:
        raise raw.unsupported(
            "num_key_value_heads", config.num_kv_heads, f"a divisor of {config.num_heads}"
        )
    if config.rope is not None and config.head_dim % 2:
        raise raw.unsupported("head_dim", config.head_dim, "an even number")


def _modules(config: DecoderConfig, names: Any) -> Iterator[Module]:
    c = config
    hidden, norm_bias = c.hidden_size, c.norm == "layer"
    yield Module(
        "embed", names["embed"], "embedding", None, (c.vocab_size, c.embedding_size), False
    )
    if c.rope is None:
        table = (c.max_positions + c.position_offset, hidden)
        yield Module("positions", names["positions"], "embedding", None, table, False)
    if c.embedding_size != hidden:
        shape = (hidden, c.embedding_size)
        yield Module("project_in", names["project_in"], "projection", None, shape, False)
    for layer in range(c.num_layers):
        yield from _layer(c, layer, {role: name.format(layer) for role, name in names.items()})
    if c.final_norm:
        yield Module("final_norm", names["final_norm"], "norm", None, (hidden,), norm_bias)
    if c.embedding_size != hidden:
        shape = (c.embedding_size, hidden)
        yield Module("project_out", names["project_out"], "projection", None, shape, False)
    if not c.tied:
        yield Module("head", names["head"], "head", None, (c.vocab_size, c.embedding_size), False)


def _layer(c: DecoderConfig, layer: int, names: dict[str, str]) -> Iterator[Module]:
    hidden, queries, keys = c.hidden_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim

    def linears(kind: Kind, bias: bool, in_features: int, outs: dict[str, int]) -> Iterator[Module]:
        group = tuple(names[role] for role in outs)
        for role, out_features in outs.items():
            shape = (out_features, in_features)
            yield Module(role, names[role], kind, layer, shape, bias, group)

    def norm(role: str) -> Module:
        return Module(role, names[role], "norm", layer, (hidden,), c.norm == "layer")

    yield norm("attn_norm")
    yield from linears("attention", c.qkv_bias, hidden, {"q": queries, "k": keys, "v": keys})
    yield from linears("attention", c.out_bias, queries, {"o": hidden})
    yield norm("mlp_norm")
    wide = {"gate": c.intermediate_size} if c.gated else {}
    yield from linears("ffn", c.mlp_bias, hidden, wide | {"up": c.intermediate_size})
    yield from linears("ffn", c.mlp_bias, c.intermediate_size, {"down": hidden})
