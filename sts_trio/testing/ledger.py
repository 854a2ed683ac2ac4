"""The contract as its worker sees it: what one session may be told, given what was said and heard before. Pure.

A `Ledger` is told all that one worker says about one session and all that it hears, in order and with the time. Each
thing heard that the contract does not allow is a line in `violations`. It knows nothing of the server's inside, so it
can judge any server; and it knows that a network loses what was on its way:

* What was said over a connection that was lost may have arrived or not.
* What the server sent over it, too. So after a resume the same result may come again, unless its acknowledgement must
  have arrived.

The rules, with the part of the contract they are from, are the methods `_on_...` below.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from attrs import define, field, frozen

from protocol.errors import ErrorCode

from .terms import TIMEOUT_GRACE_S, Terms

RESULT_OVERHEAD_BYTES: Final = 8_192
"""More than a kept result weighs beside its audio."""

_LEVELS: Final = {"medium": "slow_down", "high": "pause", "low": "none"}


@frozen
class _Saying:
    """A fragment was sent: by the count of what was said, and whether its fields were right."""

    order: int
    valid: bool


@define
class _Entry:
    """One fragment_id.

    Attributes:
        unanswered: how it was sent, as often as no answer has come.
        lost: likewise, over connections that were lost.
        owed: it was acknowledged, and its result has not been heard.
        doubtful: it may be that what was heard was that result.
        maybe: how often it was sent over connections that were lost: the server may owe as many results.
        results: a digest of each one heard, in order; the same one heard again is not added.
    """

    number: int
    metadata: Mapping[str, Any] = field(factory=dict)
    unanswered: list[_Saying] = field(factory=list)
    lost: list[_Saying] = field(factory=list)
    owed: bool = False
    doubtful: bool = False
    maybe: int = 0
    acknowledged_at: float = math.inf
    due_at: float = math.inf
    accepted_after: int = 0  # losses of a connection
    refused: bool = False
    passed_over: bool = False  # refused, so that its number holds nobody up
    results: list[bytes] = field(factory=list)
    may_retry: bool = True
    late: bool = False
    may_be_late: bool = False  # it was refused, has failed, or may have: what comes next may come out of order
    was_acknowledged: bool = False  # its last result, whether the server knows it or not
    told: bool = False  # we have acknowledged its last result, and the server must know
    saying: list[int] = field(factory=list)  # acknowledgements that may not have arrived
    excused: bool = False  # what was asked of it may be answered by a result that comes again after a resume

    @property
    def is_being_retried(self) -> bool:
        """Whether another result may take the place of the last."""
        return self.owed or self.maybe > 0 or bool(self.unanswered)


@define
class Ledger:
    """One session's account.

    Attributes:
        violations: what was heard and should not have been, or never came.
        completed: ``stream:complete`` was heard.
        ended: the worker said ``stream:end``, or the server drains.
    """

    terms: Terms
    violations: list[str] = field(factory=list)
    completed: bool = False
    ended: bool = False
    draining: bool = False
    smooth_since: float = 0.0
    _entries: dict[str, _Entry] = field(factory=dict)
    _by_number: dict[int, set[str]] = field(factory=dict)
    _said: int = 0
    _level: str = "low"
    _level_may_repeat: bool = False
    _due: str | None = None  # the level that must be told before anything else
    _last_number: int = -1
    _highest_sent: int = -1
    _given_up: set[int] = field(factory=set)
    _told_until: int | None = None  # what became of every number until here was heard; None: that is not known
    _may_be_paused: bool = False
    _paused_at: float = math.inf  # by the count of what was said; surely paused for what is said after that
    _active_at: float = -math.inf  # likewise
    _has_accepted: bool = False
    _losses: int = 0  # of connections
    _replay: dict[str, None] = field(factory=dict)
    _must_come_again: set[str] = field(factory=set)  # of these, those of which the server cannot know that they came
    _replayed_bytes: int = 0
    first_results: int = 0
    statuses: dict[str, int] = field(factory=dict)

    # ------------------------------------------------------------------------------------ what the worker says

    def sends(
        self, fragment_id: str, number: int, *, valid: bool = True, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """A ``fragment:data`` leaves; `valid`: its fields are right. Sent again, it has the same metadata."""
        self._said += 1
        entry = self._entries.get(fragment_id)
        if entry is None:
            entry = self._entries[fragment_id] = _Entry(number, metadata or {})
            self._by_number.setdefault(number, set()).add(fragment_id)
        entry.unanswered.append(_Saying(self._said, valid))
        self._must_come_again.discard(fragment_id)
        self._highest_sent = max(self._highest_sent, number)

    def acknowledges(self, fragment_id: str) -> None:
        """A ``fragment:ack`` of a result leaves."""
        self._said += 1
        self._entries[fragment_id].saying.append(self._said)
        self._entries[fragment_id].was_acknowledged = True

    def pauses(self) -> None:
        """``stream:pause`` leaves."""
        self._said += 1
        self._may_be_paused, self._paused_at, self._active_at = True, self._said, math.inf

    def goes_on(self) -> None:
        """``stream:resume`` leaves."""
        self._said += 1
        self._paused_at, self._active_at = math.inf, self._said

    def ends(self) -> None:
        """``stream:end`` leaves."""
        self.ended = True

    def disturbed(self, now: float) -> None:
        """The network was not what `Terms.slack_s` says: no conclusions from times before this."""
        self.smooth_since = now + self.terms.slack_s

    def loses_connection(self) -> None:
        """Its connection is lost, and with it whatever was on its way."""
        self._paused_at = math.inf
        self._due = self._told_until = None
        self._must_come_again.clear()
        self._losses += 1
        for entry in self._entries.values():
            entry.may_be_late = entry.may_be_late or entry.owed or bool(entry.unanswered)
            if entry.unanswered:
                entry.maybe += sum(saying.valid for saying in entry.unanswered)
                entry.lost, entry.unanswered = entry.lost + entry.unanswered, []
            entry.saying.clear()

    def asks_to_resume(self, next_number: int | None) -> None:
        """A resume leaves: what is below `next_number` counts as acknowledged, if it arrives."""
        for entry in self._before(next_number):
            entry.was_acknowledged = True

    def _before(self, next_number: int | None) -> list[_Entry]:
        entries = self._entries.values()
        return (
            [] if next_number is None else [e for e in entries if e.results and e.number < next_number and not e.late]
        )

    def resumes(self, next_number: int | None, now: float) -> None:
        """``stream:ready`` of a resume was heard: unacknowledged results are sent again from here on."""
        self.disturbed(now)
        self._level_may_repeat = True
        self._replayed_bytes = 0
        for entry in self._entries.values():
            entry.lost.clear()
            entry.excused = entry.owed or entry.maybe > 0 or bool(entry.results)
        for entry in self._before(next_number):
            entry.told = True
        self._replay = {name: None for name, entry in self._entries.items() if entry.results and not entry.told}
        self._must_come_again = {
            fragment_id
            for fragment_id in self._replay
            if not (self._entries[fragment_id].was_acknowledged or self._entries[fragment_id].is_being_retried)
        }

    def recovers(self, now: float) -> None:
        """The connection was recovered: what the server said meanwhile comes, answers to what arrived included."""
        self.disturbed(now)
        for entry in self._entries.values():
            entry.excused = entry.excused or bool(entry.lost)
            entry.lost, entry.unanswered = [], entry.lost + entry.unanswered

    # ------------------------------------------------------------------------------------ what it hears

    def hears(self, event: str, payload: dict[str, Any], now: float) -> None:
        """Anything but ``stream:ready``."""
        if self.completed and event != "error":
            self._violated(f"{event} after stream:complete")
        if self._due is not None and event != "backpressure":
            self._violated(f"backpressure {self._due} was due before {event}")
        self._due = None
        try:
            self._hear(event, payload, now)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            self._violated(f"{event} cannot be read: {error!r}: {payload}")

    def _hear(self, event: str, payload: dict[str, Any], now: float) -> None:
        match event:
            case "fragment:ack":
                self._on_acknowledgement(payload, now)
            case "fragment:processed":
                self._on_result(payload, now)
            case "error":
                self._on_error(payload, now)
            case "backpressure":
                self._on_backpressure(payload)
            case "stream:complete":
                self._on_complete(payload)
            case _:
                self._violated(f"unknown event {event}")

    def _on_acknowledgement(self, payload: dict[str, Any], now: float) -> None:
        """The answer to a fragment: in flight from now on, or still in flight ("Order, retries, resume")."""
        fragment_id, place = payload["fragment_id"], payload["queue_position"]
        if place < 0 or payload["status"] != ("queued" if place else "processing"):
            self._violated(f"{fragment_id} is {payload['status']} at {place}")
        entry = self._entries.get(fragment_id)
        if entry is None or not entry.unanswered:
            self._violated(f"{fragment_id} was acknowledged, and nobody had sent it")
            return
        saying = self._answered(entry)
        if not saying.valid and not entry.excused:
            self._violated(f"{fragment_id} was acknowledged, and is not valid")
        if entry.owed:
            return  # sent again while in flight
        if saying.order > self._paused_at:
            self._violated(f"{fragment_id} was acknowledged while paused")
        if saying.order > self._active_at:
            self._may_be_paused = False
        if entry.results and not entry.may_retry:
            self._violated(f"{fragment_id} is processed again, and had its result")
        if not self._has_accepted and not self._losses:
            self._told_until = entry.number - 1  # the first accepted fragment sets where the stream starts
        self._has_accepted = True
        entry.owed, entry.doubtful, entry.refused = True, False, False
        entry.acknowledged_at, entry.accepted_after = now, self._losses
        self._expect(entry, place)
        if not self._losses and len(self.owes) > self.terms.critical:
            self._violated(f"{len(self.owes)} are in flight")
        self._watch_level()

    def _expect(self, entry: _Entry, place: int) -> None:
        """When its result is due at the latest: after those before it in the queue, and those of lower numbers."""
        turn_s, most = self.terms.timeout_s + TIMEOUT_GRACE_S, self.terms.max_inflight
        entry.due_at = entry.acknowledged_at + (1 + math.ceil(place / most)) * turn_s
        if entry.number <= self._last_number:
            return  # it waits for no other number
        others = [e for e in self._entries.values() if e.owed and e is not entry and e.number > self._last_number]
        below = [other for other in others if other.number < entry.number]
        entry.due_at = max([entry.due_at, *(other.due_at for other in below)])
        if len({other.number for other in below}) < entry.number - self._last_number - 1:
            entry.due_at += self.terms.gap_timeout_s
        for other in others:
            if other.number > entry.number:  # it is overtaken
                other.due_at = max(other.due_at + turn_s, entry.due_at)

    def _on_result(self, payload: dict[str, Any], now: float) -> None:
        """Exactly one for each accepted fragment, after its acknowledgement, in order ("Order, retries, resume")."""
        fragment_id = payload["fragment_id"]
        entry = self._entries.get(fragment_id)
        if entry is None:
            self._violated(f"a result of {fragment_id}, which was never sent")
            return
        digest = hashlib.sha256(orjson.dumps(payload, bytes.hex, orjson.OPT_SORT_KEYS)).digest()
        is_known = bool(entry.results) and entry.results[-1] == digest
        if is_known and fragment_id in self._replay:
            del self._replay[fragment_id]
            self._must_come_again.discard(fragment_id)
            entry.doubtful = entry.owed  # a retry may have failed in just the same way
            self._replayed_bytes += self.terms.slot_bytes
            if self._replayed_bytes > self.terms.kept_bytes:
                self._violated(f"{self._replayed_bytes} bytes came again, over what is kept")
            return
        if is_known and entry.unanswered and not entry.owed:
            self._answered(entry)
            if entry.may_retry and not entry.excused:
                self._violated(f"{fragment_id} may be processed again, and was answered with its failure")
            return
        if not (entry.owed or entry.maybe):
            problem = "before its acknowledgement" if not entry.results else "a second time"
            self._violated(f"the result of {fragment_id} came {problem}")
            return
        if entry.owed and entry.acknowledged_at >= self.smooth_since:
            waited_s = now - entry.acknowledged_at
            if now > entry.due_at + self.terms.slack_s:
                self._violated(f"the result of {fragment_id} came after {waited_s:.2f} s")
        is_first = not entry.results
        if entry.maybe > 1:  # a failure, and it was sent again: another one may come
            entry.maybe -= 1
            entry.doubtful = entry.owed
        else:
            entry.owed, entry.maybe = False, 0
        entry.refused = False
        entry.results.append(digest)
        entry.told = entry.was_acknowledged = False
        entry.saying.clear()
        entry.late = bool(payload["metadata"].get("late"))
        error = payload.get("error")
        entry.may_retry = error is not None and error["retryable"]
        entry.may_be_late = entry.may_be_late or entry.may_retry
        if is_first:
            self.first_results += 1
            self.statuses[payload["status"]] = self.statuses.get(payload["status"], 0) + 1
        if not entry.late:
            if entry.number <= self._last_number:
                self._violated(f"result {entry.number} came after {self._last_number}")
            self._check_no_number_is_missing(entry)
            self._last_number = entry.number
        elif not entry.may_be_late:
            self._violated(f"{fragment_id} is late, and was neither refused nor had it failed")
        self._watch_level()
        self.violations += self.terms.faults(payload, entry.number, entry.metadata, draining=self.draining)

    def _check_no_number_is_missing(self, entry: _Entry) -> None:
        """What is passed over was refused, or given up as a gap, which is said ("Order, retries, resume")."""
        if self._told_until is not None and not self.draining:
            accounted = self._given_up | {e.number for e in self._entries.values() if e.may_be_late or e.owed}
            if missing := set(range(self._told_until + 1, entry.number)) - accounted:
                self._violated(f"the result of {entry.number} came, and nothing was said of {sorted(missing)}")
        if self._told_until is not None or entry.accepted_after == self._losses:
            self._told_until = entry.number

    def _on_error(self, payload: dict[str, Any], now: float) -> None:
        code = ErrorCode(payload["code"])
        if code is ErrorCode.SEQUENCE_GAP:
            self._on_gap(payload, now)
            return
        fragment_id = payload.get("fragment_id")
        if fragment_id is not None:
            self._on_refusal(fragment_id, code)
        elif code is ErrorCode.INTERNAL_ERROR:
            self._violated(f"{code}: {payload['message']}")

    def _on_refusal(self, fragment_id: str, code: ErrorCode) -> None:
        """Every refused fragment is named, and refused for a reason ("Errors", "Flow control")."""
        entry = self._entries.get(fragment_id)
        if entry is None or not entry.unanswered:
            self._violated(f"{code} for {fragment_id}, which nobody had sent")
            return
        saying = self._answered(entry)
        entry.refused = True
        entry.passed_over = entry.may_be_late = code is not ErrorCode.INVALID_SEQUENCE
        in_flight = sum(1 for other in self._entries.values() if other.owed or other.maybe)
        unjust = {
            ErrorCode.INVALID_FRAGMENT: saying.valid and not entry.excused,
            ErrorCode.BACKPRESSURE_EXCEEDED: in_flight < (1 if self.terms.buffer_may_be_full else self.terms.critical),
            ErrorCode.STREAM_PAUSED: not self._may_be_paused,
            ErrorCode.STREAM_NOT_FOUND: not self.ended and not self.draining,
            ErrorCode.TEMPORARY_UNAVAILABLE: not self.draining,
            ErrorCode.INVALID_SEQUENCE: self._is_fresh(entry),
        }.get(code, True)
        if unjust:
            self._violated(f"{fragment_id} was refused: {code}")
        if entry.owed and saying.valid and entry.acknowledged_at >= self.smooth_since and not self.draining:
            self._violated(f"{fragment_id} was refused, and is in flight: {code}")

    def _is_fresh(self, entry: _Entry) -> bool:
        """Its number is the highest so far, nobody else's, and it has not been processed."""
        alone = len(self._by_number[entry.number]) == 1
        forgotten = entry.owed and not self._keeps_all  # its result was lost, and there was no room to keep it
        return alone and entry.number >= self._highest_sent and not (entry.results or entry.maybe or forgotten)

    def _on_gap(self, payload: dict[str, Any], now: float) -> None:
        """A gap is given up after `gap_timeout_s` of waiting, and names what nobody sent ("Order, retries, resume")."""
        missing = set(payload["metadata"]["missing"])
        self._given_up |= missing
        for entry in self._entries.values():
            if entry.number in missing and (entry.owed or entry.results) and not entry.late:
                self._violated(f"{entry.number} was given up as missing, and had been accepted")
            if entry.number in missing and entry.passed_over:
                self._violated(f"{entry.number} was waited for, and had been refused")
        if self.ended or self.draining:
            return
        if any(entry.maybe for entry in self._entries.values()):
            return
        behind = [e.acknowledged_at for e in self._entries.values() if e.owed and e.number > max(missing)]
        earliest = min(behind, default=math.inf)
        if earliest >= self.smooth_since and now - earliest < self.terms.gap_timeout_s - self.terms.slack_s - 1e-6:
            self._violated(f"{sorted(missing)} were given up after {now - earliest:.3f} s")

    def _on_backpressure(self, payload: dict[str, Any]) -> None:
        """The table of "Flow control"."""
        severity, in_flight, most = payload["severity"], payload["current_inflight"], self.terms.max_inflight
        if _LEVELS.get(severity) != payload["action"]:
            self._violated(f"backpressure {severity} with {payload['action']}")
        if severity == self._level and not self._level_may_repeat:
            self._violated(f"backpressure {severity} twice")
        fits = {
            "high": in_flight >= most if self._level_may_repeat else in_flight > 2 * most,
            "medium": in_flight >= most if self._level_may_repeat else most < in_flight,
            "low": in_flight <= most if self._level_may_repeat else in_flight < most,
        }.get(severity, False)
        if not fits or in_flight > self.terms.critical:
            self._violated(f"backpressure {severity} with {in_flight} in flight")
        self._level, self._level_may_repeat = severity, False

    def _watch_level(self) -> None:
        """How many are in flight has changed: where that is known, so is what must be told next."""
        entries = self._entries.values()
        if any(
            entry.maybe or entry.doubtful or (entry.owed and entry.accepted_after < self._losses) for entry in entries
        ):
            return
        in_flight, most = len(self.owes), self.terms.max_inflight
        due = self._level
        if in_flight > 2 * most:
            due = "high"
        elif in_flight > most and self._level == "low":
            due = "medium"
        elif in_flight < most:
            due = "low"
        self._due = due if due != self._level else None

    def _on_complete(self, payload: dict[str, Any]) -> None:
        """It comes when everything has its result, and counts first results ("Server to worker")."""
        self.completed = True
        if not (self.ended or self.draining):
            self._violated("completed, and nobody had asked for it")
        self.check_nothing_owed()
        if self._keeps_all and not any(entry.maybe for entry in self._entries.values()):
            if payload["total_fragments"] != self.first_results:
                self._violated(f"total_fragments {payload['total_fragments']}, results heard {self.first_results}")
            for status in ("success", "partial", "failed"):
                if payload[f"{status}_count"] != self.statuses.get(status, 0):
                    self._violated(f"{status}_count {payload[f'{status}_count']}, heard {self.statuses}")

    # ------------------------------------------------------------------------------------ at the end

    @property
    def owes(self) -> list[str]:
        """Fragments whose result has surely not been heard."""
        return [fragment_id for fragment_id, entry in self._entries.items() if entry.owed and not entry.doubtful]

    @property
    def next_number(self) -> int:
        """The first number without a result, for a resume."""
        waiting = [e.number for e in self._entries.values() if not e.results and (e.owed or e.maybe)]
        return min(waiting, default=self._last_number + 1)

    def check_nothing_owed(self) -> None:
        """To be called when everything should have come, over a connection that stands."""
        if self._keeps_all or not self._losses:
            for fragment_id in self.owes:
                self._violated(f"{fragment_id} was accepted and has no result")
        if self._keeps_all:
            for fragment_id in self._must_come_again:
                self._violated(f"{fragment_id} was never acknowledged, and its result did not come again")
        for fragment_id, entry in self._entries.items():
            # A draining server completes the stream while a fragment is still on its way to it.
            if entry.unanswered and not (entry.excused or self.draining):
                self._violated(f"{fragment_id} was sent and got no answer")

    def retryable(self) -> list[tuple[str, int]]:
        """Fragments that may be sent again: refused, or failed for now."""
        return [
            (fragment_id, entry.number)
            for fragment_id, entry in self._entries.items()
            if not entry.owed and (entry.refused or (entry.results and entry.may_retry))
        ]

    # ------------------------------------------------------------------------------------ inside

    @property
    def _keeps_all(self) -> bool:
        """Whether no result can have been forgotten before it was heard."""
        return self.terms.kept_bytes >= len(self._entries) * (self.terms.slot_bytes + RESULT_OVERHEAD_BYTES)

    def _answered(self, entry: _Entry) -> _Saying:
        """The oldest question about `entry` has its answer; so what was said before it has arrived."""
        saying = entry.unanswered.pop(0)
        for other in self._entries.values():
            if other.saying and other.saying[0] < saying.order:
                other.told = True
        return saying

    def _violated(self, rule: str) -> None:
        self.violations.append(rule)
