"""Mutations of good inputs, from a seed: bytes, JSON texts, JSON structure, names that point elsewhere."""

from __future__ import annotations

import json
import random
import re
from typing import Any

TELLING = b'"{}[]:,0123456789-.eE\\u \0\x7f\x80\xff'

ELSEWHERE = [
    "../secret.safetensors", "../../etc/passwd", "/etc/passwd", "sub/model.safetensors", "..", ".",
    "", "..\\secret.safetensors", "model.safetensors\0", "~/secret", "x" * 5000, "file:///etc/passwd",
    "\ud800", "CON", "./model.safetensors", "//secret", "config.json", "https://localhost/x",
]  # fmt: skip

NUMBERS = [
    0, 1, -1, 2, 7, 16, 255, 2**31, 2**32 + 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**11, 10**18,
    10**400, -(10**20), 0.5, 1e30, 1e308, -0.0, 5e-324,
]  # fmt: skip


def mutated_bytes(rng: random.Random, data: bytes, end: int | None = None) -> bytes:
    """Up to four changes within the first ``end`` bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        limit = min(len(changed), end or len(changed))
        if limit == 0:
            break
        _change_bytes(rng, changed, rng.randrange(limit))
    return bytes(changed)


def _change_bytes(rng: random.Random, data: bytearray, at: int) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice(TELLING)
    elif kind == 2:
        del data[at : at + rng.choice((1, 1, 2, 8, 100))]
    elif kind == 3:
        data[at:at] = bytes(rng.choice(TELLING) for _ in range(rng.choice((1, 1, 3, 40))))
    elif kind == 4:
        del data[at:]
    elif kind == 5:
        data[at:at] = data[at : at + rng.randrange(1, 40)]
    elif kind == 6:  # a length field blown up
        size = rng.choice((2, 4, 8))
        data[at : at + size] = rng.choice(
            (2 ** (8 * size) - 1, 2 ** (8 * size - 1), 10**4)
        ).to_bytes(size, "little")
    else:
        data[at : at + 8] = bytes(8)


def mutated_json(rng: random.Random, value: Any) -> bytes:
    """The text of a JSON value after up to three changes of its structure, or of its text."""
    if rng.random() < 0.2:
        return _changed_text(rng, json.dumps(value))
    holder = [json.loads(json.dumps(value))]
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_node(rng, holder)
    return json.dumps(holder[0]).encode("utf-8", "surrogatepass")


def _changed_text(rng: random.Random, text: str) -> bytes:
    numbers = list(re.finditer(r"\d+", text))
    if numbers and rng.random() < 0.6:
        match = rng.choice(numbers)
        number = rng.choice(
            [*map(str, NUMBERS), "NaN", "-Infinity", "1e999", "9" * 5000, "00", "1."]
        )
        return (text[: match.start()] + number + text[match.end() :]).encode()
    return mutated_bytes(rng, text.encode())


def _change_node(rng: random.Random, holder: list[Any]) -> None:
    parent, key = rng.choice(list(_places(holder)))
    node = parent[key]
    kind = rng.randrange(7)
    if kind == 0 and parent is not holder:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice([*ELSEWHERE, key + "x", "__metadata__", "weight_map"])] = parent.pop(key)
    elif kind == 2:
        parent[key] = rng.choice(
            ([node], {"a": node}, [[[[node]]]], {}, [], None, True, "", {"": 0})
        )
    elif kind == 3 and isinstance(node, (int, float)):
        parent[key] = rng.choice((node + 1, -node - 1, node * 10**6 + 1, node == 0, str(node)))
    elif kind == 4 and isinstance(node, list) and node:
        node.append(rng.choice(node))
    elif kind == 5 and isinstance(node, dict) and len(node) > 1:
        one, other = rng.sample(sorted(node), 2)
        node[one], node[other] = node[other], node[one]
    else:
        parent[key] = rng.choice((rng.choice(NUMBERS), rng.choice(ELSEWHERE)))


def _places(parent: Any) -> Any:
    """Every (container, key) below a container."""
    for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
        yield parent, key
        if isinstance(parent[key], (dict, list)):
            yield from _places(parent[key])
