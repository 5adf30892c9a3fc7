"""The model in the harness itself: needs the extra ``lm-eval`` (``make test-lm-eval``)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import int8conv
from int8conv.errors import ArgumentError

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own, and its dependencies'

from int8conv.lm_eval.model import Int8convLM  # noqa: E402

TASKS = Path(__file__).parents[2] / "examples" / "lm-eval"
CHOICES = TASKS / "python_docs.jsonl"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture(scope="module")
def model(example_int8: Path) -> Int8convLM:
    return Int8convLM(str(example_int8))


def instances(*arguments: tuple[Any, ...]) -> list[Any]:
    return [type("Instance", (), {"args": each})() for each in arguments]


def evaluated(folder: Path, batch_size: int) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found: dict[str, Any] = simple_evaluate(
        "int8conv", model_args=f"pretrained={folder}", batch_size=batch_size,
        tasks=["python_docs", "python_docs_text"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
    )  # fmt: skip
    return found


def test_scores_of_a_task_do_not_depend_on_the_batch(example_int8: Path) -> None:
    one, eight = (evaluated(example_int8, size)["results"] for size in (1, 8))
    assert one["python_docs"]["acc,none"] == eight["python_docs"]["acc,none"]
    assert one["python_docs"]["acc_norm,none"] == eight["python_docs"]["acc_norm,none"]
    assert one["python_docs"]["acc,none"] >= 0.8  # chance is 0.25
    perplexity = [each["python_docs_text"]["byte_perplexity,none"] for each in (one, eight)]
    assert perplexity[0] == pytest.approx(perplexity[1], rel=1e-6)


def test_likelihoods_are_those_of_the_logits(example_int8: Path) -> None:
    """In W8A16: in W8A8, a last bit that differs behind a shared prefix can give an activation the next code."""
    model = Int8convLM(str(example_int8), mode="w8a16")
    rows = [json.loads(line) for line in CHOICES.read_text().splitlines()]
    pairs = [(row["text"], choice) for row in rows[:3] for choice in row["choices"]]
    found = model.loglikelihood(instances(*pairs), disable_tqdm=True)
    for (context, following), (total, greedy) in zip(pairs, found, strict=True):
        prefix, ids = model._encode_pair(context, following)
        logits = model.model.logits(torch.tensor([prefix + ids]))[0, len(prefix) - 1 : -1]
        wanted = torch.tensor(ids)
        expected = logits.log_softmax(-1).gather(1, wanted[:, None]).sum().item()
        assert total == pytest.approx(expected, abs=2e-4)
        assert greedy == bool((logits.argmax(-1) == wanted).all())


def test_a_text_longer_than_the_context_is_scored_in_windows(model: Int8convLM) -> None:
    short = Int8convLM(str(model.model.folder), max_length=16)
    text = "This function returns the value of the given object. " * 4
    ids = short.tok_encode(text, add_special_tokens=False)
    assert len(ids) > 32
    (found,) = short.loglikelihood_rolling(instances((text,)), disable_tqdm=True)
    prefix, total = [short.prefix_token_id, *ids], 0.0
    for begin in range(0, len(ids), 16):
        end = min(begin + 16, len(ids))
        first = max(0, end - 16)
        logs = short.model.logits(torch.tensor([prefix[first:end]]))[0].log_softmax(-1)
        total += sum(float(logs[i - first, ids[i]]) for i in range(begin, end))
    assert found == pytest.approx(total, abs=1e-2)


def test_texts_are_generated_greedily_until_a_stop(model: Int8convLM) -> None:
    prompts = ["A vector is", "The default value is", "This function"]
    expected = [
        model.model.generate(p, max_new_tokens=12, temperature=0, stop=["."]).text for p in prompts
    ]
    options = {"until": ["."], "max_gen_toks": 12, "do_sample": False}
    assert model.generate_until(instances(*((p, options) for p in prompts)), True) == expected


def test_what_cannot_be(model: Int8convLM) -> None:
    with pytest.raises(ArgumentError, match="num_beams"):
        model.generate_until(instances(("A", {"until": [], "num_beams": 4})), True)
    with pytest.raises(ArgumentError, match="max_gen_toks"):
        model.generate_until(instances(("A", {"max_gen_toks": 10**6})), True)
    with pytest.raises(ArgumentError, match="continuation"):
        Int8convLM(str(model.model.folder), max_length=4).loglikelihood(
            instances(("A", " value" * 9)), disable_tqdm=True
        )


def test_the_mode_is_fixed_of_a_converted_folder_alone(model: Int8convLM, example: Path) -> None:
    assert model.model.mode == "w8a8"
    assert Int8convLM(str(example)).model.mode is None
    assert int8conv.load(model.model.folder).mode is None
    assert math.isfinite(Int8convLM(str(example)).loglikelihood(instances(("", "A")), True)[0][0])
