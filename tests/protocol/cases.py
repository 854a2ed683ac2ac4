"""Cases for the fuzz target: valid frames, payloads and queries, in any order, and mutated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

import orjson

from protocol.engineio import Handshake

STEP: Final = b"\xff"
"""Between the steps of a case; it is in no UTF-8."""

CASE_BYTES: Final = 300_000


class Target(IntEnum):
    """Who is attacked: the first byte of a case."""

    SERVER_ON_WEBSOCKET = 0
    SERVER_ON_POLLING = 1
    CLIENT_ON_WEBSOCKET = 2
    CLIENT_ON_POLLING = 3
    HANDSHAKES = 4


_OPEN: Final = b"0" + Handshake("sid", ("websocket",)).to_json().encode()
_FRAGMENT: Final = orjson.dumps(
    {
        "fragment_id": "f",
        "stream_id": "s",
        "sequence_number": 0,
        "timestamp": 1,
        "audio": {
            "format": "pcm_s16le",
            "sample_rate_hz": 8_000,
            "channels": 1,
            "duration_ms": 0,
            "data_base64": "AAAA",
        },
        "metadata": {"pts_ns": [1]},
    }
)
FRAMES: Final = (
    b"40",
    b'40{"token":"x"}',
    b'40{"pid":"p","offset":"2"}',
    b"40/custom,",
    b'40{"sid":"s","pid":"p"}',
    b'40/custom,{"sid":"s","pid":"pid"}',
    b"41",
    b"41/custom,",
    b'427["fragment:data",' + _FRAGMENT + b"]",
    b'42["fragment:ack",{"fragment_id":"f","status":"received","timestamp":1.0}]',
    b'42/custom,["x",[{"a":[]}],"7"]',
    b'451-/custom,12["x",{"_placeholder":true,"num":0}]',
    b'452-["x",{"_placeholder":true,"num":1},{"_placeholder":true,"num":0}]',
    b'461-3[{"_placeholder":true,"num":0}]',
    b'430["fine",-1.5e3,"\\u20ac"]',
    b'44{"message":"no"}',
    b"1",
    b"2",
    b"2probe",
    b"3",
    b"3probe",
    b"5",
    b"6",
    _OPEN,
)
SCRAPS: Final = (
    *(bytes([byte]) for byte in b'0123456-/,[]{}"\\: \x00\x1eb=\xc3\xed'),
    b"9" * 30,
    b"[" * 50,
    b'{"a":' * 50,
    b"null",
    b"NaN",
    b"1e999",
    b'"connect"',
    b'{"_placeholder":true,"num":0}',
    b"\\ud800",
    "€٣".encode(),
    b"\x1e",
    b"\x1ebAQID",
)
QUERIES: Final = (
    b"polling&4",
    b"polling&3",
    b"websocket&4",
    b"websocket&4&&GET&https://a.example",
    b"websocket&4&polling&GET",
    b"polling&4&polling&POST",
    b"polling&4&websocket&GET",
    b"polling&&nobody",
    b"smoke&4",
    _OPEN,
)


def cases(seed: int) -> Iterator[bytes]:
    """Cases without end; the same for the same seed."""
    rng = random.Random(seed)
    while True:
        target = rng.choice(list(Target))
        opening = {Target.CLIENT_ON_WEBSOCKET: b"t" + _OPEN, Target.CLIENT_ON_POLLING: b"p" + _OPEN}.get(target)
        steps = [opening] if opening and rng.random() < 0.9 else []  # without it a client takes nothing else
        for _ in range(rng.randint(1, 12)):
            steps += [_query(rng)] if target is Target.HANDSHAKES else _steps(rng)
        case = bytes([target]) + STEP.join(steps)
        yield (_mutated(rng, case) if rng.random() < 0.1 else case)[:CASE_BYTES]


def _steps(rng: random.Random) -> list[bytes]:
    kind = rng.random()
    if kind < 0.15:
        return [rng.choice((b"g", b"u", b"a", b"f", b"b\x01", b"s\x01", b"Ptext/plain", b"Papplication/octet-stream"))]
    if kind < 0.2:
        return rng.choice(([b"t2probe", b"t5"], [b"t3probe", b"u"]))  # a whole upgrade
    if kind < 0.25:
        return [b"." + b"." * rng.randint(1, 40)]
    if kind < 0.3:
        return [b"b" + rng.randbytes(rng.randint(0, 40)).replace(STEP, b"")]
    frame = rng.choice(FRAMES)
    while rng.random() < 0.4:
        frame = _mutated(rng, frame)
    if rng.random() < 0.3:
        return [b"p" + b"\x1e".join([frame, *rng.choices(FRAMES, k=rng.randint(0, 5))])]
    return [rng.choice((b"t", b"t", b"p")) + frame]


def _query(rng: random.Random) -> bytes:
    query = rng.choice(QUERIES)
    while rng.random() < 0.4:
        query = _mutated(rng, query)
    return query


def _mutated(rng: random.Random, data: bytes) -> bytes:
    """`data` with a piece cut, put in, exchanged or repeated, perhaps very often."""
    start = rng.randint(0, len(data))
    end = min(len(data), start + rng.randint(0, 8))
    match rng.randrange(6):
        case 0:
            piece = b""
        case 1:
            piece = data[start:end] * 2
        case 2:
            piece = data[start:end] + rng.choice(SCRAPS)
        case 3:
            piece = rng.choice(SCRAPS)
        case 4:
            piece = bytes(byte ^ 1 << rng.randrange(7) for byte in data[start:end])
        case _:
            piece = (data[start:end] or rng.choice(SCRAPS)) * rng.choice((3, 50, 20_000 if rng.random() < 0.05 else 3))
    return data[:start] + piece + data[end:]
