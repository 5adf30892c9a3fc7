"""bitsandbytes' LLM.int8() itself, through transformers, against the same model in float32: run by fidelity.py.

    python benchmarks/fidelity_bitsandbytes.py CHECKPOINT WINDOWS.npy

WINDOWS.npy has token ids int64 [windows, tokens]. Prints one line of JSON. Imports nothing of int8conv.
"""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


@torch.inference_mode()
def main(folder: str, file: str) -> dict[str, float]:
    windows = torch.from_numpy(np.load(file))
    source = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    quantized = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings, device_map="cpu"
    ).eval()
    nll = base = kl = same = 0.0
    for window in windows:
        p, q = (
            F.log_softmax(model(window[None]).logits[0, :-1].float(), dim=-1)
            for model in (source, quantized)
        )
        targets = window[1:, None]
        base -= float(p.gather(1, targets).double().sum())
        nll -= float(q.gather(1, targets).double().sum())
        kl += float((p.exp() * (p - q)).double().sum())
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
    count = windows.shape[0] * (windows.shape[1] - 1)
    return {
        "perplexity": math.exp(nll / count), "ratio": math.exp((nll - base) / count),
        "kl": kl / count, "top1": same / count,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3])))
