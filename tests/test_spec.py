"""Every rule of SPEC.md has a test that says so, and no test names a rule that is not there."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import torch
import xxhash

import int8conv
from int8conv.convert.options import ConvertOptions
from int8conv.convert.outliers.collect import fingerprint
from int8conv.formats.int8.manifest import FileRecord, InputGroup, Manifest
from int8conv.formats.safetensors.dtypes import ITEM_BYTES
from int8conv.formats.source.checkpoint import open_checkpoint

from .checkpoints import LLAMA, write_checkpoint

SPEC = Path(int8conv.__file__).parent / "formats" / "SPEC.md"
TESTS = Path(__file__).parent
RULE = re.compile(r"\[([A-Z]\d+)\]")
MARK = re.compile(r"pytest\.mark\.rule\(\"(\w+)\"\)")


def rules() -> set[str]:
    """Names in brackets: where a rule is stated, and where it is referred to."""
    introduction, _, text = SPEC.read_text(encoding="utf-8").partition("\n## ")
    assert "[H1]" in introduction  # the example of what a name looks like
    return set(RULE.findall(text))


def marked() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    return {name for text in texts for name in MARK.findall(text)}


def test_the_page_has_rules() -> None:
    assert len(rules()) >= 40


def test_every_rule_has_a_test() -> None:
    assert rules() - marked() == set()


def test_every_mark_names_a_rule() -> None:
    assert marked() - rules() == set()


def test_every_list_of_rules_is_without_gaps() -> None:
    """A name is never reused, so one that is missing would be one that was lost."""
    by_letter: dict[str, list[int]] = {}
    for name in rules():
        by_letter.setdefault(name[0], []).append(int(name[1:]))
    for letter, numbers in by_letter.items():
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), letter


def test_the_manifest_on_the_page_has_every_field_that_is_written() -> None:
    page = SPEC.read_text(encoding="utf-8")
    shown = page[page.index("### 2.2") : page.index("- `source.id`")]
    options = re.search(r'"options": \{(.*?)\}', shown, re.DOTALL)
    assert options is not None
    assert re.findall(r'"(\w+)":', options[1]) == [field.name for field in fields(ConvertOptions)]
    names = set(re.findall(r'"(\w+)":', shown))
    for kind in (Manifest, InputGroup, FileRecord):
        assert {field.name for field in fields(kind)} <= names


def test_the_page_has_every_dtype_with_its_size() -> None:
    (line,) = re.findall(r"\[H6\] a dtype is not one of (.*?):", SPEC.read_text(encoding="utf-8"), re.DOTALL)  # fmt: skip
    found, waiting = {}, []
    for name, size in re.findall(r"(\w+)(?: \((\d)(?: byte)?\))?[,\s]*", line):
        waiting.append(name)
        if size:
            found |= dict.fromkeys(waiting, int(size))
            waiting = []
    assert (found, waiting) == (ITEM_BYTES, [])


def test_the_fingerprint_is_the_one_of_the_page(tmp_path: Path) -> None:
    """Computed as the page says it, for more tensors than are sampled and for fewer, with names that are sorted and escaped."""
    for count in (3, 64, 150, 200):
        tensors = {
            f"{chr(0xE9) if n % 2 else 'a'}.{n}.weight": torch.rand(130 if n % 3 else 1, 100)
            for n in range(count)
        }
        tensors["b"] = torch.rand(5)
        folder = write_checkpoint(tmp_path / str(count), LLAMA, tensors)
        by_name = sorted(tensors.items())
        listed = [[name, "F32", list(t.shape)] for name, t in by_name]
        running = xxhash.xxh3_128(
            (json.dumps(listed, indent=2, ensure_ascii=False) + "\n").encode()
        )
        matrices = [t.numpy().tobytes() for _, t in by_name if t.dim() > 1]
        step = max(1, len(matrices) // 64)
        numbers = range(0, len(matrices), step)[:64]
        assert len(numbers) == min(count, 64)
        for data in (matrices[number] for number in numbers):
            size = min(16384, len(data))
            start = (len(data) - size) // 2
            running.update(data[start : start + size])
        assert fingerprint(open_checkpoint(folder)) == running.hexdigest()
