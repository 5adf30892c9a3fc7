"""GPT-J: parallel blocks, interleaved rotary pairs."""

from __future__ import annotations

from ..config import DecoderConfig, Rope
from ..raw_config import RawConfig
from .family import Family
from .first_gpt import read_first_gpt


def read_gptj(raw: RawConfig) -> DecoderConfig:
    raw.ignore("rotary")
    size = raw.size_per_head("n_embd", "n_head")
    rope = Rope(10000.0, rotary_fraction=raw.integer("rotary_dim", size) / size, interleaved=True)
    tied = raw.flag("tie_word_embeddings", False)
    return read_first_gpt(raw, "gptj", rope=rope, tied=tied, head_bias=True, parallel=True)


FAMILY = Family(
    "gptj",
    "transformer.",
    {
        "embed": "transformer.wte",
        "attn_norm": "transformer.h.{}.ln_1",
        "q": "transformer.h.{}.attn.q_proj",
        "k": "transformer.h.{}.attn.k_proj",
        "v": "transformer.h.{}.attn.v_proj",
        "o": "transformer.h.{}.attn.out_proj",
        "up": "transformer.h.{}.mlp.fc_in",
        "down": "transformer.h.{}.mlp.fc_out",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    read_gptj,
    (".attn.bias", ".attn.masked_bias"),
)
