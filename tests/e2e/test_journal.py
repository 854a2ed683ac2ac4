"""What a worker must never see, and that it would be noticed."""

from __future__ import annotations

from typing import Any

import pytest

from .journal import Entry, pitch_of, violations

SEED = 3


def ready(session: str = "a") -> Entry:
    return {"what": "ready", "session": session}


def sent(n: int) -> Entry:
    return {"what": "sent", "n": n}


def accepted(n: int) -> Entry:
    return {"what": "accepted", "n": n}


def confirmed(n: int, digest: str = "") -> Entry:
    return {"what": "confirmed", "n": n, "digest": digest or f"digest {n}"}


def result(n: int, **changes: Any) -> Entry:
    pitch = pitch_of(SEED, n)
    entry = {"what": "result", "n": n, "status": "success", "code": None, "late": False, "digest": f"digest {n}"}
    return entry | {"pitch": pitch, "sound": pitch} | changes


DONE = {"what": "done"}


def in_flight(*numbers: int) -> list[Entry]:
    return [entry for n in numbers for entry in (sent(n), accepted(n))]


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([ready(), *in_flight(0, 1), result(0), result(1), DONE], id="all well"),
        pytest.param([ready(), *in_flight(0), ready(), result(0), DONE], id="over the next connection"),
        pytest.param([ready(), *in_flight(0), result(0), ready(), result(0), DONE], id="again, not acknowledged"),
        pytest.param([ready(), sent(0), ready(), sent(0), result(0), result(0), DONE], id="asked for again"),
        pytest.param([ready(), *in_flight(0), ready("b"), *in_flight(0), result(0), DONE], id="afresh"),
        pytest.param(
            [ready(), *in_flight(0, 1), result(0, digest="x"), result(1), sent(0), result(0, late=True), DONE],
            id="tried again",
        ),
        pytest.param([ready(), *in_flight(0), result(0, status="failed", pitch=0, sound=None), DONE], id="failed"),
    ],
)
def test_what_the_contract_allows(entries: list[Entry]) -> None:
    assert violations(entries, SEED) == []


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([ready(), *in_flight(0), DONE], "0 was accepted and has no result"),
        ([ready(), sent(0), DONE], "0 has no result"),
        ([ready(), *in_flight(0), result(0), result(0), DONE], "0 came twice over one connection"),
        (
            [ready(), *in_flight(0), result(0), confirmed(0), ready(), result(0), DONE],
            "0 came again although it was acknowledged",
        ),
        ([ready(), *in_flight(0), result(0), ready(), result(0, digest="x"), DONE], "0 came again and was another"),
        ([ready(), *in_flight(0, 1), result(1), result(0), DONE], "0 came after 1"),
        (
            [ready(), *in_flight(0, 1), result(0), result(1), ready(), result(1), result(0), DONE],
            "0 came after 1",
        ),
        ([ready(), *in_flight(0), result(0, pitch=0), DONE], f"0 has the pitch 0 Hz, not {pitch_of(SEED, 0)}"),
        ([ready(), *in_flight(0), result(0, sound=0), DONE], f"0 has the sound 0 Hz, not {pitch_of(SEED, 0)}"),
        ([ready(), *in_flight(0), result(0), ready("b"), result(0), DONE], "0 came and was not sent in this session"),
        (
            [ready(), {"what": "denied", "code": "STREAM_NOT_FOUND"}, DONE],
            "session a could not be resumed: STREAM_NOT_FOUND",
        ),
        (
            [ready(), sent(0), {"what": "refused", "n": 0, "code": "INVALID_SEQUENCE"}, sent(0), result(0), DONE],
            "0 was refused: INVALID_SEQUENCE",
        ),
        ([ready(), *in_flight(0), result(0)], "it has not come to its end"),
    ],
)
def test_what_it_does_not(entries: list[Entry], found: str) -> None:
    assert found in violations(entries, SEED)
