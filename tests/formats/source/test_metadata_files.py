"""Which files beside the weights go along, and that nothing else is read or followed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import NotFoundError, PointerFileError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.names import TEMPLATES_FOLDER
from int8conv.formats.int8.verify import verify
from int8conv.formats.source import metadata_files
from int8conv.formats.source.metadata_files import find_metadata_files, open_metadata_file

from ..damage import rejected, write_pointer

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.jinja", "merges.txt", "vocab.json", "vocab.txt", "vocab.bpe",
    "tokenizer.model", "tokenizer.model.v3", "source.spm", "qwen.tiktoken", "preprocessor_config.json",
    "LICENSE", "LICENSE.md", "NOTICE", "USE_POLICY.md", "additional_chat_templates/rag.jinja",
)  # fmt: skip
NOT_COPIED = (
    "hf_quant_config.json", "quantize_config.json", "quant_config.json", "adapter_config.json",
    "trainer_state.json", "train.txt", "requirements.txt", "train.py", "additional_chat_templates/x.txt",
)  # fmt: skip
UNMENTIONED = (
    "README.md", ".gitattributes", "._tokenizer.json", "int8conv.json", "model.gguf",
    "model.safetensors.index.json", "training_args.bin", "sub/tokenizer.json",
)  # fmt: skip


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_known_names_are_copied_and_others_noted(source: Path) -> None:
    put(source, *COPIED, *NOT_COPIED, *UNMENTIONED)
    found = find_metadata_files(source, {})
    assert set(found.names) == set(COPIED)
    (note,) = found.notes
    assert f"({len(NOT_COPIED)})" in note
    assert "adapter_config.json" in note


@pytest.mark.parametrize("where", ["config", "tokenizer_config.json"])
def test_a_models_own_code_goes_along_where_a_config_names_it(source: Path, where: str) -> None:
    put(source, "modeling_my.py", "configuration_my.py")
    named = {"auto_map": {"AutoConfig": "configuration_my.MyConfig"}}
    if where != "config":
        (source / where).write_text(json.dumps(named))
    found = find_metadata_files(source, named if where == "config" else {})
    assert set(found.names) - {where} == {"modeling_my.py", "configuration_my.py"}
    assert found.notes == ()


def test_a_file_past_the_limit_is_noted(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_files, "MOST_BYTES", 1 << 20)
    with (source / "tokenizer.json").open("wb") as file:
        file.truncate((1 << 20) + 1)
    found = find_metadata_files(source, {})
    assert found.names == ()
    assert "tokenizer.json (1 MiB)" in found.notes[0]


def test_more_templates_than_a_model_has_are_noted(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata_files, "MOST_TEMPLATES", 2)
    put(source, *(f"{TEMPLATES_FOLDER}/{name}.jinja" for name in "abcd"))
    found = find_metadata_files(source, {})
    assert found.names == (f"{TEMPLATES_FOLDER}/a.jinja", f"{TEMPLATES_FOLDER}/b.jinja")
    assert f"{TEMPLATES_FOLDER}/c.jinja (more than 2 templates)" in found.notes[0]


def test_no_link_out_of_the_folder_is_followed(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    (source / "LICENSE").symlink_to(secret)
    (source / "inside").write_text("y")
    (source / "NOTICE").symlink_to("inside")
    found = find_metadata_files(source, {})
    assert found.names == ("NOTICE",)
    assert "LICENSE (is a link that leads out of its folder)" in found.notes[0]
    with pytest.raises(NotFoundError, match="leads out of its folder"):
        open_metadata_file(source, "LICENSE")


def test_links_of_the_hub_librarys_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"  # fmt: skip
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1234").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1234")
    assert find_metadata_files(snapshot, {}).names == ("tokenizer.json",)


def test_what_is_no_file_is_noted_and_not_waited_for(source: Path) -> None:
    os.mkfifo(source / "tokenizer.json")
    (source / "vocab.json").symlink_to("nowhere")
    found = find_metadata_files(source, {})
    assert found.names == ()
    assert "tokenizer.json (not a regular file)" in found.notes[0]
    assert "vocab.json (a link to a file that does not exist)" in found.notes[0]


def test_a_git_lfs_pointer_is_refused(source: Path) -> None:
    write_pointer(source / "tokenizer.json")
    with rejected(PointerFileError, str(source / "tokenizer.json"), "git lfs pull"):
        find_metadata_files(source, {})


def test_what_goes_along_is_in_the_manifest_and_verified(source: Path, tmp_path: Path) -> None:
    put(source, "additional_chat_templates/rag.jinja", "tokenizer.model", "notes.json")
    (source / "tokenizer.model").write_bytes(b"x" * ((2 << 20) + 5))
    report = convert_checkpoint(source, tmp_path / "out", outliers="none")
    assert any("notes.json" in note for note in report.notes)
    out = tmp_path / "out"
    assert (out / "additional_chat_templates/rag.jinja").read_bytes() == b"additional_chat_templates/rag.jinja"  # fmt: skip
    assert (out / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert not (out / "notes.json").exists()
    converted = open_converted(out)
    assert "additional_chat_templates/rag.jinja" in converted.manifest.files
    verify(converted)
    (out / "additional_chat_templates/rag.jinja").unlink()
    with rejected(NotFoundError, "rag.jinja"):
        verify(converted)
    convert_checkpoint(source, out, outliers="none", force=True)
