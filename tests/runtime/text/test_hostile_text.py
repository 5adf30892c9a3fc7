"""Templates and tokenizers that come from anyone: whatever they do, one line, in bounded time and memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers

from int8conv.errors import Int8convError, JsonFileError, NotFoundError, TokenizerError
from int8conv.runtime.text.chat_template import ChatTemplate
from int8conv.runtime.text.detokenizer import Detokenizer
from int8conv.runtime.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hello"}]
GROWING = "{% set ns = namespace(a='aaaaaaaaaaaaaaaa') %}{% for i in range(90000) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}"
FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (FOREVER, "it takes more than 2 s of processor time"),
        ("{{ 'a' * 3000000000 }}", "it needs more than 256 MiB of memory"),
        ("{{ messages[0].content * 3000000000 }}", "it needs more than 256 MiB of memory"),
        ("{{ 9 ** (9 ** 9) }}", ""),
        ("{{ '%1000000000d' % 1 }}", "it needs more than 256 MiB of memory"),
        ("{{ '{:>1000000000}'.format(1) }}", "it needs more than 256 MiB of memory"),
        (GROWING, "it needs more than 256 MiB of memory"),
        ("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "its text is longer than 16,777,216 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("(" * 100 + "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", ""),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{{ range(10 ** 9) | sum }}", "Range too big"),
    ],
)  # fmt: skip
def test_templates_without_end(source: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="the chat template fails") as caught:
        ChatTemplate(source, {}, tmp_path / "chat_template.jinja").render(MESSAGES)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 3000
    good = ChatTemplate("{{ messages[0].content }}", {}, tmp_path)
    assert good.render(MESSAGES) == "hello"  # another process, if need be


def test_templates_reach_no_file_and_no_variable_of_this_process(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for source in (
        f"{{% include '{secret}' %}}", "{{ cycler.__init__.__globals__.os.environ }}", "{{ ''.__class__.__mro__ }}",
        "{{ lipsum.__globals__.os }}", "{{ self.__init__.__globals__ }}",
    ):  # fmt: skip
        with pytest.raises(TokenizerError):
            ChatTemplate(source, {}, tmp_path).render(MESSAGES)


def test_messages_that_are_no_json(tmp_path: Path) -> None:
    template = ChatTemplate("{{ messages }}", {}, tmp_path)
    with pytest.raises(TokenizerError, match="messages are not JSON"):
        template.render([{"role": "user", "content": object()}])


def write_tokenizer(folder: Path, **changes: Any) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = RustTokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    value = json.loads(tokenizer.to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(value))
    return folder


def truncation(**changes: Any) -> dict[str, Any]:
    return {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    } | changes


def padding(count: int) -> dict[str, Any]:
    return {
        "strategy": {"Fixed": count}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
    }  # fmt: skip


def test_a_tokenizer_neither_cuts_nor_fills_a_prompt(tmp_path: Path) -> None:
    """As transformers, which takes both from its caller only."""
    expected = Tokenizer.load(write_tokenizer(tmp_path)).encode("hello")
    assert len(expected) == 5
    for changes in (
        {"truncation": truncation()}, {"padding": padding(64)}, {"padding": padding(10**12)}, {"truncation": truncation(max_length=0)},
    ):  # fmt: skip
        assert Tokenizer.load(write_tokenizer(tmp_path, **changes)).encode("hello") == expected


REPLACE = {"type": "Replace", "pattern": {"String": "l"}, "content": "l" * 10}
FAULTS: dict[str, dict[str, Any]] = {
    "stride": {"truncation": truncation(stride=5)},
    "precompiled": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "CAAAAP///38AAAAAAAAAAAAA"}},
    "precompiled, short": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "precompiled, too long": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////////AAAA"}},
    "no unknown token": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}},
    "no unknown piece": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["h", -1.0]], "byte_fallback": False}},
    "unknown piece out of range": {"model": {"type": "Unigram", "unk_id": 9, "vocab": [["h", -1.0]], "byte_fallback": False}},
    "endless normalizer": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 12}},
    "endless decoder": {"decoder": {"type": "Sequence", "decoders": [REPLACE] * 12}},
    "strip": {"decoder": {"type": "Strip", "content": "h", "start": 2**40, "stop": 2**40}},
    "a chain without patterns": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE | {"pattern": {"Regex": ""}}] * 12}},
    "a token of a template that is none": {"post_processor": {"type": "BertProcessing", "sep": ["</s>", 2**32 - 1], "cls": ["x", 2**32 - 1]}},
    "no model": {"model": {}}, "a model of no kind": {"model": {"type": "x"}}, "an empty object": {"model": None},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_tokenizers(
    fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They work or fail in a line; nothing of the library's is on stderr."""
    write_tokenizer(tmp_path, **FAULTS[fault])
    try:
        tokenizer = Tokenizer.load(tmp_path)
        tokens = tokenizer.encode("hello there")
        tokenizer.decode(tokens)
        detokenizer = Detokenizer(tokenizer, tokens)
        detokenizer.push(1)
        detokenizer.finish()
    except TokenizerError as error:
        assert len(str(error)) < 3000
        assert error.file == str(tmp_path)
    else:
        assert fault in ("stride", "strip", "a token of a template that is none", "no unknown piece", "precompiled")  # fmt: skip
    assert capfd.readouterr() == ("", "")
    os.write(2, b"stderr is back\n")
    assert capfd.readouterr().err == "stderr is back\n"


@pytest.mark.parametrize("escaped", [False, True])
def test_added_tokens_are_normalized_while_the_file_is_read(tmp_path: Path, escaped: bool) -> None:
    """Before anything could be asked of the tokenizer: 10^12 letters here."""
    token = {"id": 5, "content": "l", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}  # fmt: skip
    endless = {"type": "Sequence", "normalizers": [REPLACE] * 12}
    write_tokenizer(tmp_path, normalizer=endless, added_tokens=[token])
    file = tmp_path / "tokenizer.json"
    if escaped:
        file.write_text(file.read_text().replace("Replace", "R\\u0065place"))
    with pytest.raises(TokenizerError, match="more than 10,000 times as long"):
        Tokenizer.load(tmp_path)


def test_a_table_that_claims_eight_gigabytes(tmp_path: Path) -> None:
    """The library would allocate them, and end the process where there is not so much."""
    claim = {"type": "Precompiled", "precompiled_charsmap": "////////AAAA"}
    write_tokenizer(tmp_path, normalizer=claim)
    with pytest.raises(TokenizerError, match="precompiled_charsmap is truncated"):
        Tokenizer.load(tmp_path)


def test_a_panic_is_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Panic(BaseException):
        """As pyo3's PanicException: no Exception."""

    class Panicking:
        decoder = None

        def get_added_tokens_decoder(self) -> dict[int, object]:
            return {}

        def encode(self, text: str, **_: object) -> object:
            os.write(2, b"thread '<unnamed>' panicked at somewhere.rs:1\n")
            raise Panic("called `Option::unwrap()` on a `None` value")

        def decode(self, ids: list[int], **_: object) -> object:
            raise Panic("index out of bounds")

    tokenizer = Tokenizer(Panicking(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match=r"fails on this text: called `Option::unwrap"):
        tokenizer.encode("x")
    with pytest.raises(TokenizerError, match=r"fails on these tokens: index out of bounds"):
        tokenizer.decode([1])
    assert capfd.readouterr().err == ""


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


FILES: dict[str, Callable[[Path], object]] = {
    "tokenizer.json": Tokenizer.load, "merges.txt": Tokenizer.load, "vocab.json": Tokenizer.load,
    "tokenizer_config.json": Tokenizer.load, "special_tokens_map.json": ChatTemplate.load, "chat_template.jinja": ChatTemplate.load,
}  # fmt: skip


@pytest.mark.parametrize(
    "make", [make_fifo, make_endless, make_huge], ids=["FIFO", "device", "1 TiB"]
)
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_none_or_have_no_end(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    if FILES[name] == Tokenizer.load and name != "tokenizer.json":
        (tmp_path / "vocab.json").write_text('{"a": 0}')
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(Int8convError) as caught:
        FILES[name](tmp_path)
    if make == make_huge:
        assert type(caught.value) is JsonFileError
    else:
        assert type(caught.value) in (NotFoundError, TokenizerError)
