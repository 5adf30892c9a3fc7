"""The plan: what becomes of each tensor, from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.options import ConvertOptions
from int8conv.convert.outliers.rule import OutlierChoice
from int8conv.convert.outliers.selection import Kept, Selection, select_modules
from int8conv.convert.plan import KeepTask, Plan, QuantizeTask, make_plan
from int8conv.errors import (
    ArgumentError,
    MissingTensorError,
    ShapeError,
    UnsupportedDtypeError,
    UnsupportedModelError,
)
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.models.architecture import read_architecture

from ..checkpoints import LLAMA, OPT, random_tensors, write_checkpoint

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


def plan_of(folder: Path, outliers: dict[str, OutlierChoice] | None = None, **options: Any) -> Plan:
    checkpoint = open_checkpoint(folder)
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    chosen = ConvertOptions(**options)
    selection = select_modules(checkpoint, architecture, chosen.patterns)
    return make_plan(selection, outliers or {}, chosen)


def plan_with(
    folder: Path, changed: dict[str, Tensor | None], config: dict[str, Any] = LLAMA
) -> Plan:
    """The plan of a checkpoint with some tensors changed, added, or (None) left out."""
    tensors = random_tensors(config)
    for name, tensor in changed.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    return plan_of(write_checkpoint(folder, config, tensors))


def test_the_input_of_an_int8_head_stays_in_16_bits(source: Path) -> None:
    """But not if a pattern chose it, as for every linear without statistics."""
    asked, matched = (plan_of(source, **o).inputs[-1] for o in ({"head": "int8"}, {"quantize": ("lm_head",)}))  # fmt: skip
    assert (asked.linears, asked.outliers, asked.threshold) == (("lm_head",), 0, 0.0)
    assert (matched.linears, matched.threshold) == (("lm_head",), None)


def test_linears_of_attention_and_ffn_are_quantized_and_no_others(source: Path) -> None:
    tasks = plan_of(source).tasks
    quantized = [task.path for task in tasks if isinstance(task, QuantizeTask)]
    kept = [task.source.name for task in tasks if isinstance(task, KeepTask)]
    assert len(quantized) == 2 * 7
    assert all(".self_attn." in path or ".mlp." in path for path in quantized)
    assert len(kept) == 2 * 2 + 3
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= set(kept)


def test_inputs_are_the_groups_in_the_order_of_the_model(source: Path) -> None:
    first, *_ = inputs = plan_of(source).inputs
    assert len(inputs) == 2 * 4
    assert first.linears == tuple(f"model.layers.0.self_attn.{r}_proj" for r in "qkv")
    assert (first.in_features, first.outliers, first.threshold) == (64, 0, None)
    assert inputs[-1].linears == (DOWN,)
    assert inputs[-1].in_features == 160


def test_a_choice_holds_for_every_linear_of_its_group(source: Path) -> None:
    columns = np.arange(0, 32, 2, dtype=np.int32)
    plan = plan_of(source, {Q: OutlierChoice(columns, 5.25)})
    assert (plan.inputs[0].outliers, plan.inputs[0].threshold) == (16, 5.25)
    for task in plan.tasks:
        if isinstance(task, QuantizeTask):
            expected = columns.tolist() if task.path in plan.inputs[0].linears else []
            assert task.columns.tolist() == expected
    unit = next(unit for unit in plan.units if unit[0][0].name == f"{Q}.weight")
    kinds = [[spec.name.rpartition(".")[2] for spec in run] for run in unit]
    assert kinds == [
        [kind] * 3 for kind in ("weight", "weight_scale", "outlier_index", "outlier_weight")
    ]
    assert [spec.shape for run in unit for spec in run][::3] == [
        (64, 64, 1),
        (64,),
        (16,),
        (64, 16),
    ]


@pytest.mark.parametrize(
    ("dtype", "half", "expected"),
    [
        (torch.float16, "bfloat16", "F16"),
        (torch.bfloat16, "float16", "BF16"),
        (torch.float32, "float16", "F16"),
        (torch.float32, "bfloat16", "BF16"),
    ],
)
def test_only_float32_matrices_are_rounded(
    tmp_path: Path, dtype: torch.dtype, half: str, expected: str
) -> None:
    plan = plan_of(write_checkpoint(tmp_path / "source", OPT, dtype=dtype), dtype=half)
    for task in plan.tasks:
        small = dtype == torch.float32 and len(task.source.shape) == 1
        found = task.half if isinstance(task, QuantizeTask) else task.dtype
        assert found == ("F32" if small else expected)


def test_source_bytes_are_those_of_the_tensors_read(source: Path) -> None:
    assert plan_of(source).source_bytes == open_checkpoint(source).nbytes


def test_extra_tensors(tmp_path: Path) -> None:
    """A tensor of no module is kept as it is; what is computed is left out, by name."""
    tied = LLAMA | {"tie_word_embeddings": True}
    plan = plan_with(
        tmp_path / "source",
        {
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
            "model.router.gate": torch.ones(3, 2),
            "model.position_ids": torch.arange(4),
        },
        tied,
    )
    assert plan.skipped == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": "computed, not learned",
    }
    kept = {t.name: t.dtype for t in plan.tasks if isinstance(t, KeepTask)}
    assert (kept["model.router.gate"], kept["model.position_ids"]) == ("F32", "I64")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("a.A_log", (64, 16), "F32"), ("a.bias", (64,), "F32"), ("a.dt_bias", (1, 64, 1), "F32"), ("a.scale", (), "F32"),
        ("a.weight", (64, 1), "F32"), ("a.weight", (64, 16), "F16"), ("experts.up", (2, 64, 16), "F16"),
        ("conv.weight", (64, 1, 4), "F16"), ("pos_embed", (1, 7, 64), "F32"),
    ],
)  # fmt: skip
def test_what_is_a_float32_matrix(
    tmp_path: Path, name: str, shape: tuple[int, ...], expected: str
) -> None:
    plan = plan_with(tmp_path / "source", {name: torch.zeros(shape)})
    assert next(t.dtype for t in plan.tasks if isinstance(t, KeepTask) and t.name == name) == expected  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tensor", "error", "words"),
    [
        (f"{Q}.weight", None, MissingTensorError, "missing"),
        ("model.norm.weight", None, MissingTensorError, "missing"),
        (f"{Q}.weight", torch.ones(64, 32).half(), ShapeError, r"expected \[64, 64\], found \[64, 32\]"),
        (f"{Q}.weight", torch.ones(64, 64).long(), UnsupportedDtypeError, "F64 .*, found I64"),
        (f"{Q}.bias", torch.ones(1, 64).half(), ShapeError, r"expected \[64\], found \[1, 64\]"),
        ("model.extra.weight", torch.ones(64, 64).char(), UnsupportedDtypeError, "found I8"),
    ],
)  # fmt: skip
def test_a_source_that_is_not_what_its_config_implies(
    tmp_path: Path, name: str, tensor: Tensor | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        plan_with(tmp_path / "source", {name: tensor})
    assert f"tensor '{name}'" in str(caught.value)


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_linears_of_an_input_in_several_dtypes_are_several_groups(
    tmp_path: Path, kind: str
) -> None:
    """Their outlier columns and biases could not be one matrix."""
    path = "model.decoder.layers.1.self_attn"
    name = f"{path}.k_proj.{kind}"
    plan = plan_with(tmp_path / "source", {name: random_tensors(OPT)[name].bfloat16()}, OPT)
    inputs = [group.linears for group in plan.inputs if path in group.linears[0]]
    assert inputs == [(f"{path}.q_proj", f"{path}.v_proj"), (f"{path}.k_proj",), (f"{path}.out_proj",)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float32_weight_goes_with_its_siblings(tmp_path: Path, dtype: torch.dtype) -> None:
    """As LoRA merged in float32 for q and v leaves it."""
    tensors = random_tensors(LLAMA, dtype)
    path = "model.layers.1.self_attn"
    for role in "qv":
        tensors[f"{path}.{role}_proj.weight"] = tensors[f"{path}.{role}_proj.weight"].float()
    plan = plan_of(write_checkpoint(tmp_path / "source", LLAMA, tensors))
    assert tuple(f"{path}.{role}_proj" for role in "qkv") in [group.linears for group in plan.inputs]  # fmt: skip
    halves = {t.half for t in plan.tasks if isinstance(t, QuantizeTask)}
    assert halves == {"F16" if dtype == torch.float16 else "BF16"}


def test_biases_that_the_config_does_not_announce_stand_beside_their_weights(
    tmp_path: Path,
) -> None:
    tensors = random_tensors(LLAMA)
    for role, size in (("q", 64), ("k", 32), ("v", 32)):
        tensors[f"model.layers.0.self_attn.{role}_proj.bias"] = torch.ones(size).half()
    tensors["model.layers.2.mlp.down_proj.weight"] = torch.ones(64, 160).half()
    tensors["model.norm.bias"] = torch.ones(64).half()
    write_checkpoint(tmp_path / "source", LLAMA, tensors)
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out", outliers="none")
    why = "; kept but not used (transformers ignores them too)"
    assert report.notes == (
        f"model.layers.0.self_attn.q_proj.bias and 3 more: not mentioned in the config{why}",
        f"model.layers.2.mlp.down_proj.weight: in layers beyond the config's 2{why}",
    )
    found = open_converted(tmp_path / "out").checkpoint.tensors
    assert set(tensors) <= set(found)


def test_names_that_would_occur_twice_are_refused(tmp_path: Path) -> None:
    stored = open_checkpoint(write_checkpoint(tmp_path)).tensors["model.norm.weight"]
    selection = Selection((Kept("a", stored, "small"), Kept("a", stored, "small")), {})
    with pytest.raises(UnsupportedModelError, match="two output tensors would have this name"):
        make_plan(selection, {}, ConvertOptions())


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["down_proj"], {"layers.0.mlp.down_proj", "layers.1.mlp.down_proj"}),
        ([r"layers\.1\..*[qkv]_proj"], {f"layers.1.self_attn.{r}_proj" for r in "qkv"}),
        (["0.*q_proj", "0.*v_proj"], {"layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj"}),
        (["."], None),
    ],
)
def test_linears_that_a_pattern_matches_are_kept(
    source: Path, patterns: list[str], kept: set[str] | None
) -> None:
    everything = [t.path for t in plan_of(source).tasks if isinstance(t, QuantizeTask)]
    plan = plan_of(source, keep=tuple(patterns))
    quantized = [t.path for t in plan.tasks if isinstance(t, QuantizeTask)]
    left = everything if kept is None else [f"model.{path}" for path in kept]
    assert set(everything) - set(quantized) == set(left)
    assert [path for group in plan.inputs for path in group.linears] == quantized
    assert len(plan.tasks) == len(plan_of(source).tasks)


def test_a_pattern_that_matches_nothing_is_refused(source: Path) -> None:
    with pytest.raises(ArgumentError, match=r"keep matches no linear.*found 'gate_up'"):
        plan_of(source, keep=("down", "gate_up"))


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ArgumentError, match="expected a regular expression"):
        ConvertOptions(keep=("(",))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_what_is_rounded_follows_those_that_share_its_input(
    tmp_path: Path, half: torch.dtype, wide: torch.dtype
) -> None:
    """As a LoRA of q and v leaves them that is merged in float32."""
    tensors = random_tensors(LLAMA | {"attention_bias": True}, half)
    for name in [n for n in tensors if "q_proj" in n or "v_proj" in n]:
        tensors[name] = tensors[name].to(wide)
    folder = write_checkpoint(tmp_path / "merged", LLAMA | {"attention_bias": True}, tensors)
    columns = OutlierChoice(np.arange(16, dtype=np.int32), 6.0)
    for dtype in ("float16", "bfloat16"):
        tasks = plan_of(folder, {Q: columns}, dtype=dtype).tasks
        kinds = {task.half for task in tasks if isinstance(task, QuantizeTask)}
        assert kinds == {"BF16" if half == torch.bfloat16 else "F16"}
        biases = {task.name: task.dtype for task in tasks if isinstance(task, KeepTask)}
        assert biases[f"{Q}.bias"] == "F32"  # no matrix
