"""The one decoder's parameters, and how a family's ``config.json`` is read into them without ignoring anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..errors import JsonFileError, UnsupportedFeatureError

Activation = Literal["silu", "relu", "gelu", "gelu_tanh"]
T = TypeVar("T")

BOOKKEEPING = frozenset(
    [
        "architectures",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "id2label",
        "initializer_range",
        "init_std",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "model_type",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "prefix",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "use_bfloat16",
        "use_cache",
        "attention_dropout",
        "dropout",
        "activation_dropout",
        "layerdrop",
        "hidden_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "pretraining_tp",
        "quantization_config",
        "rope_parameters",
        "rope_theta",
        "rope_scaling",
    ]
)
"""Config keys that change nothing about inference, or that are read by a function of their own."""

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: base, and how its frequencies are scaled."""

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    """Low frequencies are divided by this: all of them if the kind is linear."""
    low_freq_factor: float = 1.0
    """llama3: a wave that fits ``original_positions`` at most so many times has a low frequency."""
    high_freq_factor: float = 1.0
    """llama3: one that fits at least so many times stays as it is; between the two, in proportion."""
    original_positions: float = 1.0
    """llama3: context before scaling."""


@dataclass(frozen=True)
class DecoderConfig:
    """What the decoder needs to know; sizes in elements."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: Activation
    gated: bool
    """``down(act(gate(x)) * up(x))`` instead of ``down(act(up(x)))``."""
    rope: Rope | None
    """The rotary embedding; None: learned positions."""
    embedding_size: int
    """Width of the token embedding; projected to ``hidden_size`` and back where they differ."""
    tied: bool
    """The head is the token embedding."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    position_offset: int = 0
    """Row of the learned position table that position 0 uses."""
    pre_norm: bool = True
    """Norms stand before attention and FFN; else after their residual sums."""
    final_norm: bool = True


class RawConfig:
    """A ``config.json`` that remembers what was read, so that nothing in it is passed over in silence."""

    def __init__(self, values: Mapping[str, Any], file: object = "config.json") -> None:
        self.values = values
        self.file = file
        self._read: set[str] = set()

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._get(key, default)
        if type(value) is not int or value <= 0:
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="an integer > 0",
                                found=repr(value))  # fmt: skip
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="a number > 0",
                                found=repr(value))  # fmt: skip
        try:
            return float(value)
        except OverflowError:
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="a float",
                                found=repr(value)) from None  # fmt: skip

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise JsonFileError(f"config key '{key}'", file=self.file, expected="true or false",
                                found=repr(value))  # fmt: skip
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """A feature that has to be one of those known here."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.unsupported(key, value, f"one of {', '.join(choices)}")
        return choices[value]

    def finish(self) -> None:
        """Refuse, by name, a key that nobody read and that says more than 'off'."""
        for key, value in self.values.items():
            known = key in self._read or key in BOOKKEEPING or key.startswith("_")
            if not known and value not in (None, False, 0, "", [], {}):
                raise self.unsupported(key, value)

    def unsupported(
        self, key: str, value: object, expected: str | None = None
    ) -> UnsupportedFeatureError:
        return UnsupportedFeatureError(
            f"config asks for a feature that the runtime does not have: '{key}'",
            file=self.file, expected=expected, found=repr(value),
        )  # fmt: skip

    def _get(self, key: str, default: object) -> Any:
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value
