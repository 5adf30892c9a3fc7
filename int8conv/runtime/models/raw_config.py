"""A family's ``config.json``, read into the decoder's parameters without ignoring anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

from ...errors import JsonFileError, UnsupportedFeatureError

T = TypeVar("T")

BOOKKEEPING = frozenset([
    "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id", "dtype",
    "eos_token_id", "finetuning_task", "id2label", "initializer_range", "init_std", "is_decoder",
    "is_encoder_decoder", "is_llama_config", "label2id", "model_type", "num_labels", "output_attentions",
    "output_hidden_states", "pad_token_id", "prefix", "problem_type", "return_dict", "sep_token_id",
    "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "unk_token_id", "use_bfloat16", "use_cache", "attention_dropout",
    "attn_implementation", "classifier_dropout", "dropout", "activation_dropout", "layerdrop", "hidden_dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "pretraining_tp", "quantization_config", "rope_parameters",
    "rope_theta", "rope_scaling",
])  # fmt: skip
"""Config keys that do not affect inference, or that are read by a separate function."""

MOST_SIZE: Final = 2**40
"""Limit on counts without a limit of their own."""
MOST_LISTED: Final = 10_000
"""Limits on layers and experts, which are listed before any tensor is looked at."""
_LISTED: Final = {
    "n_layer", "n_layers", "num_hidden_layers", "num_layers",
    "moe_num_experts", "n_routed_experts", "num_experts", "num_experts_per_tok", "num_local_experts",
}  # fmt: skip
MOST_NUMBER: Final = 1e30


class RawConfig:
    """A ``config.json`` that records which keys were read, so that nothing is silently ignored."""

    def __init__(self, values: Mapping[str, Any], file: object = "config.json") -> None:
        self.values = values
        self.file = file
        self._read: set[str] = set()

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer within a sensible limit."""
        value = self._get(key, default)
        most = MOST_LISTED if key in _LISTED else MOST_SIZE
        if type(value) is not int or not 0 < value <= most:
            large = type(value) is int and value > most
            raise JsonFileError(f"config key '{key}'", file=self.file, found=repr(value),
                                expected=f"at most {most:,}" if large else "an integer > 0")  # fmt: skip
        return value

    def size_per_head(self, size: str, heads: str) -> int:
        """A width divided by the number of heads, given the keys of both."""
        width, count = self.integer(size), self.integer(heads)
        if count > width:
            raise JsonFileError(f"config key '{heads}'", file=self.file, found=count,
                                expected=f"at most {size} {width}")  # fmt: skip
        return width // count

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        return self.positive(key, self._get(key, default))

    def positive(self, key: str, value: object, most: float = MOST_NUMBER) -> float:
        """A config value as a positive number that is safe to compute with: neither close to 0 nor to infinity."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 1 / MOST_NUMBER <= value <= most:  # type: ignore[operator]
            positive = number and value > 0  # type: ignore[operator]
            raise JsonFileError(f"config key '{key}'", file=self.file, found=repr(value),
                                expected=f"{1 / MOST_NUMBER:g} to {most:g}" if positive else "a number > 0")  # fmt: skip
        return float(value)  # type: ignore[arg-type]

    def optional_integer(self, key: str) -> int | None:
        """A positive integer, or None if the config has none."""
        return None if self._get(key, None) is None else self.integer(key)

    def optional_number(self, key: str) -> float | None:
        """A positive number, or None if the config has none."""
        return None if self._get(key, None) is None else self.number(key)

    def strings(self, key: str) -> list[str] | None:
        """A list of strings, or None if the config has none."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="a list of strings",
                                found=repr(value))  # fmt: skip
        return value

    def integers(self, key: str) -> list[int]:
        """A list of integers; empty if the config has none."""
        value = self._get(key, [])
        if not isinstance(value, list) or not all(type(entry) is int for entry in value):
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="a list of integers",
                                found=repr(value))  # fmt: skip
        return value

    def fixed(self, key: str, value: object) -> None:
        """Check a feature of which only one form is supported, which is also the default."""
        found = self._get(key, value)
        if found != value:
            raise self.unsupported(key, found, repr(value))

    def ignore(self, *keys: str) -> None:
        """Mark keys that do not affect inference in this family as read."""
        self._read.update(keys)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="true or false",
                                found=repr(value))  # fmt: skip
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """A feature that must be one of the supported choices."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.unsupported(key, value, f"one of {', '.join(choices)}")
        return choices[value]

    def finish(self, fields: Collection[str]) -> tuple[str, ...]:
        """Refuse, by name, an unread key that is not simply off and that the reference implementation reads.

        Args:
            fields: the keys that transformers reads in this family (``reference_fields``).

        Returns:
            The other unread keys: fine-tuners, other programs and old releases add many, and they have no effect.

        Raises:
            UnsupportedFeatureError: the first key that may change what the model computes.
        """
        passed_over = []
        for key, value in self.values.items():
            known = key in self._read or key in BOOKKEEPING or key.startswith("_")
            if known or value in (None, False, 0, "", [], {}):
                continue
            if key in fields:
                raise self.unsupported(key, value)
            passed_over.append(key)
        return tuple(passed_over)

    def unsupported(
        self, key: str, value: object, expected: str | None = None
    ) -> UnsupportedFeatureError:
        return UnsupportedFeatureError(
            f"the config uses a feature that the runtime lacks: '{key}'",
            file=self.file, expected=expected, found=repr(value),
        )  # fmt: skip

    def _get(self, key: str, default: object) -> Any:
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value
