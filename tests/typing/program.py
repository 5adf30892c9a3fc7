"""A program that uses every public name; mypy reads it, nobody runs it."""

from __future__ import annotations

from pathlib import Path

import torch

import int8conv

stats = int8conv.calibrate("checkpoint", "stats.safetensors", texts=["a.txt"], tokens=1024)
report = int8conv.convert_checkpoint("checkpoint", Path("out"), outliers="calibrated", jobs=2)
model = int8conv.load("out", torch.device("cpu"), "w8a16")
footprint = model.footprint(context=1024, batch=2)
sampling = int8conv.Sampling(temperature=0.7, top_k=20)
generation = model.generate("Once", sampling, max_new_tokens=10, seed=1)
batch = model.generate_batch(["a", [1, 2]], temperature=0.5)
logits = model.logits(torch.tensor([[1, 2]]))
summary = int8conv.inspect_folder("out")
verified = int8conv.verify("out", progress=lambda stage, done, total: print(stage, done, total))
comparison = int8conv.compare("out", "checkpoint")
evaluation = int8conv.evaluate("out", "text.txt", against="checkpoint")
predicted = int8conv.predict_footprint("checkpoint", device="cuda:0", kv_cache="int8")

reveal_type(stats)
reveal_type(report)
reveal_type(report.ratio)
reveal_type(report.quality)
reveal_type(model)
reveal_type(footprint)
reveal_type(footprint.total)
reveal_type(sampling)
reveal_type(generation)
reveal_type(generation.text)
reveal_type(generation.logprobs)
reveal_type(batch)
reveal_type(logits)
reveal_type(summary)
reveal_type(summary.total.nbytes)
reveal_type(verified)
reveal_type(comparison)
reveal_type(comparison.median_sqnr_db)
reveal_type(evaluation)
reveal_type(evaluation.against)
reveal_type(predicted)
reveal_type(int8conv.__version__)

try:
    int8conv.load("nothing")
except int8conv.errors.NotFoundError as error:
    reveal_type(error)
    reveal_type(error.hint)
except int8conv.Int8convError as other:
    reveal_type(other)

# what mypy has to refuse
model.generate("Once", temprature=0.7)
model.generate("Once", top_k="many")
int8conv.convert_checkpoint("checkpoint", "out", outliers="some")
int8conv.quantize_it("checkpoint")
