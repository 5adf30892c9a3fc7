"""Text that is held to a form: a JSON schema, a regular expression or a grammar, by the library llguidance (extra ``structured``).

At each token, those that would lead out of the form get no probability. Where the form is complete, only end tokens are left.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import ArgumentError, GenerationError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from ..text.tokenizer import Tokenizer
    from .sampler import LogitsProcessor

Kind = Literal["json_schema", "regex", "grammar"]
_COMPACT: Final = {"whitespace_flexible": False}
"""No whitespace but one space after commas and colons: a model could write it without end."""


@dataclass(frozen=True)
class Constraint:
    """The form of a text. Make it with ``json_schema``, ``regex`` or ``grammar``."""

    kind: Kind
    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Constraint:
        """JSON that a schema (a mapping, or its JSON) allows, without line breaks; ``{}``: any value.

        Raises:
            ArgumentError: it is not the JSON of an object.
        """
        try:
            value = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise ArgumentError(
                "JSON schema", expected="an object in JSON", found=str(error)
            ) from error
        if not isinstance(value, Mapping):
            raise ArgumentError("JSON schema", expected="an object in JSON", found=type(value).__name__)  # fmt: skip
        return cls("json_schema", text)

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression (Rust's syntax, without look-around) matches from its first character to its last."""
        return cls("regex", pattern)

    @classmethod
    def grammar(cls, grammar: str) -> Constraint:
        """Text of a context-free grammar in the syntax of Lark, with the rule ``start``."""
        return cls("grammar", grammar)


class TokenForms:
    """A vocabulary prepared for constraints, which takes about a second; one for all generations of a model.

    Args:
        tokenizer: the model's.
        vocab_size: number of logits.
        end_tokens: those after which the model's texts end.

    Raises:
        ArgumentError: llguidance is not installed, or cannot use the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_tokens: Collection[int]) -> None:
        llguidance = _library()
        if not end_tokens:
            raise ArgumentError("constraint", expected="a model with an end token", found="none",
                                hint="give one with end_tokens (--stop-token)")  # fmt: skip
        self._vocab_size = vocab_size
        try:
            self._tokenizer: LLTokenizer = llguidance.LLTokenizer(
                tokenizer.to_json(),
                n_vocab=vocab_size,
                eos_token=sorted(end_tokens),
            )
        except ValueError as error:
            raise ArgumentError("constraint", expected="a tokenizer that llguidance can use", found=_line(error)) from error  # fmt: skip

    def holding(self, constraint: Constraint, processor: LogitsProcessor | None) -> Held:
        """A logits processor for one continuation, after another one.

        Raises:
            ArgumentError: the constraint is malformed or too complex.
        """
        matcher = _library().LLMatcher
        try:
            if constraint.kind == "json_schema":
                grammar = matcher.grammar_from_json_schema(constraint.text, overrides=_COMPACT)
            elif constraint.kind == "regex":
                grammar = matcher.grammar_from_regex(constraint.text)
            else:
                grammar = matcher.grammar_from_lark(constraint.text)
        except ValueError as error:
            raise _unusable(constraint, str(error)) from error
        found = matcher(self._tokenizer, grammar, log_level=0)
        if found.is_error():
            raise _unusable(constraint, found.get_error())
        return Held(found, self._vocab_size, processor)


class Held:
    """The logits processor of one continuation."""

    # the library has no types that mypy can see
    def __init__(self, matcher: Any, vocab_size: int, processor: LogitsProcessor | None) -> None:
        self._matcher, self._vocab_size, self._processor = matcher, vocab_size, processor
        self._seen: int | None = None

    def __call__(self, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        """Logits of the next token, with minus infinity where the text would leave its form."""
        if self._processor is not None:
            logits = self._processor(token_ids, logits)
        if self._seen is not None:
            for token in token_ids[self._seen :]:
                if not self._matcher.consume_token(token):
                    raise GenerationError("a token left the form of the text", found=self._matcher.get_error())  # fmt: skip
        self._seen = len(token_ids)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise GenerationError("the form of the text is too complex", found=self._matcher.get_error())  # fmt: skip
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(np.bool_)
        return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)


def _unusable(constraint: Constraint, found: str) -> ArgumentError:
    name = constraint.kind.replace("_", " ").replace("json", "JSON")
    return ArgumentError(f"{name} cannot be used", found=_line(found))


def _line(text: object) -> str:
    return str(text).strip().partition("\n")[0][:300]


def _library() -> Any:  # a module without types
    try:
        import llguidance
    except ImportError as error:
        raise ArgumentError("constraint", expected="llguidance", found="not installed",
                            hint="pip install 'int8conv[structured]'") from error  # fmt: skip
    return llguidance
