"""Whether a module may become int8, judged by all components of its path, not only the last.

Routers and gates of recurrences, embeddings, heads, norms and adapters stay in 16 bits; so do vision and audio parts, unless
they are the whole model.
"""

from __future__ import annotations

import re
from typing import Final

_ANYWHERE: Final = re.compile(
    r"(\w+_)?routers?(_\w+)?|gate|gating|(moe|experts?|routing)_gate|lora_\w+|(\w+_)?adapters?(_\w+)?|"
    r"(\w+_)?(lm|medusa|mtp|shared|output|classification|codec)_heads?|heads?"
)
"""Everything below a component with such a name is a router, adapter or head."""
_LAST: Final = re.compile(
    r"emb|embed|embeddings?|embed_\w+|\w+_emb(ed|edding|eddings)?|wte|wpe|"
    r"norm\w*|\w*norm|ln|ln_\w+|wg|wgate|relative\w*|rotary\w*|conv\w*|classifier|score|\w+_heads?"
)
"""Names of embeddings, norms, routers, convolutions and heads: of the module itself, without trailing numbers."""
_RECURRENCE: Final = re.compile(
    r"[abf]_proj|[fg]_[ab]_proj|[fg]_[ab]|in_proj_(a|b|ba)|x_proj|dt_proj|weights_proj|"
    r"[if]gate(_preact)?|(input|forget|recurrent)_gate"
)
"""Projections to decays, step sizes, write strengths and the like in linear attention and state space models, and an
indexer's head weights: narrow, and their errors carry over from token to token."""
_SENSE: Final = re.compile(
    r"(^|_)(visual|vision|audio|projector|merger|image|img|speech|vit|video)(_|$)", re.IGNORECASE
)
_NUMBERED: Final = re.compile(r"(^|\.)\d+\.")


def is_numbered(name: str) -> bool:
    """Whether a tensor is in a block with a number."""
    return _NUMBERED.search(name) is not None


def is_kept_by_name(path: str, *, gated: bool = False) -> bool:
    """Whether a module's name says that it is not a linear to quantize.

    Args:
        path: the module's path.
        gated: it has a sibling ``up`` of the same shape, so that ``gate`` is part of an FFN and not a router.
    """
    parts = [part for part in path.split(".") if not part.isdecimal()]
    if gated:
        parts = parts[:-1]
    if any(_ANYWHERE.fullmatch(part) for part in parts):
        return True
    last = parts[-1] if parts else ""
    return not gated and bool(_LAST.fullmatch(last) or _RECURRENCE.fullmatch(last))


def is_vision_or_audio(path: str) -> bool:
    """Whether a module belongs to a vision or audio part, or to its projector."""
    return any(_SENSE.search(part) for part in path.split("."))
