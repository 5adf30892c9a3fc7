"""The quality of a converted folder: figures that an independent float64 computation gives, and every difference named."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.quality import TensorQuality, check_sqnr, compare_tensors, median_sqnr
from int8conv.errors import FileChangedError, QualityError, SourceMismatchError
from int8conv.formats.hub.download import resolve
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.verify import verify
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.weights.mapping import read_tensor

from ..checkpoints import LLAMA, OPT, random_tensors, write_checkpoint
from ..formats.damage import edit_json, rejected, tensor_bytes, write_tensor

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
LINEAR = "model.layers.0.self_attn.q_proj"
HUGE = "model.layers.0.mlp.up_proj"


def spread(dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights with outlier inputs, all-zero rows, a lone value, subnormals and extremes."""
    tensors = random_tensors(LLAMA, dtype)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[3] = 40
    weight = tensors[f"{LINEAR}.weight"]
    weight[5] = 0
    weight[6] = 0
    weight[6, 9] = 0.25
    weight[7] = weight[7] * 2.0**-20
    tensors[f"{HUGE}.weight"][2, 40] = 60000
    return tensors


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``source`` and the calibrated ``int8``; not to be changed."""
    folder = tmp_path_factory.mktemp("pair")
    source = write_checkpoint(folder / "source", LLAMA, spread(request.param), shards=2)
    assert convert_checkpoint(source, folder / "int8").outlier_columns >= 32
    return folder


def qualities(folder: Path, source: Path) -> list[TensorQuality]:
    return compare_tensors(open_converted(folder), resolve(source)).linears


def dequantized(folder: Path, path: str) -> tuple[Tensor, int]:
    """What a linear stands for in float64, and the bytes of its outlier columns; by torch alone."""
    tensors = open_converted(folder).checkpoint.tensors
    weight = read_tensor(tensors[f"{path}.weight"]).squeeze(-1).double()
    weight *= read_tensor(tensors[f"{path}.weight_scale"]).double()[:, None]
    if (index := tensors.get(f"{path}.outlier_index")) is None:
        return weight, 0
    columns = tensors[f"{path}.outlier_weight"]
    weight[:, read_tensor(index).long()] = read_tensor(columns).double()
    return weight, columns.nbytes


def test_figures_are_those_of_float64(pair: Path) -> None:
    found = qualities(pair / "int8", pair / "source")
    source = open_checkpoint(pair / "source")
    assert len(found) == 14
    for quality in found:
        wanted = read_tensor(source.tensor(f"{quality.name}.weight")).double()
        value, slices = dequantized(pair / "int8", quality.name)
        noise = (wanted - value).square().sum().item()
        sqnr = 10 * math.log10(wanted.square().sum().item() / noise)
        assert quality.sqnr_db == pytest.approx(sqnr, abs=1e-9)
        assert quality.max_error == (wanted - value).abs().max().item()
        rest = wanted.numel() + 4 * wanted.shape[0]
        assert quality.outlier_share == slices / (slices + rest)
    assert any(quality.outlier_share > 0 for quality in found)


def test_progress_ends_at_the_bytes_compared(pair: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    source = open_checkpoint(pair / "source")
    compare_tensors(
        open_converted(pair / "int8"),
        resolve(pair / "source"),
        lambda *call: calls.append(call),
        jobs=3,
    )
    assert calls[-1] == ("compare", source.nbytes, source.nbytes)
    assert calls == sorted(calls)


def test_the_same_for_any_number_of_jobs(pair: Path) -> None:
    converted, source = open_converted(pair / "int8"), resolve(pair / "source")
    assert compare_tensors(converted, source, jobs=1) == compare_tensors(converted, source, jobs=4)


def test_several_blocks_are_summed(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = qualities(pair / "int8", pair / "source")
    monkeypatch.setattr("int8conv.convert.quality._BLOCK_ELEMENTS", 200)
    for one, other in zip(whole, qualities(pair / "int8", pair / "source"), strict=True):
        assert other.sqnr_db == pytest.approx(one.sqnr_db, abs=1e-9)
        assert (other.max_error, other.outlier_share) == (one.max_error, one.outlier_share)


def test_what_loses_nothing_is_exact(tmp_path: Path) -> None:
    """All zeros, and codes that are whole steps."""
    tensors = random_tensors(LLAMA)
    tensors[f"{LINEAR}.weight"].zero_()
    grid = torch.randint(-127, 128, tensors[f"{HUGE}.weight"].shape).half()
    grid[:, 0] = 127
    tensors[f"{HUGE}.weight"] = grid / 128
    source = write_checkpoint(tmp_path / "source", LLAMA, tensors)
    convert_checkpoint(source, tmp_path / "int8", outliers="none")
    found = {q.name: q for q in qualities(tmp_path / "int8", source)}
    zeros = found[LINEAR]
    assert (zeros.sqnr_db, zeros.max_error, zeros.order) == (None, 0, math.inf)
    assert found[HUGE].order > 130  # the scale 127 / 128 / 127 is rounded, no more


def test_biases_and_empty_tensors(tmp_path: Path) -> None:
    tensors = random_tensors(OPT)
    tensors["extra.empty"] = torch.empty(0, 7, dtype=torch.float16)
    tensors["extra.narrow"] = torch.empty(7, 0, dtype=torch.float16)
    tensors["extra.scalar"] = torch.tensor(1.5, dtype=torch.bfloat16)
    source = write_checkpoint(tmp_path / "source", OPT, tensors)
    convert_checkpoint(source, tmp_path / "int8", outliers="none")
    found = qualities(tmp_path / "int8", source)
    assert len(found) == 12
    assert all(38 < quality.order < 48 for quality in found)


def test_nothing_quantized_is_nothing_to_rate(tmp_path: Path, source: Path) -> None:
    convert_checkpoint(source, tmp_path / "int8", outliers="none", keep=["."])
    found = qualities(tmp_path / "int8", source)
    assert (found, median_sqnr(found)) == ([], None)
    check_sqnr(tmp_path / "int8", found, 1000)


def test_median_and_limit(pair: Path) -> None:
    def rated(*figures: float | None) -> list[TensorQuality]:
        return [TensorQuality(f"t{n}", figure, 0.0, 0.0) for n, figure in enumerate(figures)]

    assert median_sqnr(rated(40, None, 30)) == 40
    assert median_sqnr(rated(None, None, 30)) is None
    folder = pair / "int8"
    check_sqnr(folder, rated(40, 30, None), 30)
    with rejected(QualityError, "'t2'", "at least 35 dB", "29.5 dB", "2 of 3"):
        check_sqnr(folder, rated(40, 30, 29.5), 35)


# What differs, and is named.


@pytest.fixture
def copied(pair: Path, tmp_path: Path) -> Path:
    """A copy of the converted folder, to be damaged; checksums are corrected, so ``verify`` finds nothing."""
    return Path(shutil.copytree(pair / "int8", tmp_path / "int8"))


def outlier_linear(folder: Path) -> str:
    return next(path for path, linear in open_converted(folder).linears.items() if linear.outliers)


def one_more(data: bytes, position: int) -> bytes:
    return bytes([(data[position] + 1) % 256])


@pytest.mark.parametrize("kind", ["weight", "weight_scale", "outlier_weight", "norm"])
@pytest.mark.parametrize("seed", range(4))
def test_one_changed_byte_is_named(pair: Path, copied: Path, kind: str, seed: int) -> None:
    """Even one step of a code, the lowest bits of a scale: what differs from the source is a difference."""
    path = outlier_linear(copied) if kind == "outlier_weight" else LINEAR
    name = "model.norm.weight" if kind == "norm" else f"{path}.{kind}"
    data = tensor_bytes(copied, name)
    position = int(np.random.default_rng(seed).integers(len(data) // 4)) * 4  # of a low byte
    write_tensor(copied, name, one_more(data, position), position)
    with rejected(SourceMismatchError, str(copied), f"'{name}'", "differs from the source"):
        qualities(copied, pair / "source")


def test_what_checksums_cannot_find(pair: Path, copied: Path) -> None:
    """A folder that is whole, of weights that are not the source's."""
    codes = np.frombuffer(tensor_bytes(copied, f"{LINEAR}.weight"), np.int8)
    column = int(np.flatnonzero(codes[: LLAMA["hidden_size"]])[0])  # no outlier column
    write_tensor(copied, f"{LINEAR}.weight", bytes([abs(int(codes[column])) - 1]), column)
    verify(open_converted(copied))
    with rejected(SourceMismatchError, f"'{LINEAR}.weight'", "row 0"):
        qualities(copied, pair / "source")


def test_a_code_in_an_outlier_column_is_named(pair: Path, copied: Path) -> None:
    path = outlier_linear(copied)
    linear = open_converted(copied).linears[path]
    assert linear.outlier_index is not None
    column = int(np.frombuffer(tensor_bytes(copied, f"{path}.outlier_index"), "<i4")[0])
    write_tensor(copied, f"{path}.weight", b"\1", 2 * linear.in_features + column)
    with rejected(SourceMismatchError, f"'{path}.weight'", "row 2"):
        qualities(copied, pair / "source")


def test_the_row_of_a_later_block_is_named(
    pair: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("int8conv.convert.quality._BLOCK_ELEMENTS", 200)
    data = tensor_bytes(copied, f"{LINEAR}.weight")
    position = 40 * LLAMA["hidden_size"] + 11
    write_tensor(copied, f"{LINEAR}.weight", one_more(data, position), position)
    with rejected(SourceMismatchError, f"'{LINEAR}.weight'", "row 40"):
        qualities(copied, pair / "source")


def other_weights(source: Path, dtype: torch.dtype) -> None:
    write_checkpoint(source, LLAMA, random_tensors(LLAMA, dtype, seed=1), shards=2)


def one_weight(source: Path, dtype: torch.dtype) -> None:
    """By less than half a step: the codes may stay, the checksum does not."""
    tensors = spread(dtype)
    weight = tensors[f"{HUGE}.weight"]
    assert weight[2, 1].abs() < 100
    weight[2, 1] = -weight[2, 1]
    write_checkpoint(source, LLAMA, tensors, shards=2)


def one_norm(source: Path, dtype: torch.dtype) -> None:
    tensors = spread(dtype)
    tensors["model.norm.weight"][0] += 1
    write_checkpoint(source, LLAMA, tensors, shards=2)


def another_dtype(source: Path, dtype: torch.dtype) -> None:
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    write_checkpoint(source, LLAMA, spread(other), shards=2)


def another_size(source: Path, dtype: torch.dtype) -> None:
    config = LLAMA | {"intermediate_size": 96}
    write_checkpoint(source, config, random_tensors(config, dtype), shards=2)


def fewer_layers(source: Path, dtype: torch.dtype) -> None:
    config = LLAMA | {"num_hidden_layers": 1}
    write_checkpoint(source, config, random_tensors(config, dtype), shards=2)


def more_layers(source: Path, dtype: torch.dtype) -> None:
    tensors = spread(dtype) | {"model.layers.2.mlp.up_proj.weight": torch.ones(2, 2, dtype=dtype)}
    write_checkpoint(source, LLAMA, tensors, shards=2)


def nan(source: Path, dtype: torch.dtype) -> None:
    tensors = spread(dtype)
    tensors[f"{LINEAR}.weight"][1, 1] = math.nan
    tensors[f"{HUGE}.weight"][1, 1] = math.inf
    write_checkpoint(source, LLAMA, tensors, shards=2)


@pytest.mark.parametrize(
    "change",
    [
        other_weights, one_weight, one_norm, another_dtype, another_size, fewer_layers, more_layers,
        nan,
    ],
)  # fmt: skip
def test_another_source_is_named(
    pair: Path, tmp_path: Path, change: Callable[[Path, torch.dtype], None]
) -> None:
    dtype = read_tensor(open_checkpoint(pair / "source").tensor("model.norm.weight")).dtype
    change(tmp_path / "other", dtype)
    with pytest.raises(SourceMismatchError) as caught:
        qualities(pair / "int8", tmp_path / "other")
    assert "tensor '" in str(caught.value) or "key '" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("rope_theta", 5e5), ("eos_token_id", 3), ("hidden_act", None)]
)
def test_another_config_is_named(pair: Path, tmp_path: Path, key: str, value: object) -> None:
    source = Path(shutil.copytree(pair / "source", tmp_path / "source"))
    edit_json(source / "config.json", lambda config: config.update({key: value}))
    with rejected(SourceMismatchError, str(pair / "int8" / "config.json"), f"key '{key}'", f"expected {value!r}"):  # fmt: skip
        qualities(pair / "int8", source)


def test_an_extra_head_in_the_source_is_named(tmp_path: Path) -> None:
    tied = LLAMA | {"tie_word_embeddings": True}
    tensors = random_tensors(tied)
    convert_checkpoint(write_checkpoint(tmp_path / "a", tied, tensors), tmp_path / "int8", outliers="none")  # fmt: skip
    for folder, row in (("copy", 0), ("other", 1)):
        head = tensors["model.embed_tokens.weight"].clone()
        head[0] += row
        source = write_checkpoint(tmp_path / folder, tied, tensors | {"lm_head.weight": head})
        with rejected(SourceMismatchError, "'lm_head.weight'", "that the converted one lacked"):
            qualities(tmp_path / "int8", source)


def test_what_is_the_same_rounded_and_left_out_is_counted(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, torch.float32)
    tensors |= {"model.ids": torch.arange(9), "model.layers.0.rotary_emb.inv_freq": torch.ones(4)}
    source = write_checkpoint(tmp_path / "source", LLAMA, tensors)
    convert_checkpoint(source, tmp_path / "int8", outliers="none")
    found = compare_tensors(open_converted(tmp_path / "int8"), resolve(source))
    assert found.same == 5 + 1  # norms and integers
    rounded = ("model.embed_tokens.weight", "lm_head.weight")
    assert found.rounded == {
        name: int((tensors[name].half().float() != tensors[name]).sum()) for name in rounded
    }
    assert found.left_out == {"model.layers.0.rotary_emb.inv_freq": "computed, not learned"}
    write_tensor(tmp_path / "int8", "model.ids", b"\7", 8)
    with rejected(SourceMismatchError, "'model.ids'", "differs from the source"):
        qualities(tmp_path / "int8", source)


def test_outlier_columns_of_float32_are_counted_as_rounded(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, torch.float32)
    source = write_checkpoint(tmp_path / "source", LLAMA, tensors)
    report = convert_checkpoint(source, tmp_path / "int8", max_outliers=0.25)
    found = compare_tensors(open_converted(tmp_path / "int8"), resolve(source))
    assert sum(found.rounded.values()) == report.rounded
    assert f"{LINEAR}.weight" in found.rounded


def test_what_earlier_releases_left_out_is_left_out(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    source = write_checkpoint(tmp_path / "source", LLAMA, tensors)
    convert_checkpoint(source, tmp_path / "int8", outliers="none")
    write_checkpoint(source, LLAMA, tensors | {"model.ids": torch.arange(4)})
    why = "not a weight of the model, and I64"
    edit_json(tmp_path / "int8" / "int8conv.json", lambda m: m.update(skipped={"model.ids": why}))
    found = compare_tensors(open_converted(tmp_path / "int8"), resolve(source))
    assert found.left_out == {"model.ids": why}


@pytest.mark.parametrize("sums", [None, [], {}, {f"{LINEAR}.weight": 3}], ids=str)
def test_a_manifest_without_sums_of_the_source(pair: Path, copied: Path, sums: object) -> None:
    edit_json(copied / "int8conv.json", lambda m: m["source"].update(tensors=sums))
    with rejected(SourceMismatchError, "not the source"):
        qualities(copied, pair / "source")


def test_a_tensor_that_the_folder_lacks(pair: Path, copied: Path, tmp_path: Path) -> None:
    tensors = {"lost.weight": {"dtype": "F16", "shape": [2], "xxh3_128": "0" * 32}}
    edit_json(copied / "int8conv.json", lambda m: m["source"]["tensors"].update(tensors))
    with rejected(SourceMismatchError, str(copied), "'lost.weight'", "missing"):
        qualities(copied, pair / "source")


def test_a_source_that_becomes_shorter(pair: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(pair / "source", tmp_path / "source"))
    shard = source / "model-00002-of-00002.safetensors"

    def shorten(stage: str, done: int, total: int) -> None:
        os.truncate(shard, shard.stat().st_size // 2)

    with pytest.raises(FileChangedError, match=r"00002-of-00002"):
        compare_tensors(open_converted(pair / "int8"), resolve(source), shorten, jobs=1)


def test_without_torch(pair: Path) -> None:
    code = """
import json, sys
from int8conv.convert.quality import compare_tensors
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.hub.download import resolve
found = compare_tensors(open_converted(sys.argv[1]), resolve(sys.argv[2]))
print(json.dumps([len(found.linears), "torch" in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, pair / "int8", pair / "source"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [14, False]
