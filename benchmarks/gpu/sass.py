"""Reads machine code: its loops, and what they consist of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+(?:\.[A-Za-z0-9_]+)*)"
)
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_JUMP = re.compile(r"BRA\S*\s.*`\((\.L_x_\d+)\)")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_INTEGER = ("LOP3", "PRMT", "IADD3", "ISETP", "SEL", "LEA", "SHF", "VIADD", "IMNMX", "VIMNMX", "FSETP", "FMNMX", "FSEL", "I2FP", "POPC")  # fmt: skip
"""Of the pipe for integers and comparisons, with 16 lanes in a quarter of a core."""
_TENSOR = ("HMMA", "HGMMA", "UTCHMMA", "IMMA", "IGMMA", "UTCIMMA", "UTCQMMA")


@dataclass(frozen=True)
class Code:
    """Instructions of a loop's body, or of a whole kernel."""

    lines: tuple[str, ...]
    ops: Counter[str]

    @classmethod
    def of(cls, lines: Iterable[str]) -> Code:
        """Without the padding behind a kernel's end."""
        kept = [(line, m[1]) for line in lines if (m := _INSTRUCTION.match(line)) and m[1] != "NOP"]
        return cls(tuple(line for line, _ in kept), Counter(op for _, op in kept))

    @property
    def total(self) -> int:
        return self.ops.total()

    def count(self, *starts: str) -> int:
        """Instructions whose name without suffixes is one of these."""
        return sum(n for op, n in self.ops.items() if op.split(".")[0] in starts)

    def slots(self, fp32_lanes: int) -> float:
        """Clocks of a quarter of a core: the largest of issue and the pipes, by lanes per clock of the programming guide's table."""
        return max(
            self.total, 2 * self.count(*_INTEGER), (32 // fp32_lanes) * self.count("FADD", "FMUL", "FFMA"),
            8 * self.count("I2F", "F2I", "F2F", "MUFU"),
        )  # fmt: skip

    @property
    def barriers(self) -> int:
        return self.count("BAR")

    @property
    def fences(self) -> int:
        return self.count("MEMBAR", "CCTL", "FENCE")

    @property
    def tensor(self) -> Counter[str]:
        """Tensor core instructions."""
        return Counter({op: n for op, n in self.ops.items() if op.split(".")[0] in _TENSOR})

    @property
    def loads(self) -> Counter[int]:
        """Loads from memory by bytes per thread, those to shared memory included."""
        found: Counter[int] = Counter()
        for op, n in self.ops.items():
            if op.split(".")[0] in ("LDG", "LDGSTS"):
                found[_width(op)] += n
        return found

    @property
    def bytes(self) -> int:
        """Bytes that a thread loads from memory."""
        return sum(width * n for width, n in self.loads.items())


def _width(op: str) -> int:
    return next((_WIDTHS[part] for part in op.split(".")[1:] if part in _WIDTHS), 4)


def whole(sass: str) -> Code:
    """All instructions of a kernel."""
    return Code.of(sass.splitlines())


def loops(sass: str) -> list[Code]:
    """Innermost loops, in order."""
    lines = sass.splitlines()
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for i, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = i
        jump = _JUMP.search(line)
        if jump and jump[1] in labels:
            spans.append((labels[jump[1]], i))
    spans = [s for s in spans if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    found = [Code.of(lines[first : last + 1]) for first, last in spans]
    return [code for code in found if code.total > 1]  # a kernel ends in a jump to itself


def main_loops(sass: str) -> list[Code]:
    """The loops that a kernel is there for: those with tensor core instructions, or else those that load most."""
    found = loops(sass)
    for chosen in ([c for c in found if c.tensor], [c for c in found if c.bytes or c.count("UTMALDG")]):  # fmt: skip
        if chosen:
            most = max(_size(code) for code in chosen)
            return [code for code in chosen if _size(code) >= 0.9 * most]
    return []


def _size(code: Code) -> int:
    """A loop over K loads most and works most; one over outlier columns little."""
    return code.bytes + sum(code.tensor.values()) + 64 * code.count("UTMALDG")
