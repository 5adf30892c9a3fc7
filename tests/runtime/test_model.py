"""``load`` and the model: generation, limits, and what cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import int8conv
from int8conv.errors import (
    AlreadyQuantizedError,
    ArgumentError,
    GenerationError,
    NotFoundError,
    UnknownFamilyError,
)
from int8conv.runtime.model import Model


@pytest.fixture(scope="module")
def model(example_int8: Path) -> Model:
    return int8conv.load(example_int8)


def test_greedy_repeats(model: Model) -> None:
    first = model.generate("The function", max_new_tokens=20)
    assert first == model.generate("The function", max_new_tokens=20)
    assert len(first.token_ids) == 20
    assert first.finish_reason == "length"
    assert first.text == model.tokenizer.decode(first.token_ids)


def test_a_seed_repeats(model: Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "top_p": 0.95}
    texts = [model.generate("The function", seed=seed, **options).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_sampling_is_what_its_fields_are_as_keywords(model: Model) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "seed": 1}
    expected = model.generate("The function", max_new_tokens=12, **fields)
    sampling = int8conv.Sampling(**fields)
    assert model.generate("The function", sampling, max_new_tokens=12) == expected
    other = int8conv.Sampling(temperature=0.3, seed=1)
    changed = model.generate("The function", other, max_new_tokens=12, temperature=1.0, top_p=0.95)
    assert changed == expected != model.generate("The function", other, max_new_tokens=12)
    batch = model.generate_batch(["The function"] * 2, sampling, max_new_tokens=12)
    assert batch == model.generate_batch(["The function"] * 2, max_new_tokens=12, **fields)


def test_a_sampling_takes_the_place_of_what_the_checkpoint_asks_for(converted: Path) -> None:
    config = {"do_sample": True, "temperature": 0.5, "top_k": 7, "repetition_penalty": 1.5}
    (converted / "generation_config.json").write_text(json.dumps(config))
    model = int8conv.load(converted)
    assert model.sampling == int8conv.Sampling(0.5, top_k=7, repetition_penalty=1.5)
    greedy = model.generate([5, 6], int8conv.Sampling(), max_new_tokens=4)
    (converted / "generation_config.json").unlink()
    assert int8conv.load(converted).generate([5, 6], max_new_tokens=4).token_ids == greedy.token_ids


def test_an_option_that_is_none_of_samplings_is_refused(model: Model) -> None:
    with pytest.raises(TypeError, match="temprature"):
        model.generate("A", temprature=0.7)  # type: ignore[call-arg]


def test_text_comes_in_pieces(model: Model) -> None:
    pieces: list[str] = []
    generation = model.generate("The function", max_new_tokens=20, on_text=pieces.append)
    assert "".join(pieces) == generation.text
    assert len(pieces) > 5


def test_generation_stops_at_an_end_token(example_int8: Path) -> None:
    model = int8conv.load(example_int8)
    free = model.generate("The function", max_new_tokens=20)
    model.end_tokens = frozenset({free.token_ids[7]})
    stopped = model.generate("The function", max_new_tokens=20)
    position = free.token_ids.index(free.token_ids[7])
    assert stopped.token_ids == free.token_ids[: position + 1]
    assert stopped.finish_reason == "stop"
    assert stopped.text == model.tokenizer.decode(free.token_ids[:position])


def test_a_cache_without_memory_is_a_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("int8conv.runtime.generate.room.available_memory", lambda: 2 * 10**6)
    size = model.footprint(context=1001, batch=1)
    with pytest.raises(GenerationError, match=rf"no memory for a cache of 1 x 1001 positions: expected at most the 0.0 GB that are free, found {size.kv_cache / 1e9:.1f} GB"):  # fmt: skip
        model.generate([5], max_new_tokens=1000)
    monkeypatch.setattr("int8conv.runtime.generate.room.available_memory", lambda: None)

    def full(**_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(model.decoder, "cache", full)
    for call in (lambda: model.generate([5], max_new_tokens=9), lambda: model.generate_batch([[5]] * 3, max_new_tokens=9)):  # fmt: skip
        with pytest.raises(GenerationError, match=r"no memory for a cache of \d x 10 positions"):
            call()


@pytest.mark.parametrize("folder", ["example", "example_int8"])
def test_the_default_dtype_of_a_program_changes_nothing(
    folder: str, request: pytest.FixtureRequest
) -> None:
    where: Path = request.getfixturevalue(folder)
    options: dict[str, Any] = {"max_new_tokens": 5, "temperature": 1.0, "seed": 1, "logprobs": True}
    prompt = [[5, 6, 7] * 9, [8, 9]]
    expected = int8conv.load(where).generate_batch(prompt, **options)
    before = torch.get_default_dtype()
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            assert int8conv.load(where).generate_batch(prompt, **options) == expected
        finally:
            torch.set_default_dtype(before)


def test_default_length_ends_with_the_context(model: Model) -> None:
    generation = model.generate([5] * 1020, temperature=1.0, seed=0)
    assert len(generation.token_ids) <= 4


def test_a_stop_string_ends_across_tokens(model: Model) -> None:
    """Every piece of the text, also those that begin or end within a token."""
    free = model.generate("The function", max_new_tokens=12)
    for start in range(1, len(free.text) - 6, 5):
        stop = free.text[start : start + 6]
        pieces: list[str] = []
        found = model.generate("The function", max_new_tokens=12, stop=["never", stop], on_text=pieces.append)  # fmt: skip
        assert found.text == "".join(pieces) == free.text[: free.text.index(stop)]
        assert found.finish_reason == "stop"
        assert found.token_ids == free.token_ids[: len(found.token_ids)]
        assert stop in model.tokenizer.decode(found.token_ids)


def test_log_probabilities_are_of_the_models_own_distribution(model: Model) -> None:
    prompt = model.tokenizer.encode("The function")
    options: dict[str, Any] = {"temperature": 0.7, "top_k": 9, "repetition_penalty": 1.2, "seed": 3}
    found = model.generate(prompt, max_new_tokens=8, logprobs=True, **options)
    logits = model.logits(torch.tensor([prompt + found.token_ids]))[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)[torch.arange(8), found.token_ids]
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, rtol=0, atol=1e-3)
    assert model.generate(prompt, max_new_tokens=1).logprobs is None


def test_a_repetition_penalty_is_transformers(example: Path) -> None:
    prompt = [5, 6, 7, 8, 5]
    theirs = AutoModelForCausalLM.from_pretrained(example, dtype=torch.float32)
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, repetition_penalty=1.3)  # fmt: skip
    found = int8conv.load(example).generate(prompt, max_new_tokens=40, repetition_penalty=1.3)
    assert found.token_ids == expected[0, len(prompt) :].tolist()


PROMPTS = [
    "The function", "A", "Once upon a time there was a list of names, and", [5, 6, 7],
    "A vector is", "import json\n\ndef read(path):\n", "In the", "The the the",
]  # fmt: skip


def test_a_batch_gives_what_each_prompt_gives_alone(example_int8: Path) -> None:
    model = int8conv.load(example_int8, mode="w8a16")
    alone = [model.generate(prompt, max_new_tokens=24) for prompt in PROMPTS]
    pieces: list[list[str]] = [[] for _ in PROMPTS]
    found = model.generate_batch(PROMPTS, max_new_tokens=24, on_text=lambda i, text: pieces[i].append(text))  # fmt: skip
    assert found == alone
    assert ["".join(each) for each in pieces] == [each.text for each in alone]
    assert len({len(model.tokenizer.encode(p)) for p in PROMPTS if isinstance(p, str)}) > 3


def test_sequences_of_a_batch_end_each_at_its_own_time(example_int8: Path) -> None:
    model = int8conv.load(example_int8, mode="w8a16")
    free = [model.generate(prompt, max_new_tokens=24).token_ids for prompt in PROMPTS]
    model.end_tokens = frozenset({free[0][3], free[2][11], free[5][0]})
    alone = [model.generate(prompt, max_new_tokens=24) for prompt in PROMPTS]
    assert len({len(each.token_ids) for each in alone}) > 2
    assert model.generate_batch(PROMPTS, max_new_tokens=24) == alone


def test_a_batch_draws_with_a_seed_for_each(example_int8: Path) -> None:
    model = int8conv.load(example_int8, mode="w8a16")
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.8, "repetition_penalty": 1.1}
    alone = [
        model.generate(p, seed=4 + i, **options) for i, p in enumerate(["The", "The", "A b c"])
    ]
    assert model.generate_batch(["The", "The", "A b c"], seed=4, **options) == alone
    assert alone[0] != alone[1]


def test_a_prompt_that_fills_the_context_beside_a_short_one(model: Model) -> None:
    full, short = model.generate_batch([[5] * 1024, [5, 6]])
    assert full.token_ids == []
    assert len(short.token_ids) == 128 or short.finish_reason == "stop"
    assert model.generate_batch([]) == []


def test_no_new_tokens(model: Model) -> None:
    assert model.generate("A", max_new_tokens=0).token_ids == []


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ("", 1, "no tokens"),
        ([1] * 1000, 25, "expected 1 to 1024 positions, found 1025"),
        ([1] * 1025, None, "1024 positions"),
        ([8192], 1, r"expected 0\.\.8191, found 8192"),
        ([-1], 1, r"expected 0\.\.8191, found -1"),
    ],
)
def test_impossible_prompts_are_refused(
    model: Model, prompt: str | list[int], count: int | None, message: str
) -> None:
    with pytest.raises((GenerationError, ArgumentError), match=message):
        model.generate(prompt, max_new_tokens=count)


def test_logits_want_two_axes_of_integers(model: Model) -> None:
    long, yes = torch.zeros(3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool)
    for wrong in (long, torch.zeros(1, 3), yes, yes.to(torch.complex64), long.reshape(-1, 3)[:0]):
        with pytest.raises(ArgumentError, match=r"int64 \[batch, tokens\]"):
            model.logits(wrong)


def test_logits_are_float32_of_every_position(model: Model) -> None:
    logits = model.logits(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 3, 8192)
    assert torch.equal(model.logits(torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)), logits)  # fmt: skip


def test_half_activations(example_int8: Path) -> None:
    ids = torch.tensor([[10, 20, 30, 40]])
    wide = int8conv.load(example_int8, mode="w8a16").logits(ids)
    half = int8conv.load(example_int8, mode="w8a16", dtype="bfloat16").logits(ids)
    assert 0 < (half - wide).abs().max() < 0.5


def test_footprint_is_in_the_models_dtype(model: Model) -> None:
    footprint = model.footprint(context=128, batch=2)
    assert footprint.dtype == "float32"
    assert footprint.kv_cache == 6 * 2 * 2 * 64 * 128 * 2 * 4


def test_end_tokens_come_from_the_generation_config(converted: Path) -> None:
    (converted / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert int8conv.load(converted).end_tokens == {3, 4}
    (converted / "generation_config.json").unlink()
    assert int8conv.load(converted).end_tokens == {0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device"), ({"mode": "w4a16"}, "mode"), ({"dtype": "int8"}, "dtype"),
    ],
)  # fmt: skip
def test_unknown_options_are_refused(example_int8: Path, options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        int8conv.load(example_int8, **options)


def test_what_cannot_be_loaded(example: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        int8conv.load(tmp_path / "nothing")
    with pytest.raises(ArgumentError, match="mode applies to converted folders only"):
        int8conv.load(example, mode="w8a8")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(UnknownFamilyError, match="mamba"):
        int8conv.load(source)
    config["quantization_config"] = {"quant_method": "gptq"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(AlreadyQuantizedError, match="gptq"):
        int8conv.load(source)


def test_eight_prompts_get_what_each_gets_alone(example_int8: Path) -> None:
    """Greedy, W8A16, lengths from 1 to some twenty tokens."""
    model = int8conv.load(example_int8, mode="w8a16")
    text = (
        "The function returns a vector of numbers, which is read from the file and sorted by name."
    )
    prompts = [text[: 3 + 11 * i] for i in range(8)]
    lengths = {len(model.tokenizer.encode(prompt)) for prompt in prompts}
    assert len(lengths) == 8
    together = model.generate_batch(prompts, max_new_tokens=16, temperature=0)
    for prompt, found in zip(prompts, together, strict=True):
        assert found == model.generate(prompt, max_new_tokens=16, temperature=0)


def test_a_generation_leaves_its_cache_to_the_next_one(example_int8: Path) -> None:
    """On a GPU, where a step is captured for it; results are those of a new cache, and two at a time have two."""
    model, plain = (int8conv.load(example_int8, mode="w8a16") for _ in range(2))
    made: list[object] = []
    real = model.decoder.cache

    def cache(**options: Any) -> Any:
        made.append(options)
        return real(**options)

    model.decoder.cache = cache  # type: ignore[method-assign]
    assert not model.keeps_steps
    model.keeps_steps = True
    prompts = [[5, 6, 7, 8, 9], [5, 6, 7, 3], list(range(40))]
    for prompt in prompts:
        found, expected = (m.generate(prompt, max_new_tokens=4, logprobs=True) for m in (model, plain))  # fmt: skip
        assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)
    assert len(made) == 1
    stream = model.stream(prompts[0], max_new_tokens=4)
    next(stream)
    model.generate(prompts[1], max_new_tokens=2)
    stream.close()
    assert len(made) == 2
