"""Files that transformers converts: tokens are the same, and where it has no exact class it is said."""

from __future__ import annotations

import base64
import builtins
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from int8conv.errors import TokenizerError
from int8conv.runtime.text.detokenizer import Detokenizer
from int8conv.runtime.text.tokenizer import Tokenizer

from .layouts import TEXTS, special, write_json, write_pair

pytestmark = pytest.mark.filterwarnings(
    "ignore:builtin type:DeprecationWarning"
)  # SentencePiece's bindings

SENTENCES = ["the cat sat on the mat", "a list of names", "größer naïve", "12345 the list"] * 8


def write_pieces(folder: Path, kind: str, name: str = "tokenizer.model", **options: Any) -> Any:
    """A SentencePiece model -> the library's own processor of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its bindings
        library = pytest.importorskip("sentencepiece")
        pytest.importorskip("google.protobuf")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, model_type=kind, minloglevel=2, **options,
    )  # fmt: skip
    (folder / name).write_bytes(model.getvalue())
    return library.SentencePieceProcessor(model_proto=model.getvalue())


def check_equal(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.load(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"], text
        detokenizer = Detokenizer(ours)
        streamed = "".join([*map(detokenizer.push, ids), detokenizer.finish()])
        assert streamed == ours.decode(ids)
    return ours


def test_a_llama_of_pieces_and_bytes(tmp_path: Path) -> None:
    own = write_pieces(tmp_path, "bpe", vocab_size=310, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)  # fmt: skip
    write_json(
        tmp_path, config={"model_type": "llama"},
        tokenizer_config={"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )  # fmt: skip
    ours = check_equal(tmp_path)
    assert ours.byte_fallback
    for text in ("the cat sat", "größer 日本語 🙂", "a  list\n"):
        assert ours.encode(text) == [own.bos_id(), *own.encode(text)]
        assert ours.decode(ours.encode(text)) == text


def test_unigram_pieces(tmp_path: Path) -> None:
    own = write_pieces(tmp_path, "unigram", "spiece.model", vocab_size=31, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)  # fmt: skip
    write_json(tmp_path, config={"model_type": "t5"}, tokenizer_config={"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "extra_special_tokens": []})  # fmt: skip
    ours = check_equal(tmp_path)
    assert ours.encode("the cat sat", special=False) == own.encode("the cat sat")


def test_tiktoken_ranks(tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    ranks = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the", b" l", b"is", b"ist"]
    lines = (f"{base64.b64encode(token).decode()} {i}" for i, token in enumerate(ranks))
    (tmp_path / "tokenizer.model").write_text("\n".join(lines) + "\n")
    write_json(
        tmp_path, config={"model_type": "llama"},
        tokenizer_config={"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {"262": special("<|im_start|>")}, "add_bos_token": False},
    )  # fmt: skip
    ours = check_equal(tmp_path)
    assert ours.encode("the list<|im_start|>", special=False) == [257, 259, 261, 262]


@pytest.mark.parametrize("kind", ["ChatGLM4Tokenizer", "QWenTokenizer", "PreTrainedTokenizerFast", "AutoTokenizer"])  # fmt: skip
def test_a_class_with_rules_of_its_own_is_refused_by_name(
    kind: str, example: Path, tmp_path: Path
) -> None:
    write_pair(example, tmp_path)
    write_json(tmp_path, config={"model_type": "llama"}, tokenizer_config={"tokenizer_class": kind})
    with pytest.raises(TokenizerError, match=f"no exact tokenizer can be made of these files: .*found {kind.removesuffix('Fast')}"):  # fmt: skip
        Tokenizer.load(tmp_path)


def test_a_class_that_transformers_has(example: Path, tmp_path: Path) -> None:
    """A Roberta's words begin with a space of their own, and sentences with ``<s>``."""
    free = write_pair(example, tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    write_json(
        tmp_path, vocab=vocab | {name: free + i for i, name in enumerate(names)},
        config={"model_type": "roberta"}, tokenizer_config={"tokenizer_class": "RobertaTokenizer"},
    )  # fmt: skip
    assert check_equal(tmp_path).encode("")[0] == free


@pytest.mark.parametrize("library", ["transformers", "sentencepiece", "tiktoken"])
def test_what_is_not_installed_is_named(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ImportError(name)
        return real(name, *args, **options)

    (tmp_path / "tokenizer.model").write_bytes(b"YQ== 0\n" if library == "tiktoken" else b"\x0a\x01")  # fmt: skip
    write_json(tmp_path, tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        if library != "transformers":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TokenizerError, match=rf"class LlamaTokenizer needs {library} \(pip install 'int8conv\[tokenizers-legacy\]'\)"):  # fmt: skip
        Tokenizer.load(tmp_path)


def test_a_broken_file_is_a_line(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x01\x02\x03")
    write_json(tmp_path, tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    with pytest.raises(TokenizerError, match="tokenizer files are unusable"):
        Tokenizer.load(tmp_path)
