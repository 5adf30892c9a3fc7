"""Tokenizers and templates that fault, panic, or have no end: for the campaign against hostile inputs."""

from __future__ import annotations

import base64
import json
import random
import struct
from pathlib import Path
from typing import Any, Final

from hostile_good import TEMPLATE, good
from mutate import mutated_bytes, mutated_json

FAULTS: Final[dict[str, list[Any]]] = {
    "truncation": [
        {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5},
        {"direction": "Left", "max_length": 0, "strategy": "OnlySecond", "stride": 0},
        {"direction": "Right", "max_length": 1, "strategy": "OnlyFirst", "stride": 0},
    ],
    "padding": [
        {"strategy": {"Fixed": n}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
        for n in (64, 10**9, 2**62)
    ] + [{"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 2**60, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}],
    "normalizer": [
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "Precompiled", "precompiled_charsmap": "////////AAAA"},
        {"type": "Precompiled", "precompiled_charsmap": "CAAAAP///38AAAAAAAAAAAAA"},
        {"type": "Replace", "pattern": {"Regex": "(l+)+$"}, "content": "x"}, {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
        {"type": "Replace", "pattern": {"Regex": ""}, "content": "ab"},
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "l"}, "content": "l" * 10}] * 12},
        {"type": "Prepend", "prepend": "\x1b[31m"}, {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "NFKD"},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    ],
    "pre_tokenizer": [
        None, {"type": "Split", "pattern": {"Regex": "(h|he)*$"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}, {"type": "Digits", "individual_digits": True},
        {"type": "CharDelimiterSplit", "delimiter": "e"}, {"type": "FixedLength", "length": 0}, {"type": "UnicodeScripts"},
        {"type": "Sequence", "pretokenizers": []}, {"type": "WhitespaceSplit"},
    ],
    "decoder": [
        None, {"type": "Strip", "content": "h", "start": 2**40, "stop": 2**40}, {"type": "Strip", "content": "l", "start": 5, "stop": 5},
        {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}, {"type": "WordPiece", "prefix": "", "cleanup": True},
        {"type": "Replace", "pattern": {"String": ""}, "content": "y" * 50}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "h"}, "content": "h" * 10}] * 10},
        {"type": "BPEDecoder", "suffix": ""},
    ],
    "post_processor": [
        {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 10**9], "trim_offsets": True, "add_prefix_space": True},
        {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["nobody", 4294967295]},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [1] * 1000, "tokens": ["<s>"] * 1000}}},
        {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    ],
    "model": [
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}, {"type": "WordLevel", "vocab": {}, "unk_token": ""},
        {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        {"type": "Unigram", "unk_id": None, "vocab": [["h", -1.0], ["e", -2.0]], "byte_fallback": False},
        {"type": "Unigram", "unk_id": 9, "vocab": [["h", -1.0]], "byte_fallback": False},
        {"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0], ["he", float("1e308")]], "byte_fallback": True},
        {"type": "Unigram", "unk_id": 0, "vocab": [], "byte_fallback": False},
        {"type": "BPE", "dropout": 0.5, "unk_token": "no", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
         "byte_fallback": True, "ignore_merges": True, "vocab": {"h": 4294967295, "e": 0}, "merges": []},
    ],
    "added_tokens": [
        [{"id": 4294967295, "content": "he", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
        [{"id": 0, "content": "", "single_word": False, "lstrip": True, "rstrip": True, "normalized": True, "special": True}],
        [{"id": 5, "content": "l", "single_word": True, "lstrip": True, "rstrip": True, "normalized": True, "special": False}] * 3,
    ],
}  # fmt: skip


def change_tokenizer(folder: Path, rng: random.Random) -> None:
    path = folder / "m" / "tokenizer.json"
    value = json.loads(good(path))
    for _ in range(rng.choice((0, 1, 1, 2))):
        key = rng.choice(sorted(FAULTS))
        value[key] = json.loads(json.dumps(rng.choice(FAULTS[key])))
    if rng.random() < 0.3:
        value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": _base64(rng)}
    text = json.dumps(value).encode() if rng.random() < 0.4 else mutated_json(rng, value)
    path.write_bytes(text)


def _base64(rng: random.Random) -> str:
    size = rng.choice((0, 4, 8, 40, 400))
    words = [rng.choice((0, 4, 8, 255, 1024, rng.randrange(2**32))) for _ in range(size // 4)]
    trie = struct.pack(f"<{len(words)}I", *words)
    head = struct.pack("<I", rng.choice((len(trie), len(trie), 0, 2**31, 3)))
    return base64.b64encode(
        head + trie + bytes(rng.randrange(256) for _ in range(rng.choice((0, 3, 9))))
    ).decode()


def change_old_tokenizer(folder: Path, rng: random.Random) -> None:
    """``vocab.json`` and ``merges.txt``, and the settings beside them."""
    m = folder / "m"
    tokenizer = json.loads(good(m / "tokenizer.json"))
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in tokenizer["model"]["merges"])
    (m / "tokenizer.json").unlink(missing_ok=True)
    files = {
        "vocab.json": lambda: mutated_json(rng, tokenizer["model"]["vocab"]),
        "merges.txt": lambda: mutated_bytes(rng, merges.encode()),
        "tokenizer_config.json": lambda: mutated_json(
            rng, json.loads(good(m / "tokenizer_config.json"))
        ),
        "special_tokens_map.json": lambda: mutated_json(
            rng, {"bos_token": {"content": "<s>"}, "unk_token": "<unk>", "eos_token": "</s>"}
        ),
    }
    (m / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (m / "merges.txt").write_text(merges)
    name = rng.choice(sorted(files))
    (m / name).write_bytes(files[name]())


PIECES: Final = [
    "{% for a in range(99999) %}", "{% endfor %}", "{% for m in messages %}", "{% if true %}", "{% endif %}", "{{ 'a' * 3000000000 }}",
    "{{ 'a' * 100000 }}", "{% set x = x ~ x %}", "{% set x = [x, x] %}", "{% set x = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!' %}", "{{ 9 ** 9 ** 9 }}",
    "{{ '%1000000000d' % 1 }}", "{{ '{:>1000000000}'.format(1) }}", "{{ 'x' | center(10000000000) }}", "{{ messages | tojson }}",
    "{{ raise_exception('\x1b[31mno\n\n' * 99) }}", "{{ strftime_now('%Y' * 10000) }}", "{{ cycler.__init__.__globals__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% include '/etc/passwd' %}", "{% import 'x' as y %}", "{{ self._TemplateReference__context }}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}", "{{ f(1) }}", "{{ x }}", "{{ x | length }}", "{{ x | list | join(x) }}", "{{ lipsum(n=100000) }}",
    "{% set ns = namespace(a='a') %}", "{% for i in range(90000) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}", "{{ ns.a }}", "{% generation %}",
    "{% endgeneration %}", "{{ messages[0]['content'] | replace('', 'b' * 1000) }}", "{{ x | wordwrap(1) }}", "{{ x | urlize }}", "{{ range(10**9) | sum }}",
    "{{ range(99999) | batch(2) | list | tojson(indent=9999999) }}", "{{ (x ~ '<' * 50000) | striptags }}", "{{ messages.append(1) }}",
    "{% break %}", "{% continue %}", "{% do 1 %}", "{{ dict(a=1) | items | list }}", "{{ 1 // 0 }}", "{{ -1 ** 0.5 }}", "{{ undefined.attribute.other }}",
    "{{ eos_token * 10**8 }}", "{{ 'a'.encode('utf-8').hex() }}", "{{ '\\ud800' }}", "\x00", "\u202e", "{# ", " #}", "{% raw %}", "{% endraw %}",
]  # fmt: skip


def change_template(folder: Path, rng: random.Random) -> None:
    pieces = [TEMPLATE, *(rng.choice(PIECES) for _ in range(rng.randrange(1, 7)))]
    rng.shuffle(pieces)
    text = "".join(pieces).encode("utf-8", "surrogatepass")
    if rng.random() < 0.5:
        text = mutated_bytes(rng, TEMPLATE.encode() if rng.random() < 0.5 else text)
    (folder / "m" / "chat_template.jinja").write_bytes(text)
