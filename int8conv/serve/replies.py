"""Replies of OpenAI's interface."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from ..runtime.generate.generation import Generation
from ..runtime.text.detokenizer import token_bytes
from ..runtime.text.tokenizer import Tokenizer
from .asking import Asked
from .generating import Piece

_REASONS = {"stop": "stop", "length": "length", "cancelled": "stop"}


@dataclass(frozen=True)
class Reply:
    """The shape of the replies to one request."""

    kind: Literal["chat", "text"]
    model: str
    tokenizer: Tokenizer
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, asked: Asked, found: Sequence[Generation]) -> dict[str, Any]:
        """All choices at once."""
        choices = [self._choice(i, asked, each) for i, each in enumerate(found)]
        return self._head(chunk=False) | {"choices": choices, "usage": usage(found, asked.n)}

    def chunk(self, asked: Asked, piece: Piece, *, first: bool) -> dict[str, Any]:
        """A part of a stream."""
        reason = None if piece.end is None else _REASONS[piece.end.finish_reason]
        shown: dict[str, Any] = {
            "index": piece.choice,
            "finish_reason": reason,
            "logprobs": None if piece.tokens is None else self._logprobs(piece.tokens),
        }
        if self.kind == "text":
            shown["text"] = (self._echo(asked, piece.choice) if first else "") + piece.text
        else:
            shown["delta"] = ({"role": "assistant"} if first else {}) | (
                {"content": piece.text} if piece.text or first else {}
            )
        return self._head(chunk=True) | {"choices": [shown]}

    def last(self, asked: Asked, found: Sequence[Generation]) -> dict[str, Any]:
        """The part of a stream that has numbers of tokens."""
        return self._head(chunk=True) | {"choices": [], "usage": usage(found, asked.n)}

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        part = ".chunk" if chunk and self.kind == "chat" else ""
        prefix = "chatcmpl-" if self.kind == "chat" else "cmpl-"
        return {
            "id": prefix + self.id,
            "object": name + part,
            "created": self.created,
            "model": self.model,
        }

    def _choice(self, i: int, asked: Asked, found: Generation) -> dict[str, Any]:
        common = {
            "index": i,
            "finish_reason": _REASONS[found.finish_reason],
            "logprobs": None if asked.logprobs is None else self._logprobs(found),
        }
        if self.kind == "chat":
            return common | {"message": {"role": "assistant", "content": found.text}}
        return common | {"text": self._echo(asked, i) + found.text}

    def _echo(self, asked: Asked, choice: int) -> str:
        """The prompt, if it is part of the text."""
        prompt = asked.prompts[choice // asked.n] if asked.echo else ""
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    def _logprobs(self, found: Generation) -> dict[str, Any]:
        tops = found.top_logprobs or [()] * len(found.token_ids)
        if self.kind == "chat":
            values = zip(found.token_ids, found.logprobs or (), tops, strict=True)
            content = [
                self._token(token, value) | {"top_logprobs": [self._token(*each) for each in top]}
                for token, value, top in values
            ]
            return {"content": content}
        return {
            "tokens": [self._text(token) for token in found.token_ids],
            "token_logprobs": found.logprobs,
            "top_logprobs": [{self._text(token): value for token, value in top} for top in tops],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(self.tokenizer.keeping_special, token)
        return {"token": _shown(data), "logprob": logprob, "bytes": list(data)}

    def _text(self, token: int) -> str:
        return _shown(token_bytes(self.tokenizer.keeping_special, token))


def _shown(data: bytes) -> str:
    """A token's text; of parts of characters, which all look alike as text, the bytes, as OpenAI writes them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def usage(found: Sequence[Generation], n: int) -> dict[str, int]:
    """Numbers of tokens; a prompt counts once for all of its choices."""
    prompt = sum(each.prompt_tokens for each in found[::n])
    reply = sum(len(each.token_ids) for each in found)
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}


def error(text: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """What went wrong."""
    return {"error": {"message": text, "type": kind, "param": param, "code": None}}
