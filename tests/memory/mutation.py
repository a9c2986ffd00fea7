"""Files that nobody would write: small changes to JSON, to its text, to a header."""

import copy
import json
import math
import struct

ODD = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1.0, 0.5, -2.5, 1e-30, 1e308, math.nan,
    math.inf, -math.inf, 10**6, 10**9, 2**31, 2**53, 2**63, 2**64, 10**30, "", "x",
    "0", "1", "true", "F32", "BF16", "float16", "llama", "gelu", "../x", "/dev/zero",
    "a\nb\x1b[31m", "\0", "\ud800", "\u0663", "e\u0301", "x" * 5000, [], [[]], [1],
    [0, 8], [None], ["x"], [-1, 2**70], {}, {"a": {"b": [1]}}, {"": 0},
)  # fmt: skip
TOKENS = (
    b"NaN", b"Infinity", b"-0", b"1e999", b"\xff", b"\xc3\x28", b"\0", b"{", b"}",
    b"[", b"]", b",", b'"', b"\\", b"\\ud800", b"\xef\xbb\xbf", b"//", b" ", b"-",
)  # fmt: skip


def places(value, path=()):
    """The path of every part of a JSON value, but for the whole."""
    parts = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def odd(draw):
    return copy.deepcopy(draw.choice(ODD))


def _at(value, path):
    for key in path:
        value = value[key]
    return value


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


def change(value, draw, prefer=None):
    """`value` with one part changed; keys with `prefer` among them more often."""
    paths = list(places(value))
    if prefer is not None and draw.random() < 0.5:
        paths = [path for path in paths if prefer(path)] or paths
    if not paths:
        return odd(draw)
    *parents, key = draw.choice(paths)
    owner = _at(value, parents)
    old = owner[key]
    kind = draw.randrange(9)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[draw.choice([*owner, "x", "", "layers.0.x", f"{key}x"])] = copy.deepcopy(
            old
        )
    elif kind == 2 and isinstance(owner, dict):
        owner[draw.choice([f"{key}x", "model.layers.7.a", "\u00e9"])] = owner.pop(key)
    elif kind == 3:
        other = draw.choice(paths)
        owner[key] = copy.deepcopy(_at(value, other))
    elif kind == 4:
        one, two = (*parents, key), draw.choice(paths)
        if one[: len(two)] != two and two[: len(one)] != one:
            home = _at(value, two[:-1])
            owner[key], home[two[-1]] = home[two[-1]], owner[key]
    elif kind == 5 and isinstance(old, int | float) and not isinstance(old, bool):
        owner[key] = draw.choice(
            [old + 1, old - 1, old * 2, -old, old + 2, float(old), str(old), [old]]
        )
    elif kind == 6 and isinstance(old, list):
        draw.choice([old.reverse, old.clear, lambda: old.append(odd(draw))])()
    elif kind == 7 and draw.random() < 0.1:
        owner[key] = nested(draw.choice([50, 150, 400]))
    else:
        owner[key] = odd(draw)
    return value


def text(value):
    return json.dumps(value).encode()


def mutated(content, draw, prefer=None):
    """The bytes of a JSON file, changed in what it says or in how it is written."""
    raw = bytes(content)
    if draw.random() < 0.85:
        value = json.loads(raw)
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            value = change(value, draw, prefer)
        return text(value)
    at = draw.randrange(len(raw) + 1)
    kind = draw.randrange(7)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + draw.choice(TOKENS) + raw[at:]
    if kind == 2:
        stop = min(at + draw.randrange(1, 9), len(raw))
        return raw[:at] + raw[stop:]
    if kind == 3:
        return raw[:at] + bytes([draw.randrange(256)]) + raw[at + 1 :]
    if kind == 4:
        return raw.decode().encode(draw.choice(["utf-16", "utf-32", "utf-8-sig"]))
    if kind == 5:
        return draw.choice([b"[" * 5000, b'{"a":' * 5000, b"", b"\0" * 99, b"9" * 9999])
    first = raw.index(b"{") + 1
    return raw[:first] + draw.choice([b'"a":1,"a":2,', b'"":"",']) + raw[first:]


def split(file):
    """The header of a safetensors file, and the tensors after it."""
    (length,) = struct.unpack("<Q", file[:8])
    return file[8 : 8 + length], file[8 + length :]


def joined(header, rest, pad=True):
    header += b" " * (-len(header) % 8 if pad else 0)
    return struct.pack("<Q", len(header)) + header + rest


def mutated_file(file, draw):
    """A safetensors file with another header, length or end."""
    header, rest = split(file)
    kind = draw.randrange(20)
    if kind == 0:
        length = draw.choice(
            [0, 1, 7, len(header) + 1, 10**8 + 1, 2**40, 2**63, 2**64 - 1]
        )
        return struct.pack("<Q", length) + header + rest
    if kind == 1:
        return file[: draw.randrange(len(file))]
    if kind == 2:
        return file + bytes(draw.choice([1, 8, 4096]))
    if kind in (3, 4):
        value = json.loads(header)
        names = [name for name in value if name != "__metadata__"]
        one, two = draw.sample(names, 2)
        field = draw.choice(["data_offsets", "shape", "dtype"])
        if draw.random() < 0.5:
            value[one][field] = value[two][field]
        else:
            value[one][field], value[two][field] = value[two][field], value[one][field]
        return joined(text(value), rest)
    offsets = None
    if draw.random() < 0.6:
        offsets = lambda path: path[-1] in ("data_offsets", "shape", "dtype", 0, 1)  # noqa: E731
    return joined(
        mutated(header.rstrip(b" "), draw, offsets), rest, draw.random() < 0.8
    )


def mutated_bytes(content, draw, head=8192):
    """A file that is cut, or whose first bytes are replaced, left out or repeated."""
    kind = draw.randrange(6)
    if kind == 0:
        return content[: draw.randrange(len(content))]
    at, some = draw.randrange(min(head, len(content))), draw.randint(1, 9)
    if kind == 1:
        return content[:at] + content[at + some :]
    if kind == 2:
        return content[: at + some] + content[at:]
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(min(head, len(content)))
        changed[at] = draw.choice((0, 1, 8, 9, 0x7F, 0xFF, draw.randrange(256)))
    return bytes(changed)
