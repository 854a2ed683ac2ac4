"""A worker's connections and sessions: it is there, it is lost, it comes back, and it hears.

All that it says and hears goes to the `Ledger` of its present session. What the ledger cannot know, such as whether a
session that is gone had its grace, is judged here, in `problems`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import trio
from attrs import define, field

from protocol.errors import ErrorCode

from ...stream.flow import default_critical
from ..ledger import Ledger
from ..network import Network
from ..payloads import stream_init
from ..terms import Terms
from ..worker import NotLetIn, WireWorker
from .scenario import SLOT_MS, Scenario, WorkerPlan
from .trace import VIOLATED, Trace
from .trouble import Attachment, Troubles

ANSWER_S: Final = 60.0
"""For an answer that comes at once, over the slowest line with everything before it."""

ENOUGH_BYTES: Final = 2**22
"""A buffer for all fragments that a stream may have in flight."""

BACKLOG_BYTES: Final = 300_000
"""What may be on its way before an answer, as a rule."""

RETRY_S: Final = 1.0
"""Between two attempts to connect, or to open a stream."""


@define
class _Question:
    """A ``stream:init`` that was sent, and its answer, once it is there."""

    resume: bool
    next_number: int | None = None
    refusal: dict[str, Any] | None = None
    ready: bool = False

    @property
    def is_open(self) -> bool:
        return not self.ready and self.refusal is None


@define(eq=False)
class Presence:
    """One worker, as the server sees it.

    Args:
        hear: called with each event that belongs to the session, after the ledger has seen it.
        begin: called when a new session has begun.

    Attributes:
        ledgers: of the sessions it has had, the present one last.
        problems: what is wrong beside what the ledgers say.
        is_served: its stream is open over the connection that it has.
    """

    plan: WorkerPlan
    scenario: Scenario
    network: Network
    trace: Trace
    counts: Counter[str]
    draining: trio.Event
    chance: random.Random
    hear: Callable[[str, dict[str, Any]], None]
    begin: Callable[[], None]
    ledgers: list[Ledger] = field(factory=list, init=False)
    problems: list[str] = field(factory=list, init=False)
    is_served: bool = field(default=False, init=False)
    troubles: Troubles = field(init=False)
    _nursery: trio.Nursery = field(init=False)
    _attachment: Attachment | None = field(default=None, init=False)
    _before: WireWorker | None = field(default=None, init=False)  # the connection before, where it may be recovered
    _session_id: str = field(default="", init=False)  # of the session that may be resumed
    _question: _Question = field(factory=lambda: _Question(False, ready=True), init=False)
    _news: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)
    _lost_at: float = field(default=-math.inf, init=False)  # since when the server may count its grace
    _loss_is_excused: bool = field(default=False, init=False)
    _was_there_at_drain: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.troubles = Troubles(self.plan.trouble, self.chance, self.counts)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own its connections, and what befalls them; for ever."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self.troubles.befall, lambda: self._attachment, self._trouble_ended)
            task_status.started()
            await trio.sleep_forever()

    def _trouble_ended(self, kind: str) -> None:
        self.note(f"! {kind} has ended")
        if self.ledgers:
            self.ledger.disturbed(trio.current_time())

    def hear_of_drain(self) -> None:
        """The server is about to be stopped. Whoever is there gets all that is owed; who is away can't come back."""
        self._was_there_at_drain = self.is_served and not self.is_lost

    def check_completed(self) -> None:
        """To be called at the end of one that did not leave its stream."""
        is_due = self._was_there_at_drain or not self.draining.is_set()
        if self.ledgers and not self.ledger.completed and is_due and not self._loss_is_excused:
            self.problems.append("the stream was never completed")

    # ------------------------------------------------------------------------------------ what it says and hears

    def emit(self, event: str, body: dict[str, Any], **noted: Any) -> bool:
        """Say something; False where nobody hears it."""
        if self._attachment is None or not self._attachment.wire.emit(event, body):
            return False
        self.note(f"> {event}", **noted)
        return True

    def _hear(self, wire: WireWorker, event: str, body: dict[str, Any]) -> None:
        if self._attachment is None or wire is not self._attachment.wire:
            return  # a connection that it has given up
        now = trio.current_time()
        self.note(f"< {event}", **_noted(event, body))
        self._news.unpark_all()
        if event == "stream:ready":
            self._begin_session(body, now)
            return
        if event == "error" and self._question.is_open and "fragment_id" not in body and body["code"] != "SEQUENCE_GAP":
            self._question.refusal = body
            return
        if not self.ledgers:
            self.problems.append(f"{event} before stream:ready")
            return
        self.ledger.draining = self.draining.is_set()
        known = len(self.ledger.violations)
        self.ledger.hears(event, body, now)
        for rule in self.ledger.violations[known:]:
            self.note(VIOLATED, rule=rule)
        self.hear(event, body)

    def _begin_session(self, body: dict[str, Any], now: float) -> None:
        """What comes from here on is of the session that ``stream:ready`` names."""
        question = self._question
        if not question.is_open:
            self.problems.append("stream:ready, and nobody had asked for it")
        if body["stream_id"] != self.plan.stream_id or body["max_inflight"] != self.plan.max_inflight:
            self.problems.append(f"stream:ready of something else: {body}")
        question.ready = True
        if question.resume:
            if body["session_id"] != self._session_id:
                self.problems.append("another session was resumed")
            self.counts["resumes"] += 1
            self.ledger.resumes(question.next_number, now)
        else:
            self.counts["sessions"] += 1
            self._session_id = body["session_id"]
            self.ledgers.append(Ledger(self.terms, smooth_since=now))
            self.begin()

    @property
    def terms(self) -> Terms:
        """What it and the server agree on."""
        plan, settings = self.plan, self.scenario.settings
        critical = settings.backpressure_critical or default_critical(plan.max_inflight)
        gap_ms = settings.gap_timeout_ms
        return Terms(
            max_inflight=plan.max_inflight,
            timeout_s=plan.timeout_s,
            critical=max(critical, plan.max_inflight),
            gap_timeout_s=plan.timeout_s if gap_ms is None else gap_ms / 1000,
            kept_bytes=settings.result_buffer_bytes,
            slot_ms=SLOT_MS,
            stream_id=plan.stream_id,
            buffer_may_be_full=settings.stream_buffer_bytes < ENOUGH_BYTES,
            slack_s=0.1 + 4 * plan.quality.latency_s + BACKLOG_BYTES / plan.quality.bytes_per_s,
        )

    # ------------------------------------------------------------------------------------ its connections

    @property
    def ledger(self) -> Ledger:
        return self.ledgers[-1]

    @property
    def is_lost(self) -> bool:
        return self._attachment is None or self._attachment.wire.lost.is_set()

    @property
    def is_over(self) -> bool:
        return self.is_lost or self.ledger.completed

    async def attached(self) -> bool:
        """Have a connection with the stream open; False where it is complete, or the server takes nobody any more."""
        while True:
            if self.ledgers and self.ledger.completed:
                self.counts["completed"] += 1
                return False
            if not self.is_lost and self.is_served:
                return True
            if self.is_lost and self._attachment is not None:
                self.close()
                await trio.sleep(self.chance.choice(self.plan.trouble.away_s))
            if self.draining.is_set() and self.is_lost:
                return False
            if not await self.open(resume=self.plan.manners.resumes and self._session_id != ""):
                await trio.sleep(RETRY_S)

    def close(self) -> None:
        """The connection is of no use any more."""
        if self._attachment is None:
            return
        wire, self._attachment = self._attachment.wire, None
        self.is_served = False
        wire.vanish()
        self._before = wire if self.chance.random() < 0.7 else None
        if self.ledgers:
            self.ledger.loses_connection()
        self.counts["connections lost"] += 1
        self.note("is away")

    async def open(self, *, resume: bool) -> bool:
        """Open the stream, or take it up again, over the connection there is or a new one; whether it `is_served`."""
        self.is_served = False
        if self.is_lost:
            self.close()
        if not self.is_lost or await self._connect():
            assert self._attachment is not None
            # Of a connection that was recovered all goes on as if nothing had been.
            goes_on = self._attachment.wire.recovered and resume and self._question.ready
            self.is_served = goes_on or await self._ask(self._attachment.wire, resume=resume)
        return self.is_served

    async def _ask(self, wire: WireWorker, *, resume: bool) -> bool:
        """Send ``stream:init``; whether the answer is ``stream:ready``."""
        terms = self.terms
        body = stream_init(
            self.plan.stream_id,
            f"worker-{self.plan.stream_id}",
            max_inflight=terms.max_inflight,
            timeout_ms=round(terms.timeout_s * 1000),
            chunk_duration_ms=SLOT_MS,
        )
        question = self._question = _Question(resume)
        if resume:
            body["resume"] = {"session_id": self._session_id}
            if self.chance.random() < 0.5:
                question.next_number = body["resume"]["next_sequence_number"] = self.ledger.next_number
                self.ledger.asks_to_resume(question.next_number)
        self.emit("stream:init", body, **body.get("resume", {}))
        with trio.move_on_after(ANSWER_S):
            await self.until(lambda: self.is_lost or not question.is_open)
        if question.is_open and not self.is_lost:
            self.problems.append("stream:init got no answer")
            wire.vanish()
        if question.refusal is not None:
            self._take_refusal(question.refusal, resume=resume)
        return question.ready

    def _take_refusal(self, refusal: dict[str, Any], *, resume: bool) -> None:
        code = ErrorCode(refusal["code"])
        self.counts[f"refused {code}"] += 1
        away_s = trio.current_time() - self._lost_at
        if resume and code is ErrorCode.STREAM_NOT_FOUND:
            self._session_id = ""
            is_early = away_s < self.scenario.settings.resume_grace_s
            if is_early and not self.draining.is_set() and not self.ledger.ended:
                self.problems.append(f"the session was gone after {away_s:.2f} s")
            elif self.ledger.ended:
                self.ledger.completed = True  # whatever it said, nobody was there any more
        elif code not in (ErrorCode.STREAM_EXISTS, ErrorCode.TEMPORARY_UNAVAILABLE, ErrorCode.TOO_MANY_STREAMS):
            self.problems.append(f"stream:init was refused: {refusal}")

    async def _connect(self) -> bool:
        before = self._before if self.scenario.settings.recovery_s else None
        wire = WireWorker(lambda event, body: self._hear(wire, event, body), recover=before)
        wire.on_recovery = self._recovered
        try:
            end, line = self.network.connect(self.plan.quality)
            self._attachment = Attachment(wire, line)
            await self._nursery.start(self._carry, wire, end)
        except (NotLetIn, ConnectionRefusedError) as error:
            self.note("is not let in", why=str(error))
            if not (self.draining.is_set() or self.troubles.excuse):
                self.problems.append(f"it was not let in: {error}")
            self._attachment = None
            return False
        self.counts["connections"] += 1
        return True

    async def _carry(self, wire: WireWorker, end: trio.abc.Stream, *, task_status: trio.TaskStatus[None]) -> None:
        await wire.run(end, task_status=task_status)
        self._loss_is_excused = self.troubles.excuse
        if self.is_served:  # else the server still counts from the loss before
            self._lost_at = self.troubles.since if self._loss_is_excused else trio.current_time()
        self.note("lost its connection")
        self._news.unpark_all()

    def _recovered(self) -> None:
        self.counts["recoveries"] += 1
        self.note("is recovered")
        if self.ledgers:
            self.ledger.recovers(trio.current_time())

    async def leave(self) -> None:
        """Hang up politely."""
        if self._attachment is not None:
            self.counts["farewells"] += 1
            self.troubles.begin()
            self._attachment.wire.leave()
            await trio.sleep(4 * self.plan.quality.latency_s + 0.1)
            self.troubles.end()
            self.close()

    # ------------------------------------------------------------------------------------ small things

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that was heard, or the connection's end, has made it true."""
        while not condition():
            await self._news.park()

    def note(self, what: str, **details: Any) -> None:
        """Put it into the trace."""
        self.trace.add(self.plan.stream_id, what, **details)


def _noted(event: str, body: dict[str, Any]) -> dict[str, Any]:
    """What is worth a place in the trace."""
    if event == "fragment:processed":
        noted = {key: body[key] for key in ("fragment_id", "sequence_number", "status", "processing_time_ms")}
        if "error" in body:
            noted |= {"code": body["error"]["code"], "stage": body["error"]["stage"]}
        return noted | ({"late": True} if body["metadata"].get("late") else {})
    return {
        key: body[key]
        for key in (
            "fragment_id",
            "session_id",
            "status",
            "code",
            "message",
            "severity",
            "current_inflight",
            "metadata",
        )
        if key in body
    } | ({"total": body["total_fragments"]} if "total_fragments" in body else {})
