"""A conversation with a model: messages, the template that makes a prompt of them, and a cache that keeps the history."""

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
"""Of a conversation's text, per position of the context: English has four or five."""
FEWEST_CHARACTERS: Final = 1 << 16
"""That are tokenized, however short the context is."""


class Chat:
    """Turns of user and assistant. The history stays in the cache: a turn computes its own tokens only."""

    def __init__(
        self, model: Model, sampling: Sampling | None = None, *, system: str | None = None,
        max_new_tokens: int | None = None, stop: str | Sequence[str] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> None:  # fmt: skip
        """
        Args:
            model: with a chat template in its folder.
            sampling, stop, options: as in ``Model.generate``, for every reply.
            system: what the model is told before the first message.
            max_new_tokens: of a reply; else as generation_config.json says, else 1024; fewer where the context ends.

        Raises:
            ArgumentError: an option out of range.
            TokenizerError: no chat template, or a malformed one.
        """
        self.model = model
        self.template = ChatTemplate.load(model.folder)
        self.messages: list[Message] = []
        """What was said so far, replies among it."""
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self.session = Session(model.decoder)
        self._limit = max_new_tokens or model.defaults.max_new_tokens or REPLY_TOKENS
        self._sampling = (sampling or model.sampling).changed(options)
        self._stop = stop
        eos = model.tokenizer.token_id(self.template.special_tokens.get("eos_token", ""))
        self._end_tokens = () if eos is None else (eos,)

    def say(self, text: str, *, on_text: Callable[[str], None] | None = None) -> Generation:
        """A message of the user -> the assistant's reply. If it fails, the conversation is as before.

        Raises:
            GenerationError: the conversation has outgrown the context.
            TokenizerError: the template fails, or refuses these messages.
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
        """Raise GenerationError for text that cannot fit: a template may make millions of characters, which take seconds to tokenize."""
        positions = self.model.config.max_positions
        most = max(FEWEST_CHARACTERS, MOST_CHARACTERS * positions)
        if len(text) > most:
            raise GenerationError(
                "the conversation does not fit the context", file=self.model.folder,
                expected=f"at most {most:,} characters for {positions:,} positions",
                found=f"{len(text):,}",
            )  # fmt: skip
