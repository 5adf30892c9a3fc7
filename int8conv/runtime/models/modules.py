"""One module with a weight: its role, name, kind and shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "embedding", "norm", "attention", "ffn", "router", "recurrence", "projection", "head"
]


@dataclass(frozen=True)
class Module:
    """One module with a weight, in the order in which the decoder runs them."""

    role: str
    path: str
    kind: Kind
    layer: int | None
    shape: tuple[int, ...]
    """Shape of its weight."""
    bias: bool
    group: tuple[str, ...] = ()
    """For a linear of attention or FFN: the paths that share its input, including itself."""
    transposed: bool = False
    """Stored ``[in, out]`` in a source."""
    bare: bool = False
    """Whether ``path`` is the name of its only tensor, without ``.weight``."""

    def tensor_name(self, kind: str = "weight") -> str:
        """The name of its weight or bias in a checkpoint."""
        return self.path if self.bare else f"{self.path}.{kind}"


def linears(
    kind: Kind, layer: int, names: Mapping[str, str], bias: bool, in_features: int, outs: Mapping[str, int],
    transposed: bool = False,
) -> Iterator[Module]:  # fmt: skip
    """Linears of one input, by role and number of outputs."""
    group = tuple(names[role] for role in outs)
    for role, out_features in outs.items():
        shape = (out_features, in_features)
        yield Module(role, names[role], kind, layer, shape, bias, group, transposed)
