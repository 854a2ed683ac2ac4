"""A worker of a scenario: it dubs one stream to its end, with its manners, through all its trouble."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import pybase64
import trio
from attrs import define, field, frozen

from protocol.errors import ErrorCode

from ...stream.flow import default_critical
from ..ledger import Ledger, Terms
from ..network import Line, Network
from ..payloads import fragment, stream_init
from ..worker import NotLetIn, WireWorker
from .scenario import SLOT_MS, Scenario, WorkerPlan
from .trace import Trace

ANSWER_S: Final = 60.0
"""For an answer that comes at once, over the slowest line with everything before it."""

STUCK_S: Final = 600.0
"""More than any stream needs to complete."""

RETRY_S: Final = 1.0
"""Between two attempts to connect, or to open a stream."""

AFTERMATH_S: Final = 20.0
"""So long after the network's trouble a lost connection is still its doing."""

FRESH_ENOUGH: Final = 20
"""Of what was sent, the last so many are sent again."""


@frozen
class _Attachment:
    """One connection of the worker."""

    wire: WireWorker
    line: Line


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
class Actor:
    """One worker.

    Attributes:
        ledgers: of the sessions it has had, the present one last.
        problems: what is wrong beside what the ledgers say.
    """

    plan: WorkerPlan
    scenario: Scenario
    network: Network
    trace: Trace
    counts: Counter[str]
    draining: trio.Event
    ledgers: list[Ledger] = field(factory=list, init=False)
    problems: list[str] = field(factory=list, init=False)
    _chance: random.Random = field(init=False)
    _nursery: trio.Nursery = field(init=False)
    _attachment: _Attachment | None = field(default=None, init=False)
    _before: WireWorker | None = field(default=None, init=False)  # the connection before, where it may be recovered
    _session_id: str = field(default="", init=False)  # of the session that may be resumed
    _question: _Question = field(factory=lambda: _Question(False, ready=True), init=False)
    _news: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)
    _number: int = field(default=0, init=False)
    _held_back: list[int] = field(factory=list, init=False)
    _sent: list[tuple[str, int]] = field(factory=list, init=False)
    _delay_s: float = field(default=0.0, init=False)  # as backpressure asks
    _lost_at: float = field(default=-math.inf, init=False)
    _trouble_from: float = field(default=-math.inf, init=False)
    _trouble_until: float = field(default=-math.inf, init=False)
    _is_served: bool = field(default=False, init=False)  # its stream is open over the connection that it has
    _loss_is_excused: bool = field(default=False, init=False)
    _has_deserted: bool = field(default=False, init=False)
    _was_there_at_drain: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(f"{self.scenario.seed} {self.plan.stream_id}")

    # ------------------------------------------------------------------------------------ its life

    async def run(self) -> None:
        """Dub the stream; returns when it is complete, or cannot be any more."""
        await trio.sleep(self.plan.start_s)
        self._number = self._chance.choice((0, 0, 7))
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._suffer)
            try:
                with trio.fail_after(self._longest_s):
                    await self._dub()
            except trio.TooSlowError:
                self.problems.append(f"stuck, without {self.ledger.owes[:3] if self.ledgers else 'a session'}")
            self._close()
            self._nursery.cancel_scope.cancel()
        is_due = self._was_there_at_drain if self.draining.is_set() else not self._has_deserted
        if self.ledgers and not self.ledger.completed and is_due and not self._loss_is_excused:
            self.problems.append("the stream was never completed")

    @property
    def _longest_s(self) -> float:
        plan = self.plan
        troubled_s = 0.0 if plan.trouble.every_s == math.inf else 100 * (1 + plan.pace_s * plan.fragments / 1)
        return STUCK_S + 20 * plan.pace_s * plan.fragments + troubled_s

    def hear_of_drain(self) -> None:
        """The server is about to be stopped. Whoever is there gets all that is owed; who is away can't come back."""
        self._was_there_at_drain = self._is_served and not self._is_lost

    async def _dub(self) -> None:
        plan = self.plan
        for _ in range(plan.fragments):
            if not await self._attached():
                return
            if self._chance.random() < plan.manners.deserts:
                self.counts["deserters"] += 1
                self._has_deserted = True
                return
            await self._turn()
            await trio.sleep(self._chance.choice((plan.pace_s, self._chance.expovariate(1 / plan.pace_s))))
            await trio.sleep(self._delay_s)
        while await self._attached():
            if not self.ledger.ended:
                self._note("ends", owed=len(self.ledger.owes))
            self.ledger.ends()
            self._emit("stream:end", {"stream_id": plan.stream_id})
            await self._until(lambda: self._is_over)

    async def _turn(self) -> None:
        chance, manners = self._chance, self.plan.manners
        if chance.random() < manners.rivals:
            await self._be_rivalled()
        if chance.random() < manners.pauses:
            await self._pause()
        if chance.random() < manners.restarts:
            self._is_served = await self._open(resume=False)
        elif chance.random() < manners.leaves:
            await self._leave()
        else:
            for _ in range(chance.randint(2, 12) if chance.random() < manners.bursts else 1):
                self._send_something()

    # ------------------------------------------------------------------------------------ what it sends

    def _send_something(self) -> None:
        chance, manners = self._chance, self.plan.manners
        if self._sent and chance.random() < manners.repeats:
            self.counts["repeats"] += 1
            self._send(*chance.choice(self._sent[-FRESH_ENOUGH:]))
        elif chance.random() < manners.retries and (again := self.ledger.retryable()):
            self.counts["retries"] += 1
            self._send(*chance.choice(again[-FRESH_ENOUGH:]))
        elif self._held_back and chance.random() < 0.5:
            self._send_new(self._held_back.pop())
        else:
            if chance.random() < manners.skips:
                self.counts["gaps"] += 1
                self._number += chance.choice((1, 1, 3))
            if chance.random() < manners.swaps:
                self._held_back.append(self._number)
                self._number += 1
            self._number += 1
            self._send_new(self._number - 1)

    def _send_new(self, number: int) -> None:
        self.counts["fragments"] += 1
        self._send(f"{self.plan.stream_id}-{number}", number)

    def _send(self, fragment_id: str, number: int) -> None:
        chance, manners = self._chance, self.plan.manners
        body = fragment(number, self.plan.stream_id, SLOT_MS, fragment_id=fragment_id)
        if self.plan.binary:
            body["audio"] = body["audio"] | {"data": pybase64.b64decode(body["audio"].pop("data_base64"))}
        is_valid = chance.random() >= manners.malformed
        if not is_valid:
            body["timestamp"] = chance.choice(("soon", -1, None, [1]))
        elif chance.random() < manners.undecodable:
            body["audio"] = body["audio"] | {"format": "m4a"}
        self._sent.append((fragment_id, number))
        if not self._is_lost:
            self.ledger.sends(fragment_id, number, valid=is_valid)
            self._emit("fragment:data", body, fragment_id=fragment_id, valid=is_valid)

    async def _pause(self) -> None:
        self.counts["pauses"] += 1
        self.ledger.pauses()
        self._emit("stream:pause", {"stream_id": self.plan.stream_id})
        self._send_something()
        await trio.sleep(self._chance.choice((0.0, 2.0)))
        if not self._is_lost:
            self.ledger.goes_on()
            self._emit("stream:resume", {"stream_id": self.plan.stream_id})

    def _emit(self, event: str, body: dict[str, Any], **noted: Any) -> bool:
        if self._attachment is None or not self._attachment.wire.emit(event, body):
            return False
        self._note(f"> {event}", **noted)
        return True

    # ------------------------------------------------------------------------------------ what it hears

    def _hear(self, wire: WireWorker, event: str, body: dict[str, Any]) -> None:
        if self._attachment is None or wire is not self._attachment.wire:
            return  # a connection that it has given up
        now = trio.current_time()
        self._note(f"< {event}", **_noted(event, body))
        self._news.unpark_all()
        if event == "stream:ready":
            self._begin(body, now)
            return
        if event == "error" and self._question.is_open and "fragment_id" not in body and body["code"] != "SEQUENCE_GAP":
            self._question.refusal = body
            return
        if not self.ledgers:
            self.problems.append(f"{event} before stream:ready")
            return
        self.ledger.draining = self.draining.is_set()
        self.ledger.hears(event, body, now)
        if event == "fragment:processed" and self._chance.random() < self.plan.manners.acknowledges:
            fragment_id = body["fragment_id"]
            if self._emit("fragment:ack", {"fragment_id": fragment_id, "status": "applied"}, fragment_id=fragment_id):
                self.ledger.acknowledges(fragment_id)
        elif event == "backpressure" and self.plan.manners.obeys:
            self._delay_s = body["recommended_delay_ms"] / 1000

    def _begin(self, body: dict[str, Any], now: float) -> None:
        """What comes from here on is of the session that ``stream:ready`` names."""
        question = self._question
        if not question.is_open:
            self.problems.append("stream:ready, and nobody had asked for it")
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
            self._sent.clear()
            self._held_back.clear()
            self._delay_s = 0.0

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
            slack_s=0.1 + 4 * plan.quality.latency_s + 1_000_000 / plan.quality.bytes_per_s,
        )

    # ------------------------------------------------------------------------------------ its connections

    @property
    def ledger(self) -> Ledger:
        return self.ledgers[-1]

    @property
    def _is_lost(self) -> bool:
        return self._attachment is None or self._attachment.wire.lost.is_set()

    @property
    def _is_over(self) -> bool:
        return self._is_lost or self.ledger.completed

    async def _attached(self) -> bool:
        """Have a connection with the stream open; False where it is complete, or the server takes nobody any more."""
        while True:
            if self.ledgers and self.ledger.completed:
                self.counts["completed"] += 1
                return False
            if not self._is_lost and self._is_served:
                return True
            if self._is_lost and self._attachment is not None:
                self._close()
                await trio.sleep(self._chance.choice(self.plan.trouble.away_s))
            if self.draining.is_set() and self._is_lost:
                return False
            self._is_served = await self._open(resume=self.plan.manners.resumes and self._session_id != "")
            if not self._is_served:
                await trio.sleep(RETRY_S)

    def _close(self) -> None:
        """The connection is of no use any more."""
        if self._attachment is None:
            return
        wire, self._attachment = self._attachment.wire, None
        self._is_served = False
        wire.vanish()
        self._before = wire if self._chance.random() < 0.7 else None
        if self.ledgers:
            self.ledger.loses_connection()
        self.counts["connections lost"] += 1
        self._note("is away")

    async def _open(self, *, resume: bool) -> bool:
        """Open the stream, or take it up again, over the connection that stands or a new one."""
        if self._is_lost and not await self._connect():
            return False
        assert self._attachment is not None
        if self._attachment.wire.recovered and resume and self._question.ready:
            return True  # all goes on as if nothing had been
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
            if self._chance.random() < 0.5:
                question.next_number = body["resume"]["next_sequence_number"] = self.ledger.next_number
        self._emit("stream:init", body, **body.get("resume", {}))
        with trio.move_on_after(ANSWER_S):
            await self._until(lambda: self._is_lost or not question.is_open)
        if question.is_open and not self._is_lost:
            self.problems.append("stream:init got no answer")
            self._attachment.wire.vanish()
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
        wire.on_recovery = lambda: self._recovered(wire)
        try:
            end, line = self.network.connect(self.plan.quality)
            self._attachment = _Attachment(wire, line)
            await self._nursery.start(self._carry, wire, end)
        except (NotLetIn, ConnectionRefusedError) as error:
            self._note("is not let in", why=str(error))
            if not (self.draining.is_set() or self._excused(trio.current_time())):
                self.problems.append(f"it was not let in: {error}")
            self._attachment = None
            return False
        self.counts["connections"] += 1
        return True

    async def _carry(self, wire: WireWorker, end: trio.abc.Stream, *, task_status: trio.TaskStatus[None]) -> None:
        await wire.run(end, task_status=task_status)
        now = trio.current_time()
        self._loss_is_excused = self._excused(now)
        if self._is_served:  # else the server still counts from the loss before
            self._lost_at = self._trouble_from if self._loss_is_excused else now  # since when it may know
        self._note("lost its connection")
        self._news.unpark_all()

    def _recovered(self, wire: WireWorker) -> None:
        self.counts["recoveries"] += 1
        self._note("is recovered")
        if self.ledgers:
            self.ledger.recovers(trio.current_time())

    async def _leave(self) -> None:
        """Hang up politely."""
        if self._attachment is not None:
            self.counts["farewells"] += 1
            self._trouble_from, self._trouble_until = trio.current_time(), math.inf
            self._attachment.wire.leave()
            await trio.sleep(4 * self.plan.quality.latency_s + 0.1)
            self._trouble_until = trio.current_time()
            self._close()

    async def _be_rivalled(self) -> None:
        """Another worker asks for the stream; while ours is there, it must not get it."""
        self.counts["rivals"] += 1
        answers, answered = list[str](), trio.Event()

        def hear(event: str, body: dict[str, Any]) -> None:
            answers.append(body.get("code", event))
            answered.set()

        wire = WireWorker(hear)
        try:
            end, _ = self.network.connect(self.plan.quality)
            await self._nursery.start(wire.run, end)
        except (NotLetIn, ConnectionRefusedError):
            return
        wire.emit("stream:init", stream_init(self.plan.stream_id, "rival"))
        with trio.move_on_after(ANSWER_S):
            await answered.wait()
        if "stream:ready" in answers:
            if not self._is_lost and not self._excused(trio.current_time()):
                self.problems.append("another worker has got the stream")
            wire.emit("stream:end", {"stream_id": self.plan.stream_id})
            await trio.sleep(10.0)
        wire.vanish()

    # ------------------------------------------------------------------------------------ its trouble

    async def _suffer(self) -> None:
        trouble = self.plan.trouble
        while trouble.every_s < math.inf:
            await trio.sleep(self._chance.expovariate(1 / trouble.every_s))
            if self._attachment is None or self._is_lost:
                continue
            kind = self._chance.choice(trouble.kinds)
            self.counts[kind] += 1
            self._note(f"! {kind}")
            self._trouble_from, self._trouble_until = trio.current_time(), math.inf
            await self._meet(kind, self._attachment)
            self._trouble_until = trio.current_time()
            if self.ledgers:
                self.ledger.disturbed(trio.current_time())

    async def _meet(self, kind: str, attachment: _Attachment) -> None:
        wire, line = attachment.wire, attachment.line
        match kind:
            case "cut":
                line.cut()
                await trio.lowlevel.checkpoint()
            case "kill":
                wire.vanish()
                await trio.lowlevel.checkpoint()
            case "stall":
                line.stall()
                await trio.sleep(self._chance.choice((0.5, 3.0, 20.0)))
                line.go_on()
            case "half_open":
                line.stall()
                await trio.sleep(self._chance.choice((1.0, 12.0, 50.0)))  # it notices before the server, or after
                wire.vanish()
            case "garbage":
                wire.send_garbage()
                await wire.lost.wait()  # it is not talked to any further
            case "slow":
                wire.stop_reading()
                await trio.sleep(self._chance.choice((1.0, 10.0, 50.0)))
                wire.go_on_reading()
            case _:
                raise ValueError(f"no such trouble: {kind}")

    def _excused(self, now: float) -> bool:
        """Whether the network can be to blame for a lost connection."""
        return now < self._trouble_until + AFTERMATH_S and self._trouble_from > -math.inf

    # ------------------------------------------------------------------------------------ small things

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._news.park()

    def _note(self, what: str, **details: Any) -> None:
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
