"""Releases whose ``config.json`` tests read, by family; ``tests/runtime/models/releases.json`` has the files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

RELEASES: Final[Mapping[str, tuple[str, ...]]] = {
    "bloom": ("bigscience/bloom-560m",),
    "cohere": ("CohereForAI/c4ai-command-r-v01",),
    "deepseek_v2": ("deepseek-ai/DeepSeek-V2-Lite",),
    "deepseek_v3": ("deepseek-ai/DeepSeek-V3",),
    "falcon": ("tiiuae/falcon-7b",),
    "gemma": ("google/gemma-2b",),
    "gemma2": ("google/gemma-2-9b-it",),
    "gemma3_text": ("unsloth/gemma-3-1b-it",),
    "gemma4_text": ("google/gemma-4-E2B-it (text)", "google/gemma-4-E4B-it (text)", "google/gemma-4-26B-A4B-it (text)", "google/gemma-4-31B-it (text)",),
    "gpt2": ("openai-community/gpt2",),
    "gpt_neox": ("EleutherAI/pythia-1.4b",),
    "gpt_oss": ("openai/gpt-oss-20b",),
    "gptj": ("EleutherAI/gpt-j-6b",),
    "granite": ("ibm-granite/granite-3.1-8b-instruct",),
    "llama": ("unsloth/Llama-3.2-1B-Instruct", "a fine-tune by unsloth of Llama-3.1-8B", "lmsys/vicuna-7b-v1.5", "TheBloke/Llama-2-7B-Chat-fp16", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "HuggingFaceTB/SmolLM2-135M-Instruct", "unsloth/phi-4", "01-ai/Yi-34B",),
    "mistral": ("mistralai/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-Nemo-Instruct-2407",),
    "mixtral": ("mistralai/Mixtral-8x7B-Instruct-v0.1",),
    "olmo2": ("allenai/OLMo-2-1124-7B-Instruct",),
    "opt": ("facebook/opt-350m",),
    "phi": ("microsoft/phi-2",),
    "phi3": ("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-4-mini-instruct",),
    "qwen2": ("Qwen/Qwen2.5-7B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",),
    "qwen2_moe": ("Qwen/Qwen1.5-MoE-A2.7B-Chat",),
    "qwen3": ("unsloth/Qwen3-8B",),
    "qwen3_moe": ("Qwen/Qwen3-Coder-30B-A3B-Instruct",),
    "stablelm": ("stabilityai/stablelm-2-1_6b-chat",),
    "starcoder2": ("bigcode/starcoder2-7b",),
}  # fmt: skip
