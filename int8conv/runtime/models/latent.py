"""The sizes of multi-head latent attention (``decoder.latent_attention``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Latent:
    """Keys and values of all heads are computed from one latent per token; sizes in channels."""

    rank: int
    """Of the latent."""
    query_rank: int | None
    """Of the latent that queries are computed from; None: they are computed directly."""
    plain: int
    """Of a head's queries and keys that are not rotated."""
    rotated: int
    """Of those that are, which all heads' keys share."""
    value: int
    """Of a head's values."""

    @property
    def query(self) -> int:
        """Of a head's queries and keys."""
        return self.plain + self.rotated

    @property
    def unfolded(self) -> int:
        """Channels per head that the latent is expanded to: keys without their rotated part, and values."""
        return self.plain + self.value

    @property
    def widths(self) -> tuple[int, int]:
        """What is cached per position, in two parts: the latent, and the rotated part of the keys."""
        return self.rank, self.rotated

    def folds(self, tokens: int, positions: int) -> bool:
        """Whether the weight of keys and values is folded into queries and outputs, for the last ``tokens`` of ``positions``.

        After other positions always, as unfolding all of them takes memory without limit; else if it takes fewer multiplications.
        """
        fewer = tokens * (2 * self.rank - self.unfolded) < self.rank * self.unfolded
        return positions > tokens or fewer
