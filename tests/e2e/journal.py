"""What a worker saw, on disk at once, so that it outlives a ``kill -9``; and what in it breaks the contract.

One JSON object per line, in the order in which things happened to the worker. A worker that starts again reads in it
where it was. `violations` reads it afterwards, without sharing any of the worker's own logic:

    ready       session, a connection begins: everything until the next one happened on it
    sent        n       written before it leaves
    accepted    n
    refused     n, code
    result      n, status, code, late, digest, pitch (that was heard), sound (pitch of the dub; None: not looked at)
    confirmed   n, digest: the server has said that it has our acknowledgement of this result
    denied      code    ``stream:init`` with `resume` was refused
    ending      ``stream:end`` is about to leave
    done                everything was dubbed and the stream completed
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import define, field

Entry = dict[str, Any]

PITCHES = 60


def pitch_of(seed: int, number: int) -> int:
    """The pitch of a worker's fragment; its neighbours', and other workers', are others."""
    return 300 + 40 * ((7 * number + 13 * seed) % PITCHES)


def read(path: Path) -> list[Entry]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Journal:
    """For one worker to write to."""

    def __init__(self, path: Path) -> None:
        self.entries = read(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, what: str, **fields: Any) -> Entry:
        entry = {"what": what, **fields}
        os.write(self._file, json.dumps(entry).encode() + b"\n")  # the system has it when this returns
        self.entries.append(entry)
        return entry


@define
class _Session:
    """What one session of the server owes the worker, and what came of it."""

    owed: set[int] = field(factory=set)  # accepted
    open: set[int] = field(factory=set)  # sent, accepted or not
    sends: Counter[int] = field(factory=Counter)
    digests: dict[int, set[str]] = field(factory=dict)
    last_digest: dict[int, str] = field(factory=dict)
    confirmed: set[str] = field(factory=set)


@define
class _Connection:
    may_come: Counter[int] = field(factory=Counter)  # results, at most
    came: set[int] = field(factory=set)
    last_in_order: int = -1


def violations(entries: list[Entry], seed: int) -> list[str]:
    """What must not have happened."""
    found: list[str] = []
    session_id, session, connection = None, _Session(), _Connection()
    have_result: set[int] = set()
    numbers: set[int] = set()
    for entry in entries:
        n = entry.get("n", -1)
        match entry["what"]:
            case "ready":
                if entry["session"] != session_id:  # afresh, which cancels what was owed
                    session_id, session = entry["session"], _Session()
                kept = [n for n, digest in session.last_digest.items() if digest not in session.confirmed]
                connection = _Connection(may_come=Counter(kept) + Counter(session.open))
            case "sent":
                numbers.add(n)
                session.sends[n] += 1
                session.open.add(n)
                connection.may_come[n] += 1
            case "accepted":
                session.owed.add(n)
            case "refused" if entry["code"] != "BACKPRESSURE_EXCEEDED":
                found.append(f"{n} was refused: {entry['code']}")
            case "confirmed":
                session.confirmed.add(entry["digest"])
            case "denied":
                found.append(f"session {session_id} could not be resumed: {entry['code']}")
            case "result":
                found += _check_result(entry, n, seed, session, connection)
                have_result.add(n)
    if not entries or entries[-1]["what"] != "done":
        found.append("it has not come to its end")
    found += [f"{n} has no result" for n in sorted(numbers - have_result)]
    found += [f"{n} was accepted and has no result" for n in sorted(session.owed)]
    if numbers != set(range(len(numbers))):
        found.append("numbers are missing: the worker is wrong")
    return found


def _check_result(entry: Entry, n: int, seed: int, session: _Session, connection: _Connection) -> list[str]:
    found: list[str] = []
    if n not in session.sends:
        found.append(f"{n} came and was not sent in this session")
    if entry["digest"] in session.confirmed:
        found.append(f"{n} came again although it was acknowledged")
    connection.may_come[n] -= 1
    if connection.may_come[n] < 0:
        found.append(f"{n} came twice over one connection")
    session.last_digest[n] = entry["digest"]
    known = session.digests.setdefault(n, set())
    if entry["digest"] not in known:
        known.add(entry["digest"])
        session.owed.discard(n)
        session.open.discard(n)
    if len(known) > session.sends[n]:
        found.append(f"{n} came again and was another")
    if not entry["late"] and n not in connection.came:
        if n <= connection.last_in_order:
            found.append(f"{n} came after {connection.last_in_order}")
        connection.last_in_order = n
    connection.came.add(n)
    heard = {
        what: entry[what] for what in ("pitch", "sound") if entry[what] is not None and entry["status"] != "failed"
    }
    wrong = {what: pitch for what, pitch in heard.items() if abs(pitch - pitch_of(seed, n)) > 8}
    return found + [f"{n} has the {what} {pitch} Hz, not {pitch_of(seed, n)}" for what, pitch in wrong.items()]
