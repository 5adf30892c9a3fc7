"""The model card: metadata that the hub understands, and figures that are those of the folder."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCard

from int8conv.formats.int8.folder import open_converted
from int8conv.publish.card import model_card

from ..formats.damage import MANIFEST, edit_json


def test_it_names_its_base_if_that_is_on_the_hub(converted: Path) -> None:
    card = ModelCard(model_card("org/small", open_converted(converted)))
    assert card.data.library_name == "int8conv"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None  # the name of a folder
    edit_json(converted / MANIFEST, lambda m: m["source"].update(id="some-org/base", revision="c0ffee"))  # fmt: skip
    text = model_card("org/small", open_converted(converted))
    data = ModelCard(text).data
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("some-org/base", "quantized")  # fmt: skip
    assert "`some-org/base`, revision `c0ffee`" in text


def test_its_figures_are_those_of_the_folder(converted: Path) -> None:
    text = model_card("org/small", open_converted(converted))
    manifest = json.loads((converted / MANIFEST).read_text())
    assert text.count("# small\n") == 1
    assert "42 linears" in text
    assert f"{sum(group['outliers'] for group in manifest['inputs'])} outlier columns" in text
    assert "| `outliers` " in text
    assert "| calibration: tokens " in text
    assert "| 1,024 " in text  # as many positions as it has
    assert "4,096" not in text
    assert 'int8conv.load("org/small")' in text


def test_a_family_that_does_not_run_has_no_memory_table(converted: Path) -> None:
    edit_json(converted / "config.json", lambda c: c.update(model_type="nobody", architectures=["NobodyModel"]))  # fmt: skip
    card = ModelCard(model_card("org/small", open_converted(converted)))
    assert "## Memory" not in card.text
    assert card.data.pipeline_tag is None
