"""The decoder's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from .latent import Latent
from .recurrence import Recurrence
from .streams import AltUp, LayerInput

Activation = Literal["silu", "relu", "relu2", "gelu", "gelu_tanh", "xielu"]

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


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: its base, and the scaling of its frequencies."""

    theta: float
    kind: Literal["default", "linear", "llama3", "dynamic", "yarn", "longrope", "proportional"] = (
        "default"
    )
    factor: float = 1.0
    """Divisor of low frequencies; of all frequencies if the kind is linear or proportional."""
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
    """Fraction of a head's channels to rotate, starting with the first; proportional: of its pairs, whose frequencies are those of whole heads."""
    interleaved: bool = False
    """Whether channels 2 i and 2 i + 1 form a pair; otherwise i and i + half."""

    def rotated(self, head_dim: int) -> int:
        """Number of a head's channels that are rotated; proportional: all of them, most by 0."""
        whole = self.kind == "proportional"
        return head_dim if whole else int(head_dim * self.rotary_fraction)


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
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    jitter: float = 0.0
    """sparsemixer: half of the relative distance to the largest score within which others count."""
    biased: bool = False
    """Whether a bias per expert is added to its score to choose experts, though not to weigh them."""
    bias_row: bool = False
    """Whether these biases are stored as a matrix of one row."""
    groups: int = 1
    groups_used: int = 1
    """Experts are chosen from this many of ``groups`` groups, those with the highest sums of their best scores."""
    group_best: int = 2
    """The number of scores in such a sum."""
    scale: float = 1.0
    """Multiplier of the weights."""
    router_bias: bool = False
    """Whether the router is a linear with a bias, which changes the weights too."""
    beside_ffn: bool = False
    """Whether the FFN runs too, and experts have weights of their own (``decoder.ffn.beside``)."""


@dataclass(frozen=True)
class Heads:
    """The key heads of a layer."""

    count: int
    size: int
    """Channels of each of them, and of each query head."""


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
    """The FFN's gate and up are limited to this, and its rows alternate between them (``decoder.ffn.clamped``)."""
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
    heads: tuple[Heads, ...] = ()
    """For each layer, its key heads, if layers differ; absent: all have ``num_kv_heads`` of ``head_dim`` channels."""
    key_sources: tuple[int, ...] = ()
    """For each layer, the layer whose keys and values it attends to; absent: its own."""
    keys_as_values: tuple[bool, ...] = ()
    """For each layer, whether its values are its keys before norm and rotation; absent: none."""
    value_norm: bool = False
    """Whether values are normalised too, per head, by an RMSNorm without a weight."""
    ffn_sizes: tuple[int, ...] = ()
    """For each layer, the inner size of its FFN, if layers differ; absent: ``intermediate_size``."""
    sparse_gates: tuple[float, ...] = ()
    """For each layer, the fraction of its FFN's gate that becomes zero (``decoder.ffn.sparse_gate``); absent: 0."""
    layer_scaled: bool = False
    """Whether the output of a layer is multiplied by a learned number."""
    layer_input: LayerInput | None = None
    altup: AltUp | None = None

    def heads_of(self, layer: int) -> Heads:
        """The key heads of a layer."""
        return self.heads[layer] if self.heads else Heads(self.num_kv_heads, self.head_dim)

    def rotated_size(self, *, local: bool) -> int:
        """Channels per head in layers that use ``rope`` or, if ``local``, ``local_rope``."""
        for layer, heads in enumerate(self.heads):
            if local == (self.local_rope is not None and self.window(layer) is not None):
                return heads.size
        return self.head_dim

    def key_source(self, layer: int) -> int:
        """The layer whose keys and values a layer attends to."""
        return self.key_sources[layer] if self.key_sources else layer

    def ffn_size(self, layer: int) -> int:
        """The inner size of a layer's FFN."""
        return self.ffn_sizes[layer] if self.ffn_sizes else self.intermediate_size

    def has_own_keys(self, layer: int) -> bool:
        """Whether a layer computes keys and values."""
        return self.has_attention(layer) and self.key_source(layer) == layer

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer has a recurrent state."""
        return bool(self.recurrent_layers) and self.recurrent_layers[layer]

    def has_attention(self, layer: int) -> bool:
        """Whether a layer attends to keys and values."""
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
        """Number of layers with keys and values of their own."""
        return sum(map(self.has_own_keys, range(self.num_layers)))

    def cache_layer(self, layer: int) -> int:
        """The number in the cache of a layer's keys and values: that of layers before it which have their own."""
        return sum(map(self.has_own_keys, range(self.key_source(layer))))

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
    "windows", "unrotated", "sparse_layers", "recurrent_layers", "attention_layers", "ffn_layers", "heads", "key_sources",
    "keys_as_values", "ffn_sizes", "sparse_gates",
)  # fmt: skip
"""Fields with an entry per layer, or none at all."""
