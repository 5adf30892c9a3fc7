"""Run only those pickle instructions that ``torch.save`` uses: a pickle cannot import, call or allocate anything else.

What a pickle refers to by module and name is looked up in a table given by the caller. Time and memory are bounded by the pickle's
size, whatever numbers it contains: Python's own readers allocate as much as a length field or a memo index says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

Call = Callable[[tuple[object, ...]], object]
"""Stands in for a callable, from arguments to result; raises ValueError if the arguments are invalid."""

MOST_BYTES: Final = 8 << 20
"""Largest size of a pickle, which takes about 200 bytes per tensor."""
MOST_INSTRUCTIONS: Final = 1 << 20
"""About 30 are needed per tensor."""

_INT: Final = struct.Struct("<i")
_FLOAT: Final = struct.Struct(">d")
_STOP: Final = ord(".")


def run_pickle(data: bytes, known: Mapping[str, object], persistent: Call) -> object:
    """Build the object that a pickle describes.

    Args:
        data: the pickle.
        known: what it may refer to, by ``module.name``; a ``Call`` may be called.
        persistent: maps a persistent id to its object.

    Raises:
        ValueError: it is malformed, too long, or asks for anything else.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"a pickle of {len(data):,} bytes, at most {MOST_BYTES:,} are allowed")
    machine = _Machine(data, known, persistent)
    instructions, at = machine.instructions(), 0
    try:
        for _ in range(MOST_INSTRUCTIONS):
            code = data[at]
            if code == _STOP:
                return machine.pop()
            at = instructions[code](at + 1)
    except (IndexError, struct.error) as error:  # of the data or the stack
        raise ValueError("a malformed pickle") from error
    except KeyError as error:
        if at < len(data) and data[at] not in instructions:
            raise ValueError(f"instruction {data[at]:#04x}, which no checkpoint needs") from error
        raise ValueError("a malformed pickle") from error  # of the memo
    raise ValueError(f"a pickle of more than {MOST_INSTRUCTIONS:,} instructions")


class _Machine:
    """A pickle's stack and memo. An instruction is called with the offset of its argument, and returns that of the next instruction."""

    def __init__(self, data: bytes, known: Mapping[str, object], persistent: Call) -> None:
        self._data = data
        self._known = known
        self._persistent = persistent
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def instructions(self) -> dict[int, Callable[[int], int]]:
        """Instructions by opcode (see ``pickletools`` in the standard library)."""
        return {
            0x80: lambda at: at + 1,  # PROTO
            0x95: lambda at: at + 8,  # FRAME
            ord("N"): self._constant(None), 0x88: self._constant(True), 0x89: self._constant(False),
            ord(")"): self._constant(()),
            ord("q"): self._put, ord("r"): self._put_far, 0x94: self._memoize,
            ord("h"): self._get, ord("j"): self._get_far,
            ord("J"): self._int, ord("K"): self._byte, ord("M"): self._short, 0x8A: self._long,
            ord("G"): self._float,
            ord("X"): self._text(4), 0x8C: self._text(1), 0x8D: self._text(8),
            ord("T"): self._text(4), ord("U"): self._text(1),
            ord("("): self._mark, ord("}"): self._new_dict, ord("]"): self._new_list,
            ord("t"): self._tuple, 0x85: self._tuple_of(1), 0x86: self._tuple_of(2),
            0x87: self._tuple_of(3),
            ord("s"): self._set_item, ord("u"): self._set_items,
            ord("a"): self._append, ord("e"): self._extend,
            ord("c"): self._global, 0x93: self._stack_global, ord("R"): self._reduce,
            ord("Q"): self._persistent_id, ord("b"): self._build,
        }  # fmt: skip

    def pop(self) -> object:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise IndexError("a mark is in the way")
        return self._stack.pop()

    def _bytes(self, at: int, count: int) -> bytes:
        part = self._data[at : at + count]
        if len(part) != count:
            raise IndexError("past the end")
        return part

    def _constant(self, value: object) -> Callable[[int], int]:
        def push(at: int) -> int:
            self._stack.append(value)
            return at

        return push

    def _put(self, at: int) -> int:
        self._memo[self._data[at]] = self._stack[-1]
        return at + 1

    def _put_far(self, at: int) -> int:
        self._memo[int.from_bytes(self._bytes(at, 4), "little")] = self._stack[-1]
        return at + 4

    def _memoize(self, at: int) -> int:
        self._memo[len(self._memo)] = self._stack[-1]
        return at

    def _get(self, at: int) -> int:
        self._stack.append(self._memo[self._data[at]])
        return at + 1

    def _get_far(self, at: int) -> int:
        self._stack.append(self._memo[int.from_bytes(self._bytes(at, 4), "little")])
        return at + 4

    def _int(self, at: int) -> int:
        self._stack.append(_INT.unpack_from(self._data, at)[0])
        return at + 4

    def _byte(self, at: int) -> int:
        self._stack.append(self._data[at])
        return at + 1

    def _short(self, at: int) -> int:
        self._stack.append(int.from_bytes(self._bytes(at, 2), "little"))
        return at + 2

    def _long(self, at: int) -> int:
        end = at + 1 + self._data[at]
        self._stack.append(int.from_bytes(self._bytes(at + 1, end - at - 1), "little", signed=True))
        return end

    def _float(self, at: int) -> int:
        self._stack.append(_FLOAT.unpack_from(self._data, at)[0])
        return at + 8

    def _text(self, width: int) -> Callable[[int], int]:
        def push(at: int) -> int:
            start = at + width
            end = start + int.from_bytes(self._data[at:start], "little")
            self._stack.append(self._bytes(start, end - start).decode())
            return end

        return push

    def _mark(self, at: int) -> int:
        self._marks.append(len(self._stack))
        return at

    def _new_dict(self, at: int) -> int:
        self._stack.append({})
        return at

    def _new_list(self, at: int) -> int:
        self._stack.append([])
        return at

    def _tuple(self, at: int) -> int:
        self._stack.append(tuple(self._marked()))
        return at

    def _tuple_of(self, count: int) -> Callable[[int], int]:
        def push(at: int) -> int:
            stack = self._stack
            if len(stack) - count < (self._marks[-1] if self._marks else 0):
                raise IndexError("a mark is in the way")
            stack[-count:] = (tuple(stack[-count:]),)
            return at

        return push

    def _set_item(self, at: int) -> int:
        value, key = self.pop(), self.pop()
        self._set([key, value])
        return at

    def _set_items(self, at: int) -> int:
        self._set(self._marked())
        return at

    def _append(self, at: int) -> int:
        value = self.pop()
        self._top(list).append(value)
        return at

    def _extend(self, at: int) -> int:
        values = self._marked()
        self._top(list).extend(values)
        return at

    def _global(self, at: int) -> int:
        module, middle = self._line(at)
        name, end = self._line(middle)
        self._push_named(module, name)
        return end

    def _line(self, at: int) -> tuple[str, int]:
        end = self._data.find(b"\n", at)
        if end < 0:
            raise IndexError("past the end")
        return self._data[at:end].decode(), end + 1

    def _stack_global(self, at: int) -> int:
        name, module = self.pop(), self.pop()
        self._push_named(module, name)
        return at

    def _push_named(self, module: object, name: object) -> None:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?"
        if full not in self._known:
            raise ValueError(f"it asks for {full}")
        self._stack.append(self._known[full])

    def _reduce(self, at: int) -> int:
        arguments, function = self.pop(), self.pop()
        if not callable(function) or not isinstance(arguments, tuple):
            raise ValueError("a malformed call in the pickle")
        self._stack.append(function(arguments))
        return at

    def _persistent_id(self, at: int) -> int:
        self._stack.append(self._persistent((self.pop(),)))
        return at

    def _build(self, at: int) -> int:
        """Ignore attributes, such as the versions of modules."""
        self.pop()
        return at

    def _marked(self) -> list[object]:
        """The objects pushed since the last mark."""
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _set(self, pairs: list[object]) -> None:
        keys = pairs[::2]
        if len(pairs) % 2 or not all(isinstance(key, str | int) for key in keys):
            raise ValueError("keys that are not text")  # hashing nested tuples can take forever
        self._top(dict).update(zip(keys, pairs[1::2], strict=True))

    def _top(self, kind: type[Any]) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise ValueError("a malformed pickle")
        return top
