"""The decoder's parameters, and how a family's ``config.json`` is read into them without ignoring anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from ...errors import JsonFileError, UnsupportedFeatureError
from .latent import Latent
from .recurrence import Recurrence

Activation = Literal["silu", "relu", "relu2", "gelu", "gelu_tanh"]
T = TypeVar("T")

BOOKKEEPING = frozenset([
    "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id", "dtype",
    "eos_token_id", "finetuning_task", "id2label", "initializer_range", "init_std", "is_decoder",
    "is_encoder_decoder", "is_llama_config", "label2id", "model_type", "num_labels", "output_attentions",
    "output_hidden_states", "pad_token_id", "prefix", "problem_type", "return_dict", "sep_token_id",
    "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "unk_token_id", "use_bfloat16", "use_cache", "attention_dropout",
    "attn_implementation", "classifier_dropout", "dropout", "activation_dropout", "layerdrop", "hidden_dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "pretraining_tp", "quantization_config", "rope_parameters",
    "rope_theta", "rope_scaling",
])  # fmt: skip
"""Config keys that do not affect inference, or that are read by a separate function."""

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


MOST_SIZE: Final = 2**40
"""Limit on counts without a limit of their own."""
MOST_LISTED: Final = 10_000
"""Limits on layers and experts, which are listed before any tensor is looked at."""
_LISTED: Final = {
    "n_layer", "n_layers", "num_hidden_layers", "num_layers",
    "moe_num_experts", "n_routed_experts", "num_experts", "num_experts_per_tok", "num_local_experts",
}  # fmt: skip
MOST_NUMBER: Final = 1e30


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: its base, and the scaling of its frequencies."""

    theta: float
    kind: Literal["default", "linear", "llama3", "dynamic", "yarn", "longrope"] = "default"
    factor: float = 1.0
    """Divisor of low frequencies; of all frequencies if the kind is linear."""
    low_freq_factor: float = 1.0
    """llama3: a wave that fits at most this many times into ``original_positions`` has a low frequency."""
    high_freq_factor: float = 1.0
    """llama3: a wave that fits at least this many times is not scaled; in between, scaling is interpolated."""
    original_positions: float = 1.0
    """Context length before scaling."""
    beta_fast: float = 32.0
    """yarn: like ``high_freq_factor``."""
    beta_slow: float = 1.0
    """yarn: like ``low_freq_factor``."""
    truncated: bool = True
    """yarn: the ends of the interpolated range are rounded to whole pairs."""
    magnitude: float = 1.0
    """yarn, longrope: cos and sin are multiplied by this."""
    short_factors: tuple[float, ...] = ()
    """longrope: divisors of each frequency up to ``original_positions``."""
    long_factors: tuple[float, ...] = ()
    """longrope: divisors in longer sequences."""
    rotary_fraction: float = 1.0
    """Fraction of a head's channels to rotate, starting with the first."""
    interleaved: bool = False
    """Whether channels 2 i and 2 i + 1 form a pair; otherwise i and i + half."""


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the FFN (arXiv:2101.03961)."""

    count: int
    used: int
    """Experts per token, those with the highest router scores."""
    intermediate_size: int
    normalised: bool
    """Whether the weights of the used experts are normalised to add up to 1."""
    shared_size: int = 0
    """Inner size of a shared FFN that every token also passes through; 0: none."""
    shared_gated: bool = True
    """Whether the shared FFN has its own gate."""
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    biased: bool = False
    """Whether a bias per expert is added to its score to choose experts, though not to weigh them."""
    groups: int = 1
    groups_used: int = 1
    """Experts are chosen from this many of ``groups`` groups, those with the highest sums of their best scores."""
    group_best: int = 2
    """The number of scores in such a sum."""
    scale: float = 1.0
    """Multiplier of the weights."""
    router_bias: bool = False
    """Whether the router is a linear with a bias, which changes the weights too."""


@dataclass(frozen=True)
class DecoderConfig:
    """The parameters of the decoder; sizes in elements."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: Activation
    gated: bool
    """``down(act(gate(x)) * up(x))`` instead of ``down(act(up(x)))``."""
    rope: Rope | None
    """None for ALiBi or learned positions."""
    embedding_size: int
    """Width of the token embedding; projected to ``hidden_size`` and back if they differ."""
    tied: bool
    """The head is the token embedding."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    norm_bias: bool | None = None
    """None: LayerNorms have a bias, RMSNorms do not."""
    norm_offset: float = 0.0
    """Added to the weight of every norm."""
    position_offset: int = 0
    """Row of the learned position table that position 0 uses."""
    alibi: bool = False
    """Attention scores fall linearly with distance (arXiv:2108.12409)."""
    alibi_scaled: bool = False
    """ALiBi slopes are also multiplied by ``attention_scale``."""
    norms: Literal["before", "around", "after", "after sum"] = "before"
    """Where a block's norms are: before attention and FFN, before and after them, after them (within the residual branch), or
    after the residual sum."""
    parallel: bool = False
    """Attention and FFN read the same hidden state, and both are added to it."""
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """Multiplier of the outputs of attention and FFN before they are added."""
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    """Logits become ``cap * tanh(logits / cap)``."""
    attention_scale: float | None = None
    """Scale of scores; None: ``head_dim ** -0.5``."""
    attention_softcap: float | None = None
    sinks: bool = False
    """Each head has a learned score that takes part in the softmax, for a position without a value."""
    query_growth: float = 0.0
    """Queries are multiplied by ``1 + query_growth * log(1 + floor(position / rope.original_positions))``."""
    windows: tuple[int | None, ...] = ()
    """For each layer, the number of positions that a token attends to, including itself; None or absent: all."""
    unrotated: tuple[bool, ...] = ()
    """For each layer, whether queries and keys are not rotated despite ``rope``; absent: all are."""
    local_rope: Rope | None = None
    """The rotary embedding of layers with a window, if it differs."""
    query_norm: Literal["head", "row"] | None = None
    """RMSNorm of queries and keys: per head, or over all heads."""
    norm_rotated: bool = False
    """Whether these norms come after the rotation."""
    fused_qkv: Literal["rows", "heads"] | None = None
    """Whether one linear computes all three: its rows are q, then k, then v; or, for each key head, its queries, key and value."""
    fused_gate: bool = False
    """Whether one linear computes gate and up."""
    swiglu_limit: float | None = None
    """The FFN's gate and up are limited to this, and its rows alternate between them (``decoder.clamped``)."""
    swiglu_alpha: float = 1.702
    transposed: bool = False
    """Whether linears of blocks are stored as ``[in, out]``."""
    experts: Experts | None = None
    sparse_layers: tuple[bool, ...] = ()
    """For each layer, whether it has experts in place of the FFN; absent: all layers, if there are any experts."""

    latent: Latent | None = None
    """Latent attention in every layer; ``head_dim`` is then the number of rotated channels."""
    indexed: bool = False
    """Whether an indexer, which is not run, chooses the positions that tokens attend to beyond ``max_positions``."""
    gated_attention: bool = False
    """Whether the query projection also computes, for each head, a gate of the head's output: its query, then its gate."""
    recurrence: Recurrence | None = None
    recurrent_layers: tuple[bool, ...] = ()
    """For each layer, whether it has a recurrence with a state; absent: none."""
    attention_layers: tuple[bool, ...] = ()
    """For each layer, whether it has attention; absent: all that have no recurrence. With both, they run side by side."""
    ffn_layers: tuple[bool, ...] = ()
    """For each layer, whether it has an FFN or experts; absent: all."""
    recurrence_scale: float = 1.0
    attention_out_scale: float = 1.0
    """Multipliers of the outputs of recurrence and attention that run side by side."""
    gate_scale: float = 1.0
    """Multiplier of the FFN's gate before its activation function."""
    ffn_scale: float = 1.0
    """Multiplier of the FFN's output."""

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer has a recurrent state."""
        return bool(self.recurrent_layers) and self.recurrent_layers[layer]

    def has_attention(self, layer: int) -> bool:
        """Whether a layer has keys and values."""
        if self.attention_layers:
            return self.attention_layers[layer]
        return not self.is_recurrent(layer)

    def has_mixer(self, layer: int) -> bool:
        """Whether a layer has attention or a recurrence."""
        return self.is_recurrent(layer) or self.has_attention(layer)

    def has_ffn(self, layer: int) -> bool:
        """Whether a layer has an FFN or experts."""
        return not self.ffn_layers or self.ffn_layers[layer]

    @property
    def kv_layers(self) -> int:
        """Number of layers with keys and values."""
        return self.cache_layer(self.num_layers)

    def cache_layer(self, layer: int) -> int:
        """The number of layers with keys and values before a layer: its own number in the cache."""
        return sum(self.has_attention(earlier) for earlier in range(layer))

    def state_layer(self, layer: int) -> int:
        """The same among layers with a state."""
        return sum(self.recurrent_layers[:layer])

    def state_bytes(self, batch: int) -> int:
        """Size of the states of recurrent layers."""
        kind = self.recurrence
        return 0 if kind is None else sum(self.recurrent_layers) * kind.nbytes(batch)

    def window(self, layer: int) -> int | None:
        """The number of positions that a token attends to in a layer; None: all."""
        return self.windows[layer] if self.windows else None

    def is_rotated(self, layer: int) -> bool:
        """Whether a layer rotates queries and keys."""
        return self.rope is not None and not (self.unrotated and self.unrotated[layer])

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.experts is not None and (not self.sparse_layers or self.sparse_layers[layer])


PER_LAYER: Final = (
    "windows", "unrotated", "sparse_layers", "recurrent_layers", "attention_layers", "ffn_layers",
)  # fmt: skip
"""Fields with an entry per layer, or none at all."""


class RawConfig:
    """A ``config.json`` that records which keys were read, so that nothing is silently ignored."""

    def __init__(self, values: Mapping[str, Any], file: object = "config.json") -> None:
        self.values = values
        self.file = file
        self._read: set[str] = set()

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer within a sensible limit."""
        value = self._get(key, default)
        most = MOST_LISTED if key in _LISTED else MOST_SIZE
        if type(value) is not int or not 0 < value <= most:
            large = type(value) is int and value > most
            raise JsonFileError(f"config key '{key}'", file=self.file, found=repr(value),
                                expected=f"at most {most:,}" if large else "an integer > 0")  # fmt: skip
        return value

    def size_per_head(self, size: str, heads: str) -> int:
        """A width divided by the number of heads, given the keys of both."""
        width, count = self.integer(size), self.integer(heads)
        if count > width:
            raise JsonFileError(f"config key '{heads}'", file=self.file, found=count,
                                expected=f"at most {size} {width}")  # fmt: skip
        return width // count

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        return self.positive(key, self._get(key, default))

    def positive(self, key: str, value: object, most: float = MOST_NUMBER) -> float:
        """A config value as a positive number that is safe to compute with: neither close to 0 nor to infinity."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 1 / MOST_NUMBER <= value <= most:  # type: ignore[operator]
            positive = number and value > 0  # type: ignore[operator]
            raise JsonFileError(f"config key '{key}'", file=self.file, found=repr(value),
                                expected=f"{1 / MOST_NUMBER:g} to {most:g}" if positive else "a number > 0")  # fmt: skip
        return float(value)  # type: ignore[arg-type]

    def optional_integer(self, key: str) -> int | None:
        """A positive integer, or None if the config has none."""
        return None if self._get(key, None) is None else self.integer(key)

    def optional_number(self, key: str) -> float | None:
        """A positive number, or None if the config has none."""
        return None if self._get(key, None) is None else self.number(key)

    def strings(self, key: str) -> list[str] | None:
        """A list of strings, or None if the config has none."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="a list of strings",
                                found=repr(value))  # fmt: skip
        return value

    def integers(self, key: str) -> list[int]:
        """A list of integers; empty if the config has none."""
        value = self._get(key, [])
        if not isinstance(value, list) or not all(type(entry) is int for entry in value):
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="a list of integers",
                                found=repr(value))  # fmt: skip
        return value

    def fixed(self, key: str, value: object) -> None:
        """Check a feature of which only one form is supported, which is also the default."""
        found = self._get(key, value)
        if found != value:
            raise self.unsupported(key, found, repr(value))

    def ignore(self, *keys: str) -> None:
        """Mark keys that do not affect inference in this family as read."""
        self._read.update(keys)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="true or false",
                                found=repr(value))  # fmt: skip
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """A feature that must be one of the supported choices."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.unsupported(key, value, f"one of {', '.join(choices)}")
        return choices[value]

    def finish(self, fields: Collection[str]) -> tuple[str, ...]:
        """Refuse, by name, an unread key that is not simply off and that the reference implementation reads.

        Args:
            fields: the keys that transformers reads in this family (``reference_fields``).

        Returns:
            The other unread keys: fine-tuners, other programs and old releases add many, and they have no effect.

        Raises:
            UnsupportedFeatureError: the first key that may change what the model computes.
        """
        passed_over = []
        for key, value in self.values.items():
            known = key in self._read or key in BOOKKEEPING or key.startswith("_")
            if known or value in (None, False, 0, "", [], {}):
                continue
            if key in fields:
                raise self.unsupported(key, value)
            passed_over.append(key)
        return tuple(passed_over)

    def unsupported(
        self, key: str, value: object, expected: str | None = None
    ) -> UnsupportedFeatureError:
        return UnsupportedFeatureError(
            f"the config uses a feature that the runtime lacks: '{key}'",
            file=self.file, expected=expected, found=repr(value),
        )  # fmt: skip

    def _get(self, key: str, default: object) -> Any:
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value
