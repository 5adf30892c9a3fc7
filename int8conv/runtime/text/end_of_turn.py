"""The tokens with which a reply ends, where no list of the checkpoint has them: found in its chat template, and by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import TokenizerError
from .chat_template import ChatTemplate

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_NAMES: Final = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end_of_turn|>", "<|end|>", "<turn|>", "<|endofturn|>",
    "<|eot|>", "<|EOT|>", "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|return|>", "<|call|>",
)  # fmt: skip
"""Special tokens with one meaning in every model that has them, but for the next."""
_OF_MESSAGES: Final = "<|end|>"
"""Ends a message of several in a turn where there is ``<|return|>`` to end the turn (gpt-oss)."""
_SAID: Final = "Quite so"


def end_of_turn_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the special tokens that end what an assistant says."""
    found = {tokenizer.token_id(template.special_tokens.get("eos_token", ""))}
    found.add(_after_reply(template, tokenizer))
    ids = {name: tokenizer.token_id(name) for name in _NAMES}
    found |= {number for number in ids.values() if _is_special(tokenizer, number)}
    if ids["<|return|>"] is not None:
        found.discard(ids[_OF_MESSAGES])
    return frozenset(number for number in found if number is not None)


def _after_reply(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The special token that the template puts behind a reply."""
    turns = [("user", "Is it so?"), ("assistant", _SAID), ("user", "Well.")]
    try:
        text = template.render(
            [{"role": role, "content": content} for role, content in turns],
            add_generation_prompt=False,
        )
    except TokenizerError:  # it wants another kind of conversation
        return None
    _, said, rest = text.rpartition(_SAID)
    if not said:
        return None
    token = next(iter(tokenizer.encode(rest.lstrip(), special=False)), None)
    return token if _is_special(tokenizer, token) else None


def _is_special(tokenizer: Tokenizer, token: int | None) -> bool:
    return token is not None and tokenizer.is_special(token)
