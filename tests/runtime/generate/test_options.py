"""Options of wrong types and out of range are ArgumentErrors that name them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from int8conv.errors import ArgumentError
from int8conv.runtime.generate.options import read_options
from int8conv.runtime.generate.sampling import Sampling


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"), ("temperature", [1]), ("temperature", True), ("top_k", 1.5), ("top_k", "3"), ("top_k", -1), ("top_p", "a"),
        ("min_p", object()), ("repetition_penalty", "x"), ("presence_penalty", float("nan")), ("frequency_penalty", "x"), ("seed", 0.5),
        ("seed", 2**64), ("seed", 10**4000), ("temperature", 10**400), ("logit_bias", {1: 10**400}), ("logit_bias", {1: 1e31}), ("presence_penalty", 1e39),
        ("frequency_penalty", -(10**400)), ("stop", {"a": 1}), ("logit_bias", [1]), ("logit_bias", {"a": 1}), ("logit_bias", {1: "a"}), ("logit_bias", {-1: 1.0}),
        ("max_new_tokens", "5"), ("max_new_tokens", -1), ("max_new_tokens", 1.0), ("min_new_tokens", -1), ("stop", 3), ("stop", [3]), ("stop", [""]),
        ("end_tokens", 1.5), ("end_tokens", [1.5]), ("end_tokens", [-1]), ("top_logprobs", -1), ("top_logprobs", 10**6), ("logits_processor", 3),
    ],
)  # fmt: skip
def test_what_cannot_be(name: str, value: Any) -> None:
    options: Any = {name: value}
    with pytest.raises(ArgumentError, match=f"^{name}: expected "):
        read_options(Sampling(), options)


def test_what_can_be() -> None:
    asked = read_options(
        Sampling(top_k=5), {"temperature": np.float32(0.5), "max_new_tokens": np.int64(3), "stop": "a", "end_tokens": [1, "<x>"], "top_k": None},
    )  # fmt: skip
    assert (asked.sampling.temperature, asked.sampling.top_k) == (0.5, 5)
    assert (asked.max_new_tokens, asked.stop, asked.end_tokens) == (3, ("a",), (1, "<x>"))
    assert read_options(Sampling(), {"stop": []}).stop == ()
    assert read_options(Sampling(), {}).stop is None


def test_unknown_names_and_samplings() -> None:
    unknown: Any = {"temprature": 1}
    with pytest.raises(TypeError, match="there is no option 'temprature' of generation"):
        read_options(Sampling(), unknown)
    with pytest.raises(ArgumentError, match="sampling: expected a Sampling"):
        read_options({"temperature": 1}, {})  # type: ignore[arg-type]


def test_each_of_several_draws_on_its_own() -> None:
    asked = read_options(Sampling(), {"seed": 2**63 - 1})
    assert [asked.for_prompt(i).sampling.seed for i in (0, 1)] == [2**63 - 1, -(2**63)]
    assert read_options(Sampling(), {}).for_prompt(3).sampling.seed is None
