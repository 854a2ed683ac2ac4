"""What leaves a stream: events to its worker, and results in their order.

A finished fragment becomes a result when its turn comes (`order.py`). The result is told to the worker, kept until the
worker has acknowledged it (`results.py`), and told again over a new connection, no faster than that takes it. What is
said while nobody is there to hear it is lost; a result is kept.

**A defect in one result harms no other.** A result that cannot be made, or not be written for the wire, is told as a
failure, `INTERNAL_ERROR`; a defect in counting it is only logged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import structlog
import trio

from protocol.dubbing import ErrorEvent, FragmentError, FragmentProcessed, ServerEvent, Severity, StreamComplete
from protocol.errors import ErrorCode, Stage

from .assets import Fragment
from .order import ResultOrder, Turn
from .reporting import Reporter
from .results import ResultBuffer
from .statistics import StreamStatistics

log = structlog.get_logger(__name__)


class Outlet(Protocol):
    """The connection a stream is reached over."""

    def send(self, event: ServerEvent) -> None:
        """Hand an event to the connection. Never waits; a dead connection swallows it.

        Raises:
            ValueError: it cannot be written for the wire.
        """
        ...

    async def drained(self) -> None:
        """Wait until all that was handed over has been sent, or nothing will be sent any more."""
        ...


class Delivery:
    """The way out of one stream.

    Args:
        delivered: called for each fragment whose result has just left.
        gap_timeout_s: how long finished results wait for numbers that nobody sent.
        kept_bytes: budget for unacknowledged results.
        new_id: makes the ids of warnings.
    """

    def __init__(
        self,
        outlet: Outlet,
        *,
        report: Reporter,
        delivered: Callable[[Fragment], None],
        gap_timeout_s: float,
        kept_bytes: int,
        new_id: Callable[[], str],
    ) -> None:
        self.statistics = StreamStatistics()
        self._report = report
        self._delivered = delivered
        self._gap_timeout_s = gap_timeout_s
        self._new_id = new_id
        self._order: ResultOrder[Fragment] = ResultOrder()
        self._results = ResultBuffer(kept_bytes)
        self._outlet: Outlet | None = outlet
        self._unsent: dict[str, None] = {}  # ids of kept results that a new connection has yet to get, in order
        self._moved_on = trio.lowlevel.ParkingLot()  # waits for a new connection, or for it to have got them
        self._drain_wait = trio.CancelScope()  # for the connection there is: no other one waits for it
        self._gap_deadline = math.inf
        self._gap_wait = trio.CancelScope()

    # ---------------------------------------------------------------- the connection

    @property
    def is_attached(self) -> bool:
        """Whether anybody hears what is told."""
        return self._outlet is not None

    def tell(self, event: ServerEvent) -> ServerEvent:
        """Send `event`, where the worker is there; returns it."""
        if self._outlet is not None:
            self._outlet.send(event)
        return event

    def detach(self) -> None:
        """The connection is gone, or must hear nothing more."""
        self._outlet = None
        self._drain_wait.cancel()
        self._unsent.clear()

    def attach(self, outlet: Outlet) -> None:
        """Go on over another connection. Follow with `replay`."""
        self._outlet = outlet
        self._drain_wait.cancel()

    def replay(self, next_number: int | None) -> None:
        """Have every result sent again that the worker has not acknowledged.

        Args:
            next_number: the first number the worker has no result of; what is below need not be sent again.
        """
        if next_number is not None:
            self._results.forget_before(next_number)
        self._unsent = dict.fromkeys(result.fragment_id for result in self._results.unacknowledged())
        self._moved_on.unpark_all()

    # ---------------------------------------------------------------- fragments

    def admit(self, fragment_id: str, number: int) -> Turn:
        """Take a number in. See `ResultOrder.admit`, also for what it raises."""
        turn = self._order.admit(fragment_id, number)
        self._watch_gap()
        return turn

    def pass_over(self, fragment_id: str, number: int) -> None:
        """A fragment was refused: its number holds nobody up any more."""
        self._order.pass_over(fragment_id, number)
        self._emit_ready()

    def acknowledge(self, fragment_id: str) -> None:
        """The worker has this result."""
        self._results.forget(fragment_id)

    def tell_again(self, fragment_id: str) -> FragmentProcessed | None:
        """Send the kept result of a fragment that came again; None where it must be processed (again)."""
        kept = self._results.get(fragment_id)
        if kept is None or (kept.error is not None and kept.error.retryable):
            return None
        return kept if fragment_id in self._unsent else self._tell_kept(kept)

    def finish(self, fragment: Fragment) -> None:
        """A fragment is finished: its result leaves at once where it is late, else in its turn."""
        if fragment.late:
            self.deliver(fragment)
        else:
            self._order.finish(fragment.number, fragment)
        self._emit_ready()

    def deliver(self, fragment: Fragment) -> None:
        """Let a result leave now, whatever is wrong with it."""
        defect = self._attempt(self._send, fragment)
        if defect is not None:
            fragment.lose(defect)
            self._attempt(self._send_lost, fragment)
        self._attempt(self._count, fragment)
        self._delivered(fragment)

    def _attempt(self, step: Callable[[Fragment], None], fragment: Fragment) -> FragmentError | None:
        """Do `step`; the error that stands for its defect, where it has one."""
        try:
            step(fragment)
        except Exception:  # noqa: BLE001 - a defect of one fragment, logged; the others of its stream go on
            return self._defect(fragment.id, fragment.number)
        return None

    def _defect(self, fragment_id: str, number: int) -> FragmentError:
        """To be called where a defect is handled: it is logged with its traceback."""
        error_id, code = self._new_id(), ErrorCode.INTERNAL_ERROR
        log.exception("result_lost", fragment_id=fragment_id, sequence_number=number, error_id=error_id)
        return FragmentError(code, f"internal error {error_id}", Stage.ENCODE, code.retryable)

    def _send(self, fragment: Fragment) -> None:
        self._keep_and_tell(self._report.result(fragment))

    def _send_lost(self, fragment: Fragment) -> None:
        assert fragment.error is not None
        self._keep_and_tell(
            self._report.lost(fragment.id, fragment.number, fragment.slot_ms, fragment.late, fragment.error)
        )

    def _keep_and_tell(self, result: FragmentProcessed) -> None:
        self._results.keep(result)
        if self._unsent and self._results.get(result.fragment_id) is not None:
            self._unsent[result.fragment_id] = None  # behind those before it; where it is not kept, none of them is
        else:
            self.tell(result)

    def _count(self, fragment: Fragment) -> None:
        if fragment.error is not None and fragment.error.retryable:
            self._order.allow_retry(fragment.id, fragment.number)
        if fragment.turn is not Turn.AGAIN:
            self.statistics.add(fragment)
        self._report.record(fragment)

    def _tell_kept(self, result: FragmentProcessed) -> FragmentProcessed:
        """Tell a kept result, or a failure in its place; what was told."""
        try:
            self.tell(result)
        except Exception:  # noqa: BLE001 - as in `_attempt`
            error = self._defect(result.fragment_id, result.sequence_number)
            slot_ms, late = result.metadata.get("original_duration_ms", 0), "late" in result.metadata
            result = self._report.lost(result.fragment_id, result.sequence_number, slot_ms, late, error)
            self._results.replace(result)
            self._order.allow_retry(result.fragment_id, result.sequence_number)
            self.tell(result)
        return result

    def _tell_next(self) -> None:
        """Tell the next of the kept results that a new connection has yet to get."""
        fragment_id = next(iter(self._unsent))
        del self._unsent[fragment_id]
        if (result := self._results.get(fragment_id)) is not None:
            self._tell_kept(result)

    def hurry(self) -> None:
        """Give the worker at once what it has yet to get: nothing will wait for the connection any more."""
        while self._unsent:
            self._tell_next()

    def complete(self) -> None:
        """Say that everything was delivered."""
        summary = self.statistics.summary()
        self.tell(
            StreamComplete(
                stream_id=self._report.stream_id,
                total_fragments=self.statistics.total,
                total_duration_ms=self.statistics.total_duration_ms,
                statistics=summary,
                success_count=summary.success_count,
                partial_count=summary.partial_count,
                failed_count=summary.failed_count,
                avg_processing_time_ms=summary.avg_processing_time_ms,
                p95_processing_time_ms=summary.p95_processing_time_ms,
            )
        )

    def _emit_ready(self) -> None:
        for fragment in self._order.pop_ready():
            self.deliver(fragment)
        self._watch_gap()

    # ---------------------------------------------------------------- tasks

    async def emit(self, finished: trio.MemoryReceiveChannel[Fragment], finish: Callable[[Fragment], None]) -> None:
        """Call `finish` for each fragment of `finished`; wait for missing numbers no longer than the gap timeout."""
        while True:
            with trio.CancelScope(deadline=self._gap_deadline) as self._gap_wait:
                try:
                    fragment = await finished.receive()
                except trio.EndOfChannel:
                    break
                finish(fragment)
            # A new gap may have begun in the very moment in which the old one was closed.
            if self._gap_wait.cancelled_caught and trio.current_time() >= self._gap_deadline:
                self._give_up_gap()
        while self._order.gap():
            self._give_up_gap()  # nothing more can come

    def _watch_gap(self) -> None:
        """Let no finished result wait for missing numbers longer than the gap timeout, however many are missing."""
        waits = self._order.longest_parked if self._order.gap() else None
        self._gap_deadline = math.inf if waits is None else waits.finished_at + self._gap_timeout_s
        self._gap_wait.deadline = self._gap_deadline

    def _give_up_gap(self) -> None:
        missing = self._order.skip_gap()
        error = ErrorEvent(
            error_id=self._new_id(),
            code=ErrorCode.SEQUENCE_GAP,
            message=f"went on without sequence number {', '.join(map(str, missing[:5]))}"
            + (" and others" if len(missing) > 5 else ""),
            severity=Severity.WARNING,
            retryable=ErrorCode.SEQUENCE_GAP.retryable,
            stream_id=self._report.stream_id,
            metadata={"missing": missing},
        )
        log.warning("sequence_gap", missing=missing, error_id=error.error_id)
        self.tell(error)
        self._emit_ready()

    async def catch_up(self) -> None:
        """Give each new connection what the worker has not acknowledged, no faster than it takes it; runs for ever."""
        while True:
            while self._outlet is not None and self._unsent:
                outlet = self._outlet
                with trio.CancelScope() as self._drain_wait:
                    await outlet.drained()
                if outlet is self._outlet and self._unsent:  # the connection may have gone meanwhile
                    self._tell_next()
            self._moved_on.unpark_all()
            await self._moved_on.park()

    async def caught_up(self) -> None:
        """Wait until a worker is there and has been sent everything: it may be on its way back."""
        while self._outlet is None or self._unsent:
            await self._moved_on.park()
