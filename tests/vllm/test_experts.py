"""Experts in vLLM: what ranks load of the file's tensors, and what is refused. ``make test-vllm``."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm")

from int8conv.errors import UnsupportedFeatureError
from int8conv.formats.int8.section import Group
from int8conv.kernels.torch_operator import mixed_weight
from int8conv.kernels.weight import dequantized_rows
from int8conv.vllm.experts import Int8convExpertsMethod, check_supported, expert_pairs

PREFIX = "m.0.experts"
EXPERTS, HIDDEN, INNER, COLUMNS = 3, 32, 32, 4
SHAPES = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
PARTS = {"gate_proj": ("w1", "w13"), "up_proj": ("w3", "w13"), "down_proj": ("w2", "w2")}


def groups() -> dict[str, Group]:
    found = {}
    for number in range(EXPERTS):
        both = tuple(f"{PREFIX}.{number}.{name}" for name in ("gate_proj", "up_proj"))
        down = f"{PREFIX}.{number}.down_proj"
        found |= dict.fromkeys(both, Group(both, COLUMNS, "F16", None))
        found[down] = Group((down,), COLUMNS, "F16", None)
    return found


def file() -> dict[str, Tensor]:
    """The tensors of a layer's experts; the outlier columns of down are on both of two ranks."""
    found, random = {}, torch.Generator().manual_seed(0)
    for number in range(EXPERTS):
        for name, (rows, columns) in SHAPES.items():
            path = f"{PREFIX}.{number}.{name}"
            index = torch.arange(COLUMNS, dtype=torch.int32) * 7 + number
            codes = torch.randint(-127, 128, (rows, columns, 1), generator=random).to(torch.int8)
            codes[:, index.long()] = 0
            found[f"{path}.weight"], found[f"{path}.outlier_index"] = codes, index
            found[f"{path}.weight_scale"] = torch.rand(rows, generator=random) * 0.01
            kept = torch.randn(rows, COLUMNS, generator=random).half()
            found[f"{path}.outlier_weight"] = kept
    return found


def layer(rank: int, ranks: int, experts: Callable[[int], int] = lambda n: n) -> Any:
    """A stand-in for vLLM's module, which needs a process group."""
    made: Any = torch.nn.Module()
    made.moe_config = SimpleNamespace(tp_rank=rank, tp_size=ranks, is_act_and_mul=True)
    made._map_global_expert_id_to_local_expert_id = experts
    made.expert_map, made.apply_router_weight_on_input = None, False
    made.activation = SimpleNamespace(value="silu")
    return made


def run(made: Any, count: int, x: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:
    method = Int8convExpertsMethod(made, expert_pairs(PREFIX, groups(), EXPERTS, True), "w8a16")
    inner = INNER // made.moe_config.tp_size
    method.create_weights(made, count, HIDDEN, inner, torch.float32)
    for name, tensor in file().items():
        number, part, kind = name.removeprefix(f"{PREFIX}.").split(".")
        shard, stack = PARTS[part]
        parameter = getattr(made, f"{stack}_{kind}")
        whole = f"{PREFIX}.{stack}_{kind}"
        parameter.weight_loader(parameter, tensor, whole, shard_id=shard, expert_id=int(number))
    method.process_weights_after_loading(made)
    return method.apply(made, x, shares, chosen, None, None)


def test_ranks_add_up() -> None:
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [2, 0]], dtype=torch.int32)
    shares = torch.rand(5, 2, generator=torch.Generator().manual_seed(2))
    tensors, expected = file(), torch.zeros_like(x)
    for token in range(5):
        for place, number in enumerate(chosen[token].tolist()):
            gate, up, down = (
                dequantized_rows(mixed_weight(*(tensors[f"{PREFIX}.{number}.{name}.{kind}"] for kind in (
                    "weight", "weight_scale", "outlier_index", "outlier_weight")), None), slice(None))
                for name in SHAPES
            )  # fmt: skip
            inner = torch.nn.functional.silu(gate @ x[token]) * (up @ x[token])
            expected[token] += down @ inner * shares[token, place]
    whole = run(layer(0, 1), EXPERTS, x, shares, chosen)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)
    halves = [run(layer(rank, 2), EXPERTS, x, shares, chosen) for rank in range(2)]
    torch.testing.assert_close(halves[0] + halves[1], expected, rtol=1e-4, atol=1e-4)
    assert halves[0].abs().max() > 0.1 < halves[1].abs().max()
    # of two ranks of expert parallelism, one has experts 0 and 2
    places = {0: 0, 2: 1}
    some = layer(0, 1, lambda n: places.get(n, -1))
    some.expert_map = torch.tensor([0, -1, 1])
    other = layer(0, 1, lambda n: 0 if n == 1 else -1)
    other.expert_map = torch.tensor([-1, 0, -1])
    parts = run(some, 2, x, shares, chosen) + run(other, 1, x, shares, chosen)
    torch.testing.assert_close(parts, expected, rtol=1e-4, atol=1e-4)


def test_what_is_refused() -> None:
    whole = groups()
    for change, text in (
        ({f"{PREFIX}.1.up_proj": None}, "only 8 of 9"),
        ({f"{PREFIX}.gate_up_proj.0": whole[f"{PREFIX}.0.gate_proj"]}, "names of these int8 experts"),
        ({f"{PREFIX}.1.up_proj": whole[f"{PREFIX}.1.down_proj"]}, "outlier columns differ"),
    ):  # fmt: skip
        found = {path: group for path, group in (whole | change).items() if group is not None}
        with pytest.raises(UnsupportedFeatureError, match=text):
            expert_pairs(PREFIX, found, EXPERTS, True)
    made = layer(0, 1)
    made.swiglu_limit, made.moe_config.has_bias = None, True
    with pytest.raises(UnsupportedFeatureError, match="a bias"):
        check_supported(made, PREFIX)
    made.moe_config.has_bias, made.activation.value = False, "swigluoai"
    with pytest.raises(UnsupportedFeatureError, match="swigluoai"):
        check_supported(made, PREFIX)
