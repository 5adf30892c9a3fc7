"""Memory of a forward pass other than weights and cache: tensors alive at its peak, from the config alone.

Counts the tensors that exist at the same time, at the sizes the code uses (``decoder.working_sizes``): a prompt is processed in
parts of ``PREFILL_TOKENS``; attention masks at most ``SCORES_AT_ONCE`` scores at a time and widens a narrow cache a block of
heads at a time (on a GPU only for prompts); on a CPU, quantized linears process ``TOKENS_AT_ONCE`` tokens at a time, and their
intermediate results take several times the size of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from ...formats.int8.outlier_cap import most_outliers
from ...kernels.crossovers import TOKENS_AT_ONCE, W8A16_TOKENS
from ..decoder.working_sizes import (
    FOLDED_AT_ONCE,
    FOLDED_ON_GPU,
    PREFILL_TOKENS,
    SCORES_AT_ONCE,
    SCORES_ON_GPU,
    WIDENED_AT_ONCE,
    WIDENED_ON_GPU,
)
from ..models.config import DecoderConfig
from ..models.latent import Latent
from ..models.recurrence import CHUNK

Device = Literal["cpu", "cuda"]
SLACK: Final = 0.6
"""Fraction of activations, on a CPU, that malloc keeps in freed blocks that no later tensor fits (measured with
benchmarks/footprint.py; nearly nothing with MALLOC_MMAP_THRESHOLD_=262144)."""
LIBRARIES: Final = 8 << 20
"""Memory of PyTorch and of the model's Python objects on a CPU, beyond that before loading (measured likewise)."""


@dataclass(frozen=True)
class Pass:
    """A pass of some tokens after others."""

    config: DecoderConfig
    device: Device
    tokens: int
    """Tokens of all sequences together."""
    positions: int
    """Positions of a sequence in the cache after the pass."""
    batch: int
    item: int
    """Bytes per activation."""
    narrow_cache: bool
    """Whether keys and values have another dtype than activations."""
    quantized: bool
    """Whether weights are int8; otherwise they have the dtype of activations."""
    mode: str | None

    def peak(self) -> int:
        """Peak number of bytes."""
        return self._streams() + max(
            *self._attention(), *self._recurrence(), *self._ffn(), self._logits()
        )

    def _streams(self) -> int:
        """What lives through all layers: their own embeddings of the tokens; further residual streams, predicted and corrected."""
        c, found = self.config, 0
        if c.layer_input is not None:
            found += self.tokens * c.num_layers * c.layer_input.size * self.item
        return found + (3 * (c.altup.streams - 1) * self._hidden if c.altup is not None else 0)

    @property
    def _hidden(self) -> int:
        return self.tokens * self.config.hidden_size * self.item

    def _linear(self, tokens: int, in_features: int, out_features: int, *, heavy: bool = False) -> int:  # fmt: skip
        """Memory of a quantized linear in addition to its input and output.

        ``heavy``: activations of its input are rounded to two 8-bit digits instead of one (W8A16: three).
        """
        if not self.quantized:
            return 0
        if self.device == "cuda":
            return tokens * (in_features + 2 * most_outliers(in_features)) * (2 if heavy else 1)
        few = min(tokens, TOKENS_AT_ONCE)
        digits = 3 if self._is_w8a16 else 2 if heavy else 0
        columns = most_outliers(in_features) * (out_features + few) * 4
        if not digits:
            return few * max(9 * in_features, 5 * in_features + 8 * out_features) + columns
        inner = max((4 + 9 * digits) * in_features, (4 + 5 * digits) * in_features + 8 * digits * out_features)  # fmt: skip
        return few * inner + columns

    @property
    def _is_w8a16(self) -> bool:
        return self.mode == "w8a16" or (self.mode is None and self.tokens <= W8A16_TOKENS)

    def _attention(self) -> Iterator[int]:
        """Projection, rotation, scores, output projection."""
        c, t = self.config, self.tokens
        if c.latent is not None:
            yield from self._latent(c.latent)
            return
        size, kv_heads = self._widest
        queries = t * c.num_heads * size * self.item
        keys = t * kv_heads * size * self.item
        residuals, qkv = 2 * self._hidden, queries + 2 * keys
        width = (c.num_heads + 2 * kv_heads) * size
        yield residuals + qkv + self._linear(t, c.hidden_size, width)
        rotated = queries + keys if c.rope is not None else 0
        if rotated and self.device == "cpu":
            yield residuals + qkv + max(4 * queries, queries + 4 * keys)
        yield residuals + qkv + rotated + queries + self._scores()
        yield residuals + self._hidden + 2 * queries + self._linear(t, c.num_heads * size, c.hidden_size)  # fmt: skip

    @property
    def _widest(self) -> tuple[int, int]:
        """Channels of a head, and key heads, in the layer with the widest heads."""
        heads = map(self.config.heads_of, range(self.config.num_layers))
        return max((each.size, each.count) for each in heads)

    def _latent(self, a: Latent) -> Iterator[int]:
        """Latent attention: its first linears; then all heads' keys and values, or a head's weight that is folded in."""
        c, t, item = self.config, self.tokens, self.item
        first = (a.query_rank or c.num_heads * a.query) + sum(a.widths)
        yield 2 * self._hidden + t * first * item + self._linear(t, c.hidden_size, first)
        queries = t * c.num_heads * a.query * item
        values = t * c.num_heads * a.value * item
        if a.folds(t // self.batch, self.positions):
            width = sum(a.widths)
            at_once = FOLDED_AT_ONCE if self.device == "cpu" else min(FOLDED_ON_GPU, c.num_heads * a.unfolded * a.rank)  # fmt: skip
            weight = 4 * max(a.unfolded * a.rank, at_once) if self.quantized else 0
            wide = 2 * (self.batch * self.positions + t * c.num_heads) * width * item
            scores = self._scores()
            if self.device == "cuda":  # the queries of all heads are rows of one matrix
                scores = self._scores_of(c.num_heads) * (8 + 2 * item)
            yield 2 * self._hidden + queries + weight + wide + scores
        else:
            both = t * c.num_heads * a.unfolded
            yield 2 * self._hidden + queries + both * item + self._linear(t, a.rank, both // t)
            wide = 4 * t * c.num_heads * max(a.query, a.value) * item
            yield 2 * self._hidden + queries + both * item + wide + self._scores()
        out = self._linear(t, c.num_heads * a.value, c.hidden_size)
        yield 3 * self._hidden + queries + values + out

    def _recurrence(self) -> Iterator[int]:
        """Recurrent layers: their first linear; everything in float32, with heads repeated; a chunk's matrices."""
        c, t, kind = self.config, self.tokens, self.config.recurrence
        if kind is None:
            return
        few, (keys, values) = min(t, CHUNK), kind.sizes
        yield (
            2 * self._hidden + t * kind.wide * self.item + self._linear(t, c.hidden_size, kind.wide)
        )
        repeated = kind.heads * (2 * keys + values)
        inner = 4 * t * (2 * kind.channels + 2 * repeated)
        inner += 4 * kind.heads * few * (5 * few + 4 * keys)
        yield 2 * self._hidden + t * kind.wide * self.item + inner

    def _scores(self) -> int:
        c = self.config
        heads = c.num_heads if c.alibi or c.attention_softcap is not None or c.sinks else 1
        tokens = self.tokens
        plain = heads == 1 and tokens == self.positions * self.batch and not any(c.windows)
        if self.device == "cuda":  # one mask for all heads, and the operator's version of it
            if tokens <= self.batch:
                return 0
            size = 0 if plain else tokens * self.positions * (1 + self.item)
            if heads > 1:  # float32, masked, and their softmax
                size = self._scores_of(heads) * (12 + self.item)
            return size + (self._widened(2, WIDENED_ON_GPU) if self.narrow_cache else 0)
        scores = tokens * self.positions * heads
        scores = min(scores, max(SCORES_AT_ONCE, self.positions * self.batch * heads))
        size = 0 if plain else (4 + 2 * self.item) * scores if heads > 1 else 6 * scores
        return size + (self._widened(3, WIDENED_AT_ONCE) if self.narrow_cache else 0)

    def _scores_of(self, heads: int) -> int:
        """Number of scores of several heads that a GPU holds at once."""
        return min(self.tokens * self.positions * heads, max(SCORES_ON_GPU, self.positions * heads))

    def _widened(self, copies: int, most: int) -> int:
        """Blocks of heads of a narrow cache, widened to the dtype of activations."""
        size, kv_heads = self._widest
        head = self.positions * size
        return copies * self.item * max(head, min(most, head * kv_heads))

    def _ffn(self) -> Iterator[int]:
        """First linears, activation function, last linear."""
        c = self.config
        for tokens, inner in self._experts():
            residuals = (3 if tokens == self.tokens else 5) * self._hidden
            wide, product = tokens * inner * self.item * (2 if c.gated else 1), tokens * inner * self.item  # fmt: skip
            yield residuals + wide + self._linear(tokens, c.hidden_size, inner * (2 if c.gated else 1))  # fmt: skip
            # its result and, if gated, the product
            yield residuals + wide + (2 if c.gated else 1) * product
            yield residuals + product + 2 * self._hidden + self._linear(tokens, inner, c.hidden_size, heavy=c.gated)  # fmt: skip

    def _experts(self) -> Iterator[tuple[int, int]]:
        """Tokens and inner size of each FFN."""
        c, experts = self.config, self.config.experts
        if experts is None or not all(c.is_sparse(layer) for layer in range(c.num_layers)):
            yield self.tokens, max(map(c.ffn_size, range(c.num_layers)))
        if experts is not None:  # assumed to be spread evenly, with a safety factor of two
            per_expert = -(-2 * self.tokens * experts.used // experts.count)
            yield min(self.tokens, per_expert), experts.intermediate_size
            if experts.shared_size:
                yield self.tokens, experts.shared_size

    def _logits(self) -> int:
        """Logits of the last position of each sequence in float32, plus temporaries of sampling."""
        c = self.config
        rows = self.batch if self.tokens == self.batch else 1
        return self._hidden + (rows * 2 + 6) * c.vocab_size * 4


def activation_bytes(
    config: DecoderConfig, *, device: Device, context: int, batch: int, prompt: int, item: int,
    narrow_cache: bool, quantized: bool, mode: str | None,
) -> int:  # fmt: skip
    """Peak of generating up to ``context`` positions: prompts of ``prompt`` tokens one after another, then all together."""
    part = min(prompt, PREFILL_TOKENS[device])

    def peak(tokens: int, positions: int, sequences: int) -> int:
        return Pass(config, device, tokens, positions, sequences, item, narrow_cache, quantized, mode).peak()  # fmt: skip

    found = max(peak(part, part, 1), peak(part, prompt, 1), peak(batch, context, batch))
    return found if device == "cuda" else int((1 + SLACK) * found) + LIBRARIES
