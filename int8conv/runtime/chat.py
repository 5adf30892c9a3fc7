"""A conversation with a model: messages, the template that formats them, and a cache of the history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from typing_extensions import Unpack

from ..errors import GenerationError
from .generate.generation import Generation
from .generate.sampling import Sampling, SamplingOptions
from .generate.session import Session
from .model import Model
from .text.chat_template import ChatTemplate, Message

REPLY_TOKENS: Final = 1024
MOST_CHARACTERS: Final = 32
"""Limit on characters of a conversation per position of the context: English has four or five."""
FEWEST_CHARACTERS: Final = 1 << 16
"""Number of characters that are always tokenized, however short the context is."""


class Chat:
    """A conversation of user and assistant. The history stays in the cache: each turn computes only its own tokens."""

    def __init__(
        self, model: Model, sampling: Sampling | None = None, *, system: str | None = None,
        max_new_tokens: int | None = None, stop: str | Sequence[str] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> None:  # fmt: skip
        """
        Args:
            model: a model with a chat template in its folder.
            sampling, stop, options: as in ``Model.generate``, for every reply.
            system: system message, sent before the first message.
            max_new_tokens: largest length of a reply; None: from generation_config.json, or 1024; fewer if the context ends.

        Raises:
            ArgumentError: an option is out of range.
            TokenizerError: the chat template is missing or malformed.
        """
        self.model = model
        self.template = ChatTemplate.load(model.folder)
        self.messages: list[Message] = []
        """All messages so far, including replies."""
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self.session = Session(model.decoder)
        self._limit = max_new_tokens or model.defaults.max_new_tokens or REPLY_TOKENS
        self._sampling = (sampling or model.sampling).changed(options)
        self._stop = stop
        eos = model.tokenizer.token_id(self.template.special_tokens.get("eos_token", ""))
        self._end_tokens = () if eos is None else (eos,)

    def say(self, text: str, *, on_text: Callable[[str], None] | None = None) -> Generation:
        """Send a user message and return the assistant's reply. On failure, the conversation is unchanged.

        Raises:
            GenerationError: the conversation has outgrown the context.
            TokenizerError: the template fails or refuses these messages.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        rendered = self.template.render(messages)
        self._check_length(rendered)
        ids = self.model.tokenizer.encode(rendered, special=False)
        left = self.model.config.max_positions - len(ids)
        reply = self.model.generate(
            ids, self._sampling, max_new_tokens=max(1, min(self._limit, left)), stop=self._stop,
            end_tokens=self._end_tokens, session=self.session, on_text=on_text,
        )  # fmt: skip
        self.messages = [*messages, {"role": "assistant", "content": reply.text}]
        return reply

    def _check_length(self, text: str) -> None:
        """Raise GenerationError for text that cannot fit: a template may produce millions of characters, which take seconds to tokenize."""
        positions = self.model.config.max_positions
        most = max(FEWEST_CHARACTERS, MOST_CHARACTERS * positions)
        if len(text) > most:
            raise GenerationError(
                "the conversation does not fit the context", file=self.model.folder,
                expected=f"at most {most:,} characters for {positions:,} positions",
                found=f"{len(text):,}",
            )  # fmt: skip
