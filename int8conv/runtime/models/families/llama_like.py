"""Llama with other names of config keys, defaults or pairs of rotated channels.

Seed-OSS, CWM and Ministral 8B (windows), InternLM 3, IQuest-Coder; Helium and ERNIE 4.5 pair adjacent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..config import DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .standard import COMPUTED, NAMES, read_decoder, read_windows


def _reader(
    model_type: str, *, bias: tuple[str, bool] = ("attention_bias", False), out: str | None = None,
    mlp: str = "mlp_bias", theta: float = 1e4, eps: float = 1e-6, head: int | None = None,
    interleaved: bool = False, old: tuple[str, str] | None = None, tied: bool = False, window: bool = False, every: int | None = None,
) -> Callable[[RawConfig], DecoderConfig]:  # fmt: skip
    """A reader with a family's keys of biases (``old``: in releases before transformers knew it) and its defaults."""

    def read(raw: RawConfig) -> DecoderConfig:
        key, default = bias
        if key not in raw.values and old is not None:
            key = old[0]
        qkv_bias = raw.flag(key, default)
        raw.ignore("residual_dropout", "sliding_window_pattern")
        size = raw.optional_integer("head_dim") or head
        return read_decoder(
            raw, model_type,
            head_dim=size or raw.size_per_head("hidden_size", "num_attention_heads"),
            norm_eps=raw.number("rms_norm_eps", eps), tied=raw.flag("tie_word_embeddings", tied),
            rope=replace(read_rope(raw, theta=theta), interleaved=interleaved),
            windows=read_windows(raw, every=every) if window else (),
            qkv_bias=qkv_bias, out_bias=raw.flag(out, False) if out else qkv_bias,
            mlp_bias=raw.flag(old[1] if old and mlp not in raw.values else mlp, False),
        )  # fmt: skip

    return read


def _family(model_type: str, read: Callable[[RawConfig], DecoderConfig]) -> Family:
    return Family(model_type, "model.", NAMES, read, COMPUTED)


SEED_OSS = _family("seed_oss", _reader("seed_oss", bias=("attention_bias", True), out="attention_out_bias", head=128))  # fmt: skip
CWM = _family("cwm", _reader("cwm", theta=1e6, eps=1e-5, head=128, window=True))
MINISTRAL = _family("ministral", _reader("ministral", window=True))
HELIUM = _family(
    "helium",
    _reader("helium", out="attention_out_bias", theta=1e5, eps=1e-8, head=128, interleaved=True),
)
ERNIE4_5 = _family("ernie4_5", _reader("ernie4_5", bias=("use_bias", False), mlp="use_bias", theta=5e5, eps=1e-5, head=128, interleaved=True, tied=True))  # fmt: skip
IQUESTCODER = _family("iquestcoder", _reader("iquestcoder", eps=1e-5, head=128))
INTERNLM3 = _family("internlm3", _reader("internlm3", old=("qkv_bias", "bias"), eps=1e-5, head=128))  # fmt: skip
