"""Evaluation against the same figures by hand from whole logits, and what it refuses."""

from __future__ import annotations

import math
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import int8conv
from int8conv.errors import ArgumentError, EvaluationError, NotFoundError, SourceMismatchError
from int8conv.runtime.measure.evaluate import evaluate
from int8conv.runtime.text.tokenizer import Tokenizer

from ...checkpoints import LLAMA, edit_config, random_tensors, write_checkpoint

TEXT = (resources.files("int8conv.convert.outliers") / "calibration_text.txt").read_text()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def log_probabilities(model: int8conv.Model, ids: Tensor) -> Tensor:
    return F.log_softmax(model.logits(ids[None])[0].double(), dim=-1)


def test_disjoint_windows_by_hand(example: Path, example_int8: Path, text: Path) -> None:
    ids = torch.tensor(Tokenizer.load(example).encode(TEXT))[:200]
    source, converted = int8conv.load(example), int8conv.load(example_int8, mode="w8a8")
    p, q, targets = [], [], []
    for start in (0, 64, 128):
        window = ids[start : start + 64]
        p.append(log_probabilities(source, window)[:-1])
        q.append(log_probabilities(converted, window)[:-1])
        targets.append(window[1:])
    lp, lq, t = torch.cat(p), torch.cat(q), torch.cat(targets)[:, None]
    kl = (lp.exp() * (lp - lq)).sum(-1)
    result = evaluate(example_int8, text, against=example, window=64, tokens=200)
    assert (result.window, result.stride, result.tokens, result.scored) == (64, 64, 192, 189)
    assert result.perplexity == pytest.approx(math.exp(-float(lq.gather(1, t).mean())), rel=1e-5)
    found = result.against
    assert found is not None
    assert found.perplexity == pytest.approx(math.exp(-float(lp.gather(1, t).mean())), rel=1e-5)
    assert found.ratio == pytest.approx(result.perplexity / found.perplexity)
    assert found.kl_mean == pytest.approx(float(kl.mean()), rel=0.01)
    assert found.kl_worst == pytest.approx(float(kl.max()), rel=0.01)
    place = int(kl.argmax())
    assert found.worst_position == place // 63 * 64 + place % 63 + 1
    assert found.top1 == pytest.approx(
        float((lp.argmax(-1) == lq.argmax(-1)).double().mean()), abs=0.006
    )
    assert [error.layer for error in found.layers] == list(range(6))
    assert all(0 < error.relative_rms < 0.02 for error in found.layers)


def test_strides_by_hand(example: Path, text: Path) -> None:
    """Windows of 64 every 16: each token once, but the first."""
    ids = torch.tensor(Tokenizer.load(example).encode(TEXT))[:112]
    model = int8conv.load(example)
    logs = []
    for number, start in enumerate(range(0, 49, 16)):
        window = ids[start : start + 64]
        first = 1 if number == 0 else 48
        log = log_probabilities(model, window)[first - 1 : -1]
        logs.append(log.gather(1, window[first:, None]))
    expected = math.exp(-float(torch.cat(logs).mean()))
    result = evaluate(example, text, window=64, stride=16, tokens=112)
    assert (result.tokens, result.scored) == (112, 111)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert (result.mode, result.outlier_fallback, result.against) == (None, None, None)


def test_windows_behind_bos_by_hand(with_bos: Path, text: Path) -> None:
    """BOS is one of a window's tokens, and predicts the first of the text."""
    tokenizer = Tokenizer.load(with_bos)
    bos = tokenizer.encode("")[0]
    ids = tokenizer.encode(TEXT, special=False)
    model = int8conv.load(with_bos)
    logs = []
    for start, first in ((0, 1), (32, 32), (64, 32)):
        window = torch.tensor([bos, *ids[start : start + 63]])
        log = log_probabilities(model, window)[first - 1 : -1]
        logs.append(log.gather(1, window[first:, None]))
    result = evaluate(with_bos, text, window=64, stride=32, tokens=127)
    assert (result.window, result.stride, result.tokens, result.scored) == (64, 32, 127, 127)
    expected = math.exp(-float(torch.cat(logs).mean()))
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    whole = evaluate(with_bos, text, against=with_bos, window=64, tokens=126)
    assert (whole.stride, whole.tokens, whole.scored) == (63, 126, 126)
    with pytest.raises(ArgumentError, match="stride: expected 1 to the window's 63, found 64"):
        evaluate(with_bos, text, window=64, stride=64)


def test_a_model_against_itself(example: Path, text: Path) -> None:
    found = evaluate(example, text, against=example, window=64, tokens=128).against
    assert found is not None
    assert (found.ratio, found.kl_mean, found.top1) == (1.0, 0.0, 1.0)
    assert all(error.relative_rms == 0 for error in found.layers)


def test_sixteen_bit_activations_are_nearer(example: Path, example_int8: Path, text: Path) -> None:
    kl = {}
    for mode in ("w8a8", "w8a16"):
        result = evaluate(example_int8, text, against=example, mode=mode, window=128, tokens=512)
        assert result.against is not None
        kl[mode] = result.against.kl_mean
    assert kl["w8a16"] < kl["w8a8"]


def test_what_the_net_took_is_counted(example: Path, text: Path, tmp_path: Path) -> None:
    int8conv.convert_checkpoint(example, tmp_path / "bare", max_outliers=0)
    taken = evaluate(tmp_path / "bare", text, window=64, tokens=128).outlier_fallback
    assert taken is not None
    assert taken.tokens == 128
    assert taken.values > 0
    off = evaluate(
        tmp_path / "bare", text, window=64, tokens=128, outlier_fallback=False
    ).outlier_fallback
    assert off is not None
    assert off.values == 0


def test_progress(example: Path, text: Path) -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(example, text, window=64, tokens=128, progress=lambda *step: told.append(step))
    blocks = [("blocks", layer, 6) for layer in range(7)]
    assert told == [*blocks, ("scores", 0, 2), ("scores", 1, 2), ("scores", 2, 2)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty"),
        ("A few words.", "shorter than a window: expected 512 tokens or more, found 4"),
    ],
)
def test_texts_that_are_of_no_use(example: Path, text: Path, content: str, problem: str) -> None:
    text.write_text(content)
    with pytest.raises(EvaluationError, match=problem) as caught:
        evaluate(example, text)
    assert caught.value.file == str(text)


def test_options_out_of_range(example: Path, example_int8: Path, text: Path) -> None:
    with pytest.raises(NotFoundError):
        evaluate(example, text.parent / "absent")
    with pytest.raises(EvaluationError, match="expected 2 to 1024 tokens, found 1025"):
        evaluate(example, text, window=1025)
    with pytest.raises(ArgumentError, match="stride: expected 1 to the window's 64, found 65"):
        evaluate(example, text, window=64, stride=65)
    with pytest.raises(ArgumentError, match="tokens"):
        evaluate(example, text, tokens=1)
    with pytest.raises(ArgumentError, match="mode"):
        evaluate(example_int8, text, mode="w4a4")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="against expects the source"):
        evaluate(example_int8, text, against=example_int8)


def test_another_source(example_int8: Path, text: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    with pytest.raises(SourceMismatchError, match=r"num_layers differs: expected 6, found 2"):
        evaluate(example_int8, text, against=other)


def test_a_tokenizer_of_another_model(example: Path, text: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    shutil.copy(example / "tokenizer.json", other)
    with pytest.raises(EvaluationError, match=r"outside the vocabulary: expected 0\.\.95"):
        evaluate(other, text)


def test_an_activation_that_overflows(example: Path, text: Path, tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA | {"vocab_size": 8192}, torch.bfloat16)
    tensors["model.layers.1.mlp.down_proj.weight"][7] = 3e38
    tensors["model.layers.1.mlp.up_proj.weight"] *= 100
    source = write_checkpoint(tmp_path / "source", LLAMA | {"vocab_size": 8192}, tensors)
    edit_config(source, vocab_size=8192)
    shutil.copy(example / "tokenizer.json", source)
    with pytest.raises(EvaluationError, match="after layer 1 in channel 7"):
        evaluate(source, text, window=64, tokens=64)
