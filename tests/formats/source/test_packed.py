"""Who packed a tensor, told from names and dtypes, and what a packed checkpoint was made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from int8conv.formats.safetensors.dtypes import byte_count
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.safetensors.stored import StoredTensor
from int8conv.formats.source.packed import made_from, packed_by

FILE = LocalFile(Path("model.safetensors"))


def tensors(**dtypes: str) -> dict[str, StoredTensor]:
    """By name, ``__`` in place of a dot."""
    names = {name.replace("__", "."): dtype for name, dtype in dtypes.items()}
    return {n: StoredTensor(n, d, (4, 4), FILE, 0, byte_count(d, (4, 4))) for n, d in names.items()}


def packed(name: str, **dtypes: str) -> str | None:
    """Of the tensor ``name`` among these."""
    found = tensors(**dtypes)
    return packed_by(found[name], found)


@pytest.mark.parametrize(
    ("last", "method"),
    [
        ("SCB", "bitsandbytes"), ("weight_format", "bitsandbytes"), ("absmax", "bitsandbytes"),
        ("quant_map", "bitsandbytes"), ("bitsandbytes__nf4", "bitsandbytes"), ("bitsandbytes__fp4", "bitsandbytes"),
        ("qweight", "GPTQ or AWQ"), ("qzeros", "GPTQ or AWQ"), ("g_idx", "GPTQ"),
        ("weight_packed", "compressed-tensors"), ("weight_zero_point", "compressed-tensors"),
        ("weight_global_scale", "compressed-tensors (NVFP4)"), ("weight_scale_2", "ModelOpt (NVFP4)"),
        ("weight_scales", "EETQ"), ("_weight_qdata", "torchao"), ("W_q", "HQQ"), ("Qidxs", "QuIP#"),
        ("codebooks", "AQLM"), ("q_invperm", "ExLlamaV2"), ("trellis", "ExLlamaV3"),
        ("weight_scale", "a weight scale"), ("weight_scale_inv", "an FP8 scale"),
        ("outlier_index", "int8conv"), ("outlier_weight", "int8conv"),
    ],
)  # fmt: skip
def test_a_last_part_that_says_it(last: str, method: str) -> None:
    """Whatever the dtype, and with nothing beside it; the same letters elsewhere in a name say nothing."""
    for name in (f"a.b.{last}", last):
        stored = StoredTensor(name, "F32", (4,), FILE, 0, 16)
        assert packed_by(stored, {name: stored}) == method
    for name in (f"{last}.bias", f"a.my{last}", f"a.{last}x"):
        stored = StoredTensor(name, "F32", (4,), FILE, 0, 16)
        assert packed_by(stored, {name: stored}) is None


def test_padding_is_ours() -> None:
    stored = StoredTensor("int8conv.padding.7", "U8", (4,), FILE, 0, 4)
    assert packed_by(stored, {stored.name: stored}) == "int8conv"


@pytest.mark.parametrize(
    ("beside", "method"),
    [
        ({"a__scales": "F16", "a__biases": "F16"}, "MLX"),
        ({"a__SCB": "F32"}, "bitsandbytes"),
        ({"a__weight__absmax": "F32"}, "bitsandbytes"),
        ({"a__weight_scales": "F16"}, "EETQ"),
        ({"a__weight_scale": "F8_E4M3", "a__weight_scale_2": "F32"}, "ModelOpt (NVFP4)"),
        ({"a__weight_scale": "F32"}, "integers with a scale"),
        ({"a__scale": "F32"}, "integers with a scale"),
        ({"a__scales": "F16"}, "integers (I8)"),  # MLX has both
        ({"a__bias": "F16", "b__SCB": "F32"}, "integers (I8)"),  # another module's
    ],
)
def test_integers_by_what_stands_beside_them(beside: dict[str, str], method: str) -> None:
    assert packed("a.weight", a__weight="I8", **beside) == method
    assert packed("a.weight", a__weight="F16", **beside) is None


@pytest.mark.parametrize("dtype", ["I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"])
def test_integers_alone(dtype: str) -> None:
    assert packed("a.weight", a__weight=dtype) == f"integers ({dtype})"
    assert packed("a.position_ids", a__position_ids=dtype) is None


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E4M3", "BOOL"])
def test_floats_are_plain(dtype: str) -> None:
    assert packed("a.weight", a__weight=dtype) is None
    assert packed("a.bias", a__weight="I8", a__bias=dtype) is None


@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv"])
def test_scales_of_fp8_are_plain_beside_their_weight(scale: str) -> None:
    name = f"a.{scale}"
    assert packed(name, a__weight="F8_E4M3", **{f"a__{scale}": "F32"}) is None
    assert packed(name, a__weight="F16", **{f"a__{scale}": "F32"}) is not None
    assert packed(name, b__weight="F8_E4M3", **{f"a__{scale}": "F32"}) is not None


def test_names_that_need_their_partner() -> None:
    """quanto's data and MXFP4's blocks are common words otherwise."""
    assert packed("a._data", a___data="I8", a___scale="F32") == "quanto"
    assert packed("a._data", a___data="I8", b___scale="F32") is None
    assert packed("up_blocks", up_blocks="U8", up_scales="U8") == "MXFP4"
    assert packed("a.up_blocks", a__up_blocks="U8", a__up_scales="U8") == "MXFP4"
    assert packed("up_blocks", up_blocks="F16", up_scales="U8") is None
    assert packed("up_blocks", up_blocks="U8", down_scales="U8") is None
    assert packed("up", up="U8", up_scales="U8") is None


CARDS: list[tuple[str | bytes, str | None]] = [
    ("---\nlicense: mit\nbase_model: some/model-7B\ntags:\n- x\n---\n# Card\n", "some/model-7B"),
    ("---\nbase_model:\n  - 'some/model-7B'\n---\n", "some/model-7B"),
    ("---\nbase_model:\n- some/model-7B\n- an/other\n---\n", "some/model-7B"),
    ('---\nbase_model: "some/model-7B"\n---\n', "some/model-7B"),
    ("---\nbase_model: some/model-7B", "some/model-7B"),
    (b"---\nauthor: \xff\nbase_model: some/model-7B\n---\n", "some/model-7B"),
    ("---\nbase_model: a/b\x1b[31m\n---\n", None),
    ("---\nbase_model: a/b/c\n---\n", None),
    ("---\nbase_model: alone\n---\n", None),
    ("---\nbase_model: größe/b\n---\n", None),
    ("---\nmy_base_model: some/model-7B\n---\n", None),
    ("# Card\nbase_model: some/model-7B\n", None),
    ("---\nlicense: mit\n---\nbase_model: some/model-7B\n", None),
    ("---\n" + "x" * 70_000 + "\nbase_model: some/model-7B\n---\n", None),
    ("", None),
]


@pytest.mark.parametrize(("card", "base"), CARDS, ids=range(len(CARDS)))
def test_the_card_says_what_it_was_made_from(tmp_path: Path, card: str | bytes, base: str | None) -> None:  # fmt: skip
    (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert made_from(tmp_path, {}) == base


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("some/model-7B", "some/model-7B"), ("a.b/c_d", "a.b/c_d"), ("/home/me/model", None), ("./model", None), ("../model", None), ("x/.y", None), (5, None),
        (None, None), ("x/y z", None), ("x/y\n", None), ("a/b/c", None), ("größe/b", None),
        ("some/model-7B-GPTQ", None), ("x/y-awq", None), ("x/y.gguf", None), ("x/y-MLX", None), ("mlx-community/y", None),
        ("x/y-bnb-4bit", None), ("x/y-8-bit", None), ("x/y-exl2", None), ("x/quantized-y", None), ("x/y-INT8", None),
        ("x/y-fp8", None), ("x/y-w4a16", None),
    ],
)  # fmt: skip
def test_else_the_config_may_say_it(tmp_path: Path, name: object, base: str | None) -> None:
    """The name of a packed checkpoint is its own."""
    assert made_from(tmp_path, {"_name_or_path": name}) == base


def test_the_card_goes_before_the_config(tmp_path: Path) -> None:
    config = {"_name_or_path": "of/config"}
    (tmp_path / "README.md").write_text("---\nbase_model: of/card\n---\n")
    assert made_from(tmp_path, config) == "of/card"
    (tmp_path / "README.md").write_text("no front matter")
    assert made_from(tmp_path, config) == "of/config"


def test_a_card_that_leads_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("---\nbase_model: some/secret\n---\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").symlink_to(tmp_path / "secret")
    assert made_from(tmp_path / "folder", {}) is None
