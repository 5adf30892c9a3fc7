"""Rotary positions (arXiv:2104.09864): tables of cos and sin, and the rotation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.config import Rope


class Rotary:
    """The tables of one rotary embedding.

    Args:
        rope: base and scaling.
        head_dim: channels per head; the first ``rope.rotary_fraction`` of them are rotated. If it is proportional, all are, most by 0.
    """

    def __init__(self, rope: Rope, head_dim: int) -> None:
        self.rope = rope
        self.size = rope.rotated(head_dim)
        self._steps = torch.arange(0, self.size, 2, dtype=torch.int64).float() / self.size

    @property
    def grows(self) -> bool:
        """Whether frequencies depend on the sequence's length."""
        return self.rope.kind in ("dynamic", "longrope")

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin ``[..., size]`` for positions of any shape; each pair's value occurs twice."""
        length = int(positions.max()) + 1 if positions.numel() else 1
        angles = positions.float()[..., None] * self.frequencies(length)
        if self.rope.interleaved:
            angles = angles.repeat_interleave(2, dim=-1)
        else:
            angles = torch.cat([angles, angles], dim=-1)
        size = self.rope.magnitude
        return (angles.cos() * size).to(dtype), (angles.sin() * size).to(dtype)

    def step_frequencies(self, positions: int) -> Tensor:
        """Frequencies for a sequence that ends at each position, ``[positions, size / 2]``; ``[size / 2]`` if they are all the same."""
        rope = self.rope
        if not self.grows:
            return self.frequencies(1)
        first = min(int(rope.original_positions), positions)
        rows = [self.frequencies(first).expand(first, -1)]
        if rope.kind == "longrope":
            rows.append(self.frequencies(first + 1).expand(positions - first, -1))
        else:
            rows += [self.frequencies(length)[None] for length in range(first + 1, positions + 1)]
        return torch.cat(rows)

    def frequencies(self, length: int) -> Tensor:
        """Radians per position, ``[size / 2]``, in a sequence of ``length`` positions."""
        rope = self.rope
        if rope.kind == "dynamic":
            return 1.0 / (self._stretched_base(length) ** self._steps)
        plain = 1.0 / (rope.theta**self._steps)
        if rope.kind == "linear":
            return plain / rope.factor
        if rope.kind == "proportional":
            plain[int(rope.rotary_fraction * self.size / 2) :] = 0
            return plain / rope.factor
        if rope.kind == "longrope":
            longer = length > rope.original_positions
            return plain / torch.tensor(
                rope.long_factors if longer else rope.short_factors, dtype=torch.float32
            )
        if rope.kind == "llama3":
            turns = rope.original_positions * plain / (2 * math.pi)
            kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
            return torch.lerp(plain / rope.factor, plain, kept.clamp(0, 1))
        return self._yarn(plain) if rope.kind == "yarn" else plain

    def _stretched_base(self, length: int) -> float:
        """A base that grows with the sequence beyond the original context ("NTK-aware")."""
        rope = self.rope
        stretch = max(length, rope.original_positions) / rope.original_positions
        return float(rope.theta * (rope.factor * stretch - (rope.factor - 1)) ** (self.size / (self.size - 2)))  # fmt: skip

    def _yarn(self, plain: Tensor) -> Tensor:
        """Interpolate between stretched and plain frequencies by the number of wavelengths per context (arXiv:2309.00071, section 3.2)."""
        rope = self.rope

        def pair_that_turns(times: float) -> float:
            waves = rope.original_positions / (times * 2 * math.pi)
            return self.size * math.log(waves) / (2 * math.log(rope.theta))

        first, last = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
        if rope.truncated:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.size - 1)
        ramp = (torch.arange(self.size // 2).float() - first) / max(last - first, 0.001)
        return torch.lerp(plain, plain / rope.factor, ramp.clamp(0, 1))


def rotate(x: Tensor, tables: tuple[Tensor, Tensor], interleaved: bool = False) -> Tensor:
    """Rotate the first channels of ``[b, h, t, d]`` by cos and sin ``[(b, 1,) t, size]``."""
    cos, sin = tables
    size = cos.shape[-1]
    part = x[..., :size]
    if interleaved:
        turned = torch.stack([-part[..., 1::2], part[..., ::2]], dim=-1).flatten(-2)
    else:
        first, second = part.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    y = part * cos + turned * sin
    return y if size == x.shape[-1] else torch.cat([y, x[..., size:]], dim=-1)
