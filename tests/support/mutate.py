"""Seeded damage to files: bits, lengths, and the fields of JSON."""

import json
import random
from typing import Any

VALUES = [None, True, False, -1, 0, 1, 2, 7, 1.5, 1e300, "", "x", "eager", "../x", [], {}, [1], {"a": 1}, "\ud800"]


def mutate(raw: bytes, choose: random.Random) -> bytes:
    """One mutant of a file: of its bits, its length, or (where it is JSON) of a field."""
    kinds = [_flip, _flip, _truncate, _insert, _overwrite]
    if raw[:1] in (b"{", b"["):
        kinds += [_json] * 5
    return choose.choice(kinds)(raw, choose)


def mutate_json(value: Any, choose: random.Random) -> Any:
    """A copy of a JSON value with one place in it changed: another type or number, gone, renamed, nested, moved."""
    value = json.loads(json.dumps(value))
    holder, key = choose.choice(list(_places(value)))
    kind = choose.choice(["value", "value", "delete", "rename", "nest", "number", "string", "copy"])
    old = holder[key]
    if kind == "delete":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[choose.choice([f"{key}_", key[:-1], "auto_map", "name_or_path", "quantization_config"])] = holder.pop(
            key
        )
    elif kind == "nest":
        holder[key] = choose.choice([[old], {"a": old}, {str(key): old}])
    elif kind == "number" and isinstance(old, int | float):
        most = 3 if "layers" in str(key) else 10_000  # a billion layers are not refused, they are awaited
        holder[key] = choose.choice([old + 1, old - 1, -old, old * 2, old + 0.5, str(old), most])
    elif kind == "string" and isinstance(old, str):
        holder[key] = choose.choice([old + "x", old[:-1], old.upper(), old[::-1], old * 3, "pickle", "model.bin"])
    elif kind == "copy":
        other, place = choose.choice(list(_places(value)))
        holder[key] = json.loads(json.dumps(other[place]))
    else:
        holder[key] = choose.choice(VALUES)
    return value


def _places(value: Any):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _flip(raw: bytes, choose: random.Random) -> bytes:
    damaged = bytearray(raw)
    for _ in range(choose.choice([1, 1, 1, 2, 8])):
        damaged[choose.randrange(len(raw))] ^= 1 << choose.randrange(8)
    return bytes(damaged)


def _truncate(raw: bytes, choose: random.Random) -> bytes:
    return raw[: choose.randrange(len(raw))]


def _insert(raw: bytes, choose: random.Random) -> bytes:
    place = choose.choice([0, len(raw), choose.randrange(len(raw))])
    return raw[:place] + choose.choice([b"\0", b" ", b"{", b"[" * 100_000, raw[:50]]) + raw[place:]


def _overwrite(raw: bytes, choose: random.Random) -> bytes:
    place, length = choose.randrange(len(raw)), choose.randrange(1, 64)
    return raw[:place] + choose.choice([b"\0", b"\xff", b"9"]) * length + raw[place + length :]


def _json(raw: bytes, choose: random.Random) -> bytes:
    return json.dumps(mutate_json(json.loads(raw), choose)).encode()
