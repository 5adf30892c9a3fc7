"""What the names of a module's path say of it: whether it may become int8. By parts of the path, not by its end alone.

What chooses (routers, gates of recurrences), what is looked up (embeddings), what gives logits (heads), and what is small and
exact on purpose (norms, adapters) stays in 16 bits; so does what sees and hears, unless the whole model does.
"""

from __future__ import annotations

import re
from typing import Final

_ANYWHERE: Final = re.compile(
    r"(\w+_)?routers?(_\w+)?|gate|gating|(moe|experts?|routing)_gate|lora_\w+|(\w+_)?adapters?(_\w+)?|"
    r"(\w+_)?(lm|medusa|mtp|shared|output|classification|codec)_heads?|heads?"
)
"""A part with such a name makes routers, adapters or heads of all that is below it."""
_LAST: Final = re.compile(
    r"emb|embed|embeddings?|embed_\w+|\w+_emb(ed|edding|eddings)?|wte|wpe|"
    r"norm\w*|\w*norm|ln|ln_\w+|wg|relative\w*|rotary\w*|conv\w*|classifier|score|\w+_heads?"
)
"""Names of embeddings, norms, routers, convolutions and heads: of the module itself, numbers behind it left out."""
_RECURRENCE: Final = re.compile(
    r"[ab]_proj|[fg]_[ab]_proj|[fg]_[ab]|in_proj_(a|b|ba)|x_proj|dt_proj|weights_proj|"
    r"[if]gate(_preact)?|(input|forget|recurrent)_gate"
)
"""Projections that decays, step sizes, write strengths and the like of a linear attention or a state space model come from,
and an indexer's weights of its heads: narrow, and an error in them is carried on from token to token."""
_SENSE: Final = re.compile(
    r"(^|_)(visual|vision|audio|projector|merger|image|img|speech|vit|video)(_|$)", re.IGNORECASE
)
_NUMBERED: Final = re.compile(r"(^|\.)\d+\.")


def is_numbered(name: str) -> bool:
    """Whether a tensor is in a block with a number."""
    return _NUMBERED.search(name) is not None


def stays(path: str, *, gated: bool = False) -> bool:
    """Whether a module's name says that it is no linear to quantize.

    Args:
        path: the module's.
        gated: it stands beside a matrix ``up`` of the same shape, so that ``gate`` is a half of an FFN and no router.
    """
    parts = [part for part in path.split(".") if not part.isdecimal()]
    if gated:
        parts = parts[:-1]
    if any(_ANYWHERE.fullmatch(part) for part in parts):
        return True
    last = parts[-1] if parts else ""
    return not gated and bool(_LAST.fullmatch(last) or _RECURRENCE.fullmatch(last))


def is_of_senses(path: str) -> bool:
    """Whether a module belongs to a part that sees or hears, or that hands on what it found."""
    return any(_SENSE.search(part) for part in path.split("."))
