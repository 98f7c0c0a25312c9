"""Mutations of bytes, of JSON values, and of the JSON in the header of a safetensors file."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

# What nobody means: other types, other signs, sizes that no machine has, numbers that are none.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64, -(2**63),
    10**30, 0.5, -0.0, 1e308, 1e-320, float("inf"), float("-inf"), float("nan"), "", "x", "0",
    "..", "/", "\n", "\x1b[31m", "é" * 40, "a" * 5000, [], {}, [1], [[1]], [None], ["x"], {"": 1},
    {"a": {"b": []}}, [2**40, 2**40], [-1], [0, 0], [1.5], {"__float__": "NaN"},
)  # fmt: skip


def places(value: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found = [] if found is None else found
    if isinstance(value, dict):
        pairs = list(value.items())
    else:
        pairs = list(enumerate(value)) if isinstance(value, list) else []
    for key, entry in pairs:
        found.append((value, key))
        places(entry, found)
    return found


def mutated(value: Any, chance: random.Random) -> Any:
    """A JSON value with one to three changes."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        known = places(value)
        if not known:
            return chance.choice(ODD)
        holder, key = chance.choice(known)
        match chance.randrange(6):
            case 0 | 1:
                holder[key] = copy.deepcopy(chance.choice(ODD))
            case 2:
                del holder[key]
            case 3:
                other, place = chance.choice(known)
                try:
                    holder[key] = copy.deepcopy(other[place])
                except (KeyError, IndexError):  # gone by an earlier change
                    continue
            case 4 if isinstance(holder, dict):
                holder[chance.choice(("more", "", "weight", "a.b", f"{key}x"))] = holder[key]
            case 4:
                holder.append(copy.deepcopy(holder[key]))
            case 5 if isinstance(holder[key], int | float):
                nudged = holder[key] * chance.choice((-1, 2, 10**9)) + chance.choice((-1, 0, 1))
                holder[key] = nudged
            case _:
                holder[key] = copy.deepcopy(chance.choice(ODD))
    return value


def text_of(value: Any) -> bytes:
    """A JSON value as bytes, also where JSON has no such number."""
    return json.dumps(value, sort_keys=True).encode()


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes with flips, with a part cut out, or with more in between."""
    changed = bytearray(data)
    if not changed:
        return bytes([chance.randrange(256)])
    match chance.randrange(5):
        case 0 | 1:
            for _ in range(chance.choice((1, 1, 2, 8))):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        case 2:
            at = chance.randrange(len(changed))
            del changed[at : at + chance.choice((1, 8, 64, 4096))]
        case 3:
            at = chance.randrange(len(changed) + 1)
            changed[at:at] = chance.randbytes(chance.choice((1, 8, 40)))
        case 4:
            at = chance.randrange(len(changed))
            length = chance.choice((1, 4, 8, 40))
            changed[at : at + length] = chance.choice((b"\0", b"\xff", b"9", b"[")) * length
    return bytes(changed)


def mutated_json(data: bytes, chance: random.Random) -> bytes:
    """The bytes of a JSON file with changed values, or now and then changed bytes."""
    if chance.random() < 0.15:
        return mutated_bytes(data, chance)
    return text_of(mutated(json.loads(data), chance))


def mutated_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file with a changed header, manifest, or body."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    manifest = header.get("__metadata__", {}).get("slt")
    match chance.randrange(4):
        case 0:
            return mutated_bytes(data, chance)
        case 1:
            header = mutated(header, chance)
        case _ if manifest is None:
            header = mutated(header, chance)
        case _:
            header["__metadata__"]["slt"] = text_of(mutated(json.loads(manifest), chance)).decode()
    text = text_of(header)
    return struct.pack("<Q", len(text)) + text + body


def mutated_lines(data: bytes, chance: random.Random) -> bytes:
    """A file of JSON lines with one of them changed."""
    lines = data.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = mutated_json(lines[at], chance)
    return b"\n".join(lines) + b"\n"


def nested(depth: int) -> list[bytes]:
    """Texts that are nested deep, as YAML or JSON."""
    return [b"[" * depth, b'{"a":' * depth, b"- " * depth + b"x", b"[" * depth + b"]" * depth]


Mutate = Callable[[bytes, random.Random], bytes]
