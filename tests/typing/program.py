"""A program that uses every public name: mypy reads it with the package (``make check``), nobody runs it.

What a name gives must be exactly the type that ``assert_type`` says, which Any never is; what mypy has to refuse is marked, and a
mark that nothing needs is an error too.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import torch

import int8conv
from int8conv.convert.compare import SourceComparison
from int8conv.convert.report import ConvertReport, LinearQuality
from int8conv.formats.int8.stats import Stats
from int8conv.formats.int8.summary import FolderSummary
from int8conv.runtime.generate.generation import Generation
from int8conv.runtime.measure.evaluate import Comparison, Evaluation
from int8conv.runtime.measure.footprint import Footprint

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

pushed = int8conv.push("out", "org/name", private=True, dry_run=True)

assert_type(pushed, int8conv.PushReport)
assert_type(pushed.commit, str | None)
assert_type(stats, Stats)
assert_type(report, ConvertReport)
assert_type(report.ratio, float)
assert_type(report.quality, dict[str, LinearQuality])
assert_type(model, int8conv.Model)
assert_type(footprint, Footprint)
assert_type(footprint.total, int)
assert_type(sampling, int8conv.Sampling)
assert_type(generation, Generation)
assert_type(generation.text, str)
assert_type(generation.logprobs, list[float] | None)
assert_type(batch, list[Generation])
assert_type(logits, torch.Tensor)
assert_type(summary, FolderSummary)
assert_type(summary.total.nbytes, int)
assert_type(verified, int)
assert_type(comparison, SourceComparison)
assert_type(comparison.median_sqnr_db, float | None)
assert_type(evaluation, Evaluation)
assert_type(evaluation.against, Comparison | None)
assert_type(predicted, Footprint)
assert_type(int8conv.__version__, str)

try:
    int8conv.load("nothing")
except int8conv.errors.NotFoundError as error:
    assert_type(error.hint, str | None)
except int8conv.Int8convError as other:
    assert_type(other.hint, str | None)

model.generate("Once", temprature=0.7)  # type: ignore[call-arg]
model.generate("Once", top_k="many")  # type: ignore[arg-type]
int8conv.convert_checkpoint("checkpoint", "out", outliers="some")  # type: ignore[arg-type]
int8conv.quantize_it("checkpoint")  # type: ignore[attr-defined]
