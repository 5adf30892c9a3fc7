"""Families of models, one small file each, named after ``model_type``.

A family is data: how to read its config, and the names of its modules on the hub. To add one, write a file with a ``FAMILY``
and list it below. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ....errors import UnknownFamilyError
from . import (
    apertus,
    bamba,
    bloom,
    cohere,
    deepseek,
    dots,
    ernie_moe,
    exaone,
    falcon,
    falcon_h1,
    gemma,
    gemma3,
    gemma3n,
    gemma4,
    gemma4_unified,
    glm,
    glm_dsa,
    glm_flash,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    granite_hybrid,
    hunyuan,
    hunyuan3,
    hyperclovax,
    lfm2,
    lfm2_moe,
    llama,
    llama_like,
    mellum,
    minimax,
    ministral3,
    mistral,
    mixtral,
    nemotron,
    nemotron_h,
    olmo,
    olmoe,
    opt,
    phi,
    phimoe,
    qwen,
    qwen_moe,
    qwen_next,
    smollm,
    solar,
    stablelm,
    starcoder,
    vaultgemma,
    youtu,
)
from .family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        bloom.FAMILY, falcon.FAMILY, cohere.COHERE, gemma.GEMMA, gemma.GEMMA2, gemma3.FAMILY, gemma3n.FAMILY, gemma4.FAMILY, gemma4_unified.FAMILY, gpt2.FAMILY, gptj.FAMILY,
        gpt_neox.FAMILY, granite.GRANITE, granite.GRANITEMOE, llama.FAMILY, mistral.FAMILY, mixtral.FAMILY, olmo.OLMO2, olmoe.FAMILY, opt.FAMILY,
        phi.PHI, phi.PHI3, qwen.QWEN2, qwen_moe.QWEN2_MOE, qwen.QWEN3, qwen_moe.QWEN3_MOE, stablelm.FAMILY,
        starcoder.FAMILY,
        cohere.COHERE2, deepseek.V2, deepseek.V3, deepseek.V32, glm_flash.FAMILY, dots.FAMILY, exaone.EXAONE4, exaone.EXAONE_MOE, glm.GLM, glm.GLM4, glm.GLM4_MOE, gpt_bigcode.FAMILY,
        gpt_neo.FAMILY, gpt_oss.FAMILY, hunyuan.DENSE, hunyuan.MOE, hyperclovax.FAMILY, llama_like.CWM, llama_like.ERNIE4_5,
        llama_like.HELIUM, llama_like.INTERNLM3, llama_like.MINISTRAL, llama_like.SEED_OSS, minimax.FAMILY, ministral3.FAMILY, nemotron.ARCEE,
        apertus.FAMILY, ernie_moe.FAMILY, glm_dsa.FAMILY, hunyuan3.FAMILY, llama_like.IQUESTCODER, mellum.FAMILY, phimoe.FAMILY, youtu.FAMILY,
        bamba.FAMILY, falcon_h1.FAMILY, granite_hybrid.HYBRID, granite_hybrid.SHARED, lfm2.FAMILY, lfm2_moe.FAMILY, nemotron_h.FAMILY,
        qwen_next.DENSE, qwen_next.MOE, qwen_next.NEXT, nemotron.JAIS2, nemotron.NEMOTRON, olmo.OLMO3, smollm.FAMILY, solar.FAMILY, vaultgemma.FAMILY,
    )
}  # fmt: skip

SAME_AS: Final[Mapping[str, str]] = {"kimi_k2": "deepseek_v3"}
"""Types of releases with their own code that compute what a family does."""

__all__ = ["FAMILIES", "Family", "find_family", "known_type"]


def known_type(config: dict[str, Any]) -> Any:  # a config.json may hold anything
    """The ``model_type`` of a config, under the name of its family."""
    found = config.get("model_type")
    return SAME_AS.get(found, found) if isinstance(found, str) else found


def find_family(config: dict[str, Any], file: object = "config.json") -> Family:
    """The family that a ``config.json`` names.

    Raises:
        UnknownFamilyError: its ``model_type`` is unknown.
    """
    model_type = known_type(config)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnknownFamilyError(
            f"unknown model_type {model_type!r}", file=file,
            expected=f"one of {', '.join(sorted(FAMILIES))}", found=repr(model_type),
        )  # fmt: skip
    family = FAMILIES[model_type]
    return family if family.variant is None else replace(family, names=family.variant(config))
