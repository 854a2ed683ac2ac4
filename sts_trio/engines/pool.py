"""The pools: where requests of all streams meet the instances of a model, and the only place that offloads.

One task per slot owns one instance and is its only caller. A slot takes what `FairQueue` says is next, as many at a
time as the engine can batch. The rules of giving up:

* A caller stops waiting when its own cancel scope says so: its deadline passed, or its stream is gone.
* What nobody waits for any more and has not started is dropped at once.
* What has started is cancelled when the last caller of its batch has left. The slot is free again when the call has
  really ended, never before: a model is never called twice at the same time, and no thread is ever abandoned.
* What was cancelled and does not end is *hung*, and so is its slot, until the call ends after all. The pool says so and
  goes on with its other slots; where it has none left it refuses what comes and what waits. A hung slot is not
  replaced: nothing takes back its thread, the core that this may keep busy, or a GPU's memory, but a new process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

import structlog
import trio
from attrs import define, field

from protocol.errors import ErrorCode

from ..groups import innermost
from ..observe.metrics import Metrics
from ..offload import Offload
from .base import Engine, EngineFailure, EngineLost, Instance
from .fairness import FairQueue

Req = TypeVar("Req")
Res = TypeVar("Res")

log = structlog.get_logger(__name__)

HUNG_AFTER_S: Final = 5.0
"""How long a call may take to end after it was cancelled. The longest step between two looks at whether it was is a
window of Whisper: less than a fragment lasts, where the model keeps up with live streams, and part of it is over by
then. A minute of m4a takes half a second, killing child processes hardly any time."""


class EngineDefect(Exception):
    """An engine raised what is no `EngineFailure`: a defect of ours or of its library, not of the request."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.error = error


@define(eq=False)
class _Call:
    """One running call: cancelled when nobody waits for any part of it."""

    scope: trio.CancelScope
    waiting: int
    ended: trio.Event = field(factory=trio.Event)
    cancelled_at: float = math.inf
    is_hung: bool = False


@define(eq=False)
class _Ticket(Generic[Req, Res]):
    """One request and the place where its outcome is left."""

    request: Req
    stream: str
    queued_at: float
    deadline: float
    settled: trio.Event = field(factory=trio.Event)
    outcome: Res | EngineFailure | EngineDefect | None = None
    call: _Call | None = None


class Pool(Generic[Req, Res]):
    """The slots of one engine.

    Args:
        label: name of the pool in metrics and logs.
        slots: how many instances are opened.
        max_waiting: how many requests may wait; more are refused as `TEMPORARY_UNAVAILABLE`.

    Attributes:
        hung_slots: how many slots are held by a call that was cancelled and does not end.
        open_slots: how many slots have begun and not ended: an instance is loaded, called or released.
        lost: set when an instance cannot be loaded, or raises `EngineLost`: `run` raises that no sooner than its last
            slot has ended, and one may hang.
    """

    def __init__(
        self,
        label: str,
        engine: Engine[Req, Res],
        *,
        slots: int,
        max_waiting: int,
        offload: Offload,
        metrics: Metrics,
    ) -> None:
        self.label = label
        self.slots = slots
        self.hung_slots = 0
        self.open_slots = 0
        self.lost = trio.Event()
        self._engine = engine
        self._max_waiting = max_waiting
        self._offload = offload
        # The series of this pool exist from the start, so that a first increase can be seen.
        self._busy_slots = metrics.pool_busy_slots.labels(label)
        self._batch_size = metrics.pool_batch_size.labels(label)
        self._queue_wait_seconds = metrics.pool_queue_wait_seconds.labels(label)
        self._abandoned_calls = metrics.pool_abandoned_calls_total.labels(label)
        self._hung_calls = metrics.pool_hung_calls_total.labels(label)
        metrics.pool_hung_slots.labels(label).set_function(lambda: self.hung_slots)
        self._queue: FairQueue[_Ticket[Req, Res]] = FairQueue()
        self._idle_slots = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None  # of the slots, and of the watch over each call that was cancelled

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the instances side by side, report when all are warm, serve until cancelled.

        Raises:
            EngineUnavailable: an instance cannot be loaded.
            EngineLost: the server cannot go on; see `lost`.
        """
        async with trio.open_nursery() as self._nursery:
            async with trio.open_nursery() as loading:
                for _ in range(self.slots):
                    loading.start_soon(self._nursery.start, self._slot)
            task_status.started()

    async def submit(self, request: Req, *, stream: str) -> Res:
        """Wait for a free slot and for the answer, until the caller's own cancel scope ends the wait.

        The caller's deadline (`trio.current_effective_deadline`) is also its priority among its stream's requests, and
        must not become later while it waits: the call knows the one there was.

        Raises:
            EngineFailure: what the engine answered; `TEMPORARY_UNAVAILABLE` where too many requests wait, or every
                slot hangs.
            EngineDefect: the engine raised something that it never should.
        """
        if self._is_dead:
            raise self._dead()
        if len(self._queue) >= self._max_waiting:
            raise EngineFailure(ErrorCode.TEMPORARY_UNAVAILABLE, f"{self.label}: too many requests are waiting")
        deadline = trio.current_effective_deadline()
        ticket: _Ticket[Req, Res] = _Ticket(request, stream, queued_at=trio.current_time(), deadline=deadline)
        self._queue.push(stream, deadline, ticket)
        self._idle_slots.unpark()
        try:
            await ticket.settled.wait()
        finally:
            if not ticket.settled.is_set():
                self._give_up(ticket)
        if isinstance(ticket.outcome, EngineFailure):
            raise EngineFailure(ticket.outcome.code, str(ticket.outcome))  # a batch may share one failure
        if isinstance(ticket.outcome, EngineDefect):
            raise EngineDefect(ticket.outcome.error) from ticket.outcome.error
        assert ticket.outcome is not None
        return ticket.outcome

    def _give_up(self, ticket: _Ticket[Req, Res]) -> None:
        if ticket.call is None:
            self._queue.discard(ticket.stream, ticket)
            return
        ticket.call.waiting -= 1
        if ticket.call.waiting == 0:
            self._abandoned_calls.inc()
            ticket.call.scope.cancel()
            if not ticket.call.ended.is_set():
                assert self._nursery is not None
                self._nursery.start_soon(self._watch, ticket.call)

    # ---------------------------------------------------------------- calls that do not end

    @property
    def _is_dead(self) -> bool:
        return self.hung_slots == self.slots

    def _dead(self) -> EngineFailure:
        return EngineFailure(ErrorCode.TEMPORARY_UNAVAILABLE, f"{self.label}: every slot hangs in a call")

    async def _watch(self, call: _Call) -> None:
        """Tell of a cancelled call that does not end. That it has ended after all is told by who called."""
        call.cancelled_at = trio.current_time()
        with trio.move_on_after(HUNG_AFTER_S):
            await call.ended.wait()
        if call.ended.is_set():
            return
        call.is_hung = True
        self.hung_slots += 1
        self._hung_calls.inc()
        self._tell(logging.ERROR, "slot_hung", HUNG_AFTER_S)
        while self._is_dead and self._queue:  # its wait would be in vain
            ticket = self._queue.pop()
            ticket.outcome = self._dead()
            ticket.settled.set()

    def _end(self, call: _Call) -> None:
        call.ended.set()
        if call.is_hung:
            self.hung_slots -= 1
            self._tell(logging.WARNING, "slot_recovered", round(trio.current_time() - call.cancelled_at, 1))

    def _tell(self, level: int, event: str, after_s: float) -> None:
        told = {"pool": self.label, "engine": self._engine.name, "hung": self.hung_slots, "slots": self.slots}
        log.log(level, event, after_s=after_s, **told)

    # ---------------------------------------------------------------- slots

    async def _slot(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.open_slots += 1
        try:
            async with self._engine.open(self._offload) as instance:
                task_status.started()
                while True:
                    batch = await self._next_batch()
                    with self._busy_slots.track_inprogress():
                        await self._answer(instance, batch)
                    del batch  # a minute of audio can be large, and the next request be long in coming
        except Exception as error:  # what no request is to blame for
            self._lose(error)
            raise
        finally:
            self.open_slots -= 1

    def _lose(self, error: Exception) -> None:
        """The pool cannot go on: the first reason is told at once, since who hangs may keep `run` from raising it."""
        if self.lost.is_set():
            return
        log.critical("engine_lost", pool=self.label, engine=self._engine.name, reason=str(innermost(error)))
        self.lost.set()

    async def _next_batch(self) -> list[_Ticket[Req, Res]]:
        while not self._queue:
            await self._idle_slots.park()
        batch = [self._queue.pop() for _ in range(min(self._engine.max_batch, len(self._queue)))]
        self._batch_size.observe(len(batch))
        for ticket in batch:
            self._queue_wait_seconds.observe(trio.current_time() - ticket.queued_at)
        return batch

    async def _answer(self, instance: Instance[Req, Res], batch: Sequence[_Ticket[Req, Res]]) -> None:
        """Call the model and leave each outcome at its ticket, whatever happens.

        Raises:
            EngineLost: the server cannot go on.
        """
        outcomes: Sequence[Res | EngineFailure | EngineDefect] = ()
        # Its deadline ends no call that somebody waits for: it is theirs, and tells the engine of it.
        scope = trio.CancelScope(deadline=max(ticket.deadline for ticket in batch))
        call = _Call(scope, waiting=len(batch))
        for ticket in batch:
            ticket.call = call
        try:
            # The scope is inside: it takes its Cancelled out of a group, and what is left of that is a defect.
            with scope:
                outcomes = await instance([ticket.request for ticket in batch])
                if len(outcomes) != len(batch):
                    raise RuntimeError(f"{self._engine.name}: {len(outcomes)} answers to {len(batch)} requests")
        except EngineFailure as failure:
            # Its traceback leads back here, to the requests: such a ring stays in memory until Python looks for rings.
            outcomes = [failure.with_traceback(None)] * len(batch)
        except EngineLost as lost:
            self._lose(lost)
            raise
        except Exception as error:
            # A defect of an engine or its library costs this batch, not the slot and everybody behind it.
            outcomes = [EngineDefect(error)] * len(batch)
            if call.waiting == 0:
                log.exception("engine_defect", pool=self.label, engine=self._engine.name)
            if error.__traceback__ is not None:  # as above; whoever waits logs the engine's part of it
                error.__traceback__ = error.__traceback__.tb_next
        finally:
            self._end(call)
        if not outcomes:
            return  # cancelled: nobody waits for any of it
        for ticket, outcome in zip(batch, outcomes, strict=True):
            ticket.outcome = outcome
            ticket.settled.set()
