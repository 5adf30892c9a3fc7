"""The same model shape in the peers' runtimes, each row on a line of JSON: a process of its own, which may fail or hang.

    python -m benchmarks.gpu.peers --device cuda [--shape tiny]

transformers in bf16; the same with torchao's int8 weights (no torch.compile); the same in fp16 with bitsandbytes' int8 linears,
with decomposition (threshold 6.0) and without (0.0). Six channels of every norm's gain are 20, so that there is something to decompose, as in
trained models. Steps run one after the other with transformers' own cache, without its ``generate``: the best it can do without
graphs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .session import Row, Session, skipped
from .timing import now

PEERS = (
    "transformers bf16", "bitsandbytes int8, threshold 6.0", "bitsandbytes int8, threshold 0.0", "torchao int8 weight-only",
)  # fmt: skip
_OUTLIER_CHANNELS = 6
_ROOT = Path(__file__).parents[2]


def rows(session: Session) -> Iterator[Row]:
    """What the other process prints; what it does not get to is skipped."""
    command = [sys.executable, "-m", "benchmarks.gpu.peers", "--device", session.device.type]
    command += ["--shape", "tiny"] if session.tiny else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=max(session.left(), 1))
        reason = f"exit code {process.returncode}: {(err.splitlines() or [''])[-1]}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        reason = "no time left"
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    yield from found
    seen = {row["runtime"] for row in found}
    yield from (skipped({"runtime": peer}, reason) for peer in PEERS if peer not in seen)


def measured(session: Session) -> Iterator[Row]:
    """In the process of its own."""
    for peer in PEERS:
        started = time.monotonic()
        try:
            model = _model(session, peer)
            for batch in session.pick([1, 2], [1, 32]):
                yield {"runtime": peer, "batch": batch} | _speed(session, model, batch)
            sys.stderr.write(f"{peer}: {time.monotonic() - started:.0f} s\n")
            del model
        except Exception as error:
            yield skipped({"runtime": peer}, f"{type(error).__name__}: {error}")
        session.forget()


def _model(session: Session, peer: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    from .random_model import CONFIGS

    convert: Callable[[Any], None] = lambda model: None  # noqa: E731
    if peer.startswith("bitsandbytes"):
        convert = _with_bitsandbytes(float(peer.rpartition(" ")[2]))
    elif peer.startswith("torchao"):
        convert = _with_torchao()
    dtype = torch.float16 if peer.startswith("bitsandbytes") else torch.bfloat16
    config = AutoConfig.for_model(**CONFIGS[session.model])
    with session.device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.data[:_OUTLIER_CHANNELS] = 20.0
    convert(model)
    return model


def _with_bitsandbytes(threshold: float) -> Callable[[Any], None]:
    """Its linears in place of those of the layers."""
    import bitsandbytes as bnb

    host: dict[torch.Size, torch.Tensor] = {}

    def convert(model: Any) -> None:
        for parent in model.model.layers.modules():
            for name, linear in list(parent.named_children()):
                if type(linear) is not torch.nn.Linear:
                    continue
                device, shape = linear.weight.device, linear.weight.shape
                if shape not in host:  # the same numbers in all of a shape: only the time counts
                    host[shape] = linear.weight.data.cpu()
                new = bnb.nn.Linear8bitLt(
                    linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=threshold,
                    device="meta",
                )  # fmt: skip
                new.weight = bnb.nn.Int8Params(
                    host[shape], requires_grad=False, has_fp16_weights=False
                )
                setattr(parent, name, new.to(device))  # which quantizes

    return convert


def _with_torchao() -> Callable[[Any], None]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    return lambda model: quantize_(model.model.layers, Int8WeightOnlyConfig())


@torch.inference_mode()
def _speed(session: Session, model: Any, batch: int) -> Row:
    """One pass over prompts after a shorter one, and steps."""
    prompt, steps = session.pick((5, 2), (512, 24))
    ids = torch.randint(model.config.vocab_size, (batch, prompt), device=session.device)
    for length, count in ((prompt, 2), (prompt, steps)):  # the first warms up
        started = now(session.device)
        out = model(ids[:, :length], use_cache=True, logits_to_keep=1)
        prefilled = now(session.device)
        for _ in range(count):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        done = now(session.device)
    decode = (done - prefilled) / steps
    return {
        "prompt": prompt, "steps": steps, "prefill tok/s": batch * prompt / (prefilled - started),
        "decode tok/s": batch / decode, "ms a step": decode * 1e3,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if session.on_gpu else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=["8b", "tiny"], default="8b")
    options = parser.parse_args()
    session = Session(torch.device(options.device), options.shape == "tiny", time.monotonic() + 600)
    for row in measured(session):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
