"""The life of one stream: what comes in, what is in flight, what goes out, and how it ends.

    initializing -> active <-> paused -> ending -> ended

A session is one task (`run`) and a few methods that its gateway calls when the worker says something. The methods
never wait: they decide, answer and leave the work to the task, so an acknowledgement leaves in the scheduler tick in
which the fragment came, however busy the engines are. All of the stream lives in the task's nursery and goes with it.

    fragment -> waiting, by number -> [token] -> pipeline -> emitter -> worker

A fragment holds one of the stream's `max_inflight` tokens while it is being processed: from the moment it leaves the
waiting queue until its result is finished. A finished result that waits for an earlier number holds none, or a worker
that sends 5, 6, 7 before 4 would deadlock its own stream. in_flight, from which backpressure follows, is what was
accepted and has not been emitted, wherever it is.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from enum import StrEnum

import trio
from attrs import frozen
from structlog.contextvars import bound_contextvars

from protocol.dubbing import (
    Backpressure,
    FragmentAck,
    FragmentData,
    ServerEvent,
    StreamInit,
    StreamReady,
)
from protocol.errors import ErrorCode, PayloadError

from ..config import Settings
from ..engines.suite import EngineSuite
from ..observe.metrics import Metrics
from .assets import Fragment
from .delivery import Delivery, Outlet
from .fallback import Fallback
from .flow import FlowControl, Level, default_critical
from .memory import StreamMemory
from .pipeline import Pipeline
from .reporting import Reporter
from .stages import Stages


class SessionState(StrEnum):
    INITIALIZING = "initializing"
    ACTIVE = "active"
    PAUSED = "paused"
    ENDING = "ending"
    ENDED = "ended"


@frozen
class Identity:
    """Where ids, secrets and wall-clock times come from; a simulation makes them from its seed."""

    new_id: Callable[[], str]
    new_secret: Callable[[], str]
    wall_ms: Callable[[], int]


class StreamSession:
    """One live stream.

    Args:
        init: the worker's ``stream:init``, already checked against what the engines can do.
        outlet: the connection it came over; see `attach`.
    """

    def __init__(
        self,
        init: StreamInit,
        *,
        settings: Settings,
        engines: EngineSuite,
        metrics: Metrics,
        identity: Identity,
        outlet: Outlet,
    ) -> None:
        self.stream_id = init.stream_id
        self.worker_id = init.worker_id
        self.session_id = identity.new_id()
        self.config = init.config
        self.max_inflight = init.max_inflight or settings.max_inflight
        self.timeout_s = (init.timeout_ms or settings.fragment_timeout_ms) / 1000
        self.state = SessionState.INITIALIZING

        self._settings = settings
        self._metrics = metrics
        self._identity = identity

        self._tokens = trio.CapacityLimiter(self.max_inflight)
        self._waiting: list[tuple[int, int, Fragment]] = []  # a heap, by place, then by arrival; see `_queue`
        self._arrivals = 0
        self._highest = 0  # of the numbers that were accepted
        self._something_to_feed = trio.Event()
        self._accepted: dict[str, Fragment] = {}  # in flight, by fragment_id
        critical = settings.backpressure_critical or default_critical(self.max_inflight)
        self._flow = FlowControl(self.max_inflight, max(critical, self.max_inflight))
        self._was_slowed = False  # its worker was told at least once to slow down
        self._memory = StreamMemory(settings.stream_buffer_bytes, self.max_inflight, self.config)
        self._scope = trio.CancelScope()
        self._grace = trio.CancelScope()  # not around the work: its deadline is nothing that a model should know
        self._fallback = Fallback(self.stream_id, self.config, settings.fallback_mode, engines.encode)
        self._stages = Stages(self.stream_id, self.config, engines, self._fallback)
        self._pipeline = Pipeline(self._stages, self.max_inflight, identity.new_id)
        gap_timeout_ms = settings.gap_timeout_ms
        self._delivery = Delivery(
            outlet,
            report=Reporter(self.stream_id, engines.models, metrics),
            delivered=self._forget,
            gap_timeout_s=self.timeout_s if gap_timeout_ms is None else gap_timeout_ms / 1000,
            kept_bytes=settings.result_buffer_bytes,
            new_id=identity.new_id,
        )

    # ---------------------------------------------------------------- what the worker says

    @property
    def in_flight(self) -> int:
        """Fragments accepted and not yet emitted (contract, "Flow control")."""
        return len(self._accepted)

    @property
    def held_bytes(self) -> int:
        """The most memory that what is in flight can come to take, kept silence included (`STREAM_BUFFER_BYTES`)."""
        return self._memory.held_bytes(self._fallback.longest_ms)

    def open(self) -> ServerEvent:
        """Take fragments from here on, and say so."""
        self.state = SessionState.ACTIVE
        return self._delivery.tell(self._ready())

    def _ready(self) -> StreamReady:
        return StreamReady(
            stream_id=self.stream_id,
            session_id=self.session_id,
            max_inflight=self.max_inflight,
            capabilities={
                "batch_processing": False,
                "async_delivery": True,
                "asr": True,
                "translation": True,
                "tts": True,
                "duration_matching": True,
                "binary_audio": True,
                "resume": True,
            },
        )

    def receive(self, data: FragmentData) -> ServerEvent:
        """Take a fragment; its acknowledgement was sent when this returns.

        Raises:
            PayloadError: it is refused. Whoever tells the worker also calls `pass_over`.
        """
        known = self._accepted.get(data.fragment_id)
        if known is not None:
            return self._delivery.tell(self._acknowledgement(known))
        kept = self._delivery.tell_again(data.fragment_id)
        if kept is not None:
            return kept
        fragment = self._admit(data)
        answer = self._delivery.tell(self._acknowledgement(fragment))
        self._something_to_feed.set()
        self._update_flow()
        return answer

    def pass_over(self, fragment_id: str, number: int) -> None:
        """A fragment was refused: its number holds nobody up any more, and it may be sent again."""
        if not self.is_gone:  # an abandoned stream has given everything its result
            self._delivery.pass_over(fragment_id, number)

    def acknowledge(self, fragment_id: str) -> None:
        """The worker has this result."""
        self._delivery.acknowledge(fragment_id)

    def pause(self) -> None:
        """Refuse fragments from here on; what is in flight completes."""
        if self.state is SessionState.ACTIVE:
            self.state = SessionState.PAUSED

    def resume(self) -> None:
        """End a pause."""
        if self.state is SessionState.PAUSED:
            self.state = SessionState.ACTIVE

    def end(self) -> None:
        """Take no more; complete what is in flight, then ``stream:complete``."""
        if self.state is not SessionState.ENDED:
            self.state = SessionState.ENDING
        self._something_to_feed.set()

    @property
    def is_gone(self) -> bool:
        """Whether it has completed, was cancelled, or its grace has passed: it takes nothing and nobody any more."""
        return self.state is SessionState.ENDED or self._scope.cancel_called or self._grace.cancel_called

    def abandon(self, code: ErrorCode, reason: str) -> None:
        """Give every accepted fragment its result now, where it has none yet a failure; then complete the stream.

        There is no time for encoding fallback audio any more: what is ready comes along. One that is gone stays so.
        """
        if self.is_gone:
            return
        for fragment in sorted(self._accepted.values(), key=lambda fragment: (fragment.late, fragment.number)):
            if math.isinf(fragment.finished_at):
                fragment.fail(fragment.stage, code, reason)
                self._stages.fall_back_at_once(fragment)
                fragment.finished_at = trio.current_time()
            self._delivery.deliver(fragment)
        self._delivery.hurry()
        self._delivery.complete()
        self.cancel()

    def cancel(self) -> None:
        """Drop everything at once, and say nothing more."""
        self._delivery.detach()
        self._scope.cancel()

    # ---------------------------------------------------------------- its connection

    def detach(self) -> None:
        """The connection is gone. The stream goes on for `RESUME_GRACE_S`, keeping its results."""
        self._delivery.detach()
        self._grace.deadline = trio.current_time() + self._settings.resume_grace_s

    def attach(self, outlet: Outlet, next_number: int | None) -> ServerEvent:
        """Go on over another connection: ready, then every unacknowledged result again, in order.

        Args:
            next_number: the first number the worker has no result of; what is below needs no repetition.
        """
        self._grace.deadline = math.inf
        self._delivery.attach(outlet)
        ready = self._delivery.tell(self._ready())
        if self._was_slowed:  # that it may go on again was perhaps said to nobody
            self._tell_level()
        self._delivery.replay(next_number)
        return ready

    # ---------------------------------------------------------------- admission

    def _admit(self, data: FragmentData) -> Fragment:
        if self.state is SessionState.PAUSED:
            raise PayloadError(ErrorCode.STREAM_PAUSED, "", "the stream is paused")
        if self.state is not SessionState.ACTIVE or self.is_gone:
            raise PayloadError(ErrorCode.STREAM_NOT_FOUND, "", "the stream is ending and takes no more fragments")
        if not self._flow.admits(self.in_flight):
            raise PayloadError(
                ErrorCode.BACKPRESSURE_EXCEEDED, "", f"{self.in_flight} fragments are in flight: send it again later"
            )
        if not self._memory.admits(data, self._fallback.longest_ms):
            held = f"{self.in_flight} fragments in flight may take {self.held_bytes} bytes (STREAM_BUFFER_BYTES)"
            raise PayloadError(ErrorCode.BACKPRESSURE_EXCEEDED, "", f"{held}: send it again later")
        turn = self._delivery.admit(data.fragment_id, data.sequence_number)
        fragment = Fragment(data, turn, accepted_at=trio.current_time())
        self._accepted[fragment.id] = fragment
        self._memory.add(data)
        self._queue(fragment)
        self._metrics.fragments_in_flight.inc()
        return fragment

    def _queue(self, fragment: Fragment) -> None:
        """Let `fragment` wait for a token behind lower numbers, or behind all that wait now where its own has passed.

        Else a worker that sends old ones again and again would never get the results of its new ones.
        """
        self._highest = max(self._highest, fragment.number)
        self._arrivals += 1
        heapq.heappush(self._waiting, (self._highest if fragment.late else fragment.number, self._arrivals, fragment))

    def _acknowledgement(self, fragment: Fragment) -> FragmentAck:
        own = next((entry for entry in self._waiting if entry[2] is fragment), None)
        lower = 0 if own is None else sum(entry < own for entry in self._waiting)
        # Counted by fragments, not by tokens: `_feed` may have taken one and not yet decided whose it is.
        processing = sum(1 for other in self._accepted.values() if other.is_processing)
        free = self.max_inflight - processing
        position = 0 if not math.isinf(fragment.started_at) else max(0, lower + 1 - free)
        rounds = 1 + math.ceil(position / self.max_inflight)
        return FragmentAck(
            fragment_id=fragment.id,
            status="queued" if position else "processing",
            timestamp=self._identity.wall_ms(),
            queue_position=position,
            estimated_completion_ms=self._typical_ms * rounds,
        )

    @property
    def _typical_ms(self) -> int:
        """What a fragment takes at present; its whole deadline where none is finished yet."""
        return self._delivery.statistics.typical_ms or round(self.timeout_s * 1000)

    def _update_flow(self) -> None:
        if self._flow.update(self.in_flight) is not None:
            self._tell_level()

    def _tell_level(self) -> None:
        """Tell the worker the present level; one that is away is told when it is back."""
        if not self._delivery.is_attached:
            return
        level = self._flow.level
        self._was_slowed = self._was_slowed or level is not Level.NORMAL
        excess = max(0, self.in_flight - self.max_inflight)
        self._metrics.backpressure_events_total.labels(level.severity).inc()
        self._delivery.tell(
            Backpressure(
                stream_id=self.stream_id,
                severity=level.severity,
                action=level.action,
                current_inflight=self.in_flight,
                max_inflight=self.max_inflight,
                queue_depth=len(self._waiting),
                recommended_delay_ms=0 if level is Level.NORMAL else self._typical_ms * excess // self.max_inflight,
                threshold_exceeded=level.threshold_exceeded,
            )
        )

    # ---------------------------------------------------------------- its task

    async def run(self) -> bool:
        """Live until `end` has completed everything, `cancel`, or the grace after a lost connection has passed.

        Returns:
            Whether everything was completed and the worker told so.
        """
        try:
            with self._scope, bound_contextvars(stream_id=self.stream_id):
                async with trio.open_nursery() as catching_up:
                    catching_up.start_soon(self._delivery.catch_up)
                    catching_up.start_soon(self._outlive)
                    await self._process()
                    await self._delivery.caught_up()
                    self._delivery.complete()
                    self.state = SessionState.ENDED
                    catching_up.cancel_scope.cancel()
            return not self._scope.cancelled_caught
        except Exception:
            self.abandon(ErrorCode.INTERNAL_ERROR, "the stream was lost to an internal error")
            raise
        finally:
            self.state = SessionState.ENDED
            self._metrics.fragments_in_flight.dec(len(self._accepted))
            self._accepted.clear()
            self._waiting.clear()
            self._memory.clear()

    async def _outlive(self) -> None:
        """End the stream where its worker does not come back in time."""
        with self._grace:
            await trio.sleep_forever()
        self.cancel()

    async def _process(self) -> None:
        """Carry every fragment from the waiting queue to its result, until `end` and nothing waits any more."""
        if not await self._something_waits():  # a worker that only opens streams shall cost nobody anything
            return
        async with trio.open_nursery() as nursery:
            feed_out, feed_in = trio.open_memory_channel[Fragment](0)
            done_out, done_in = trio.open_memory_channel[Fragment](self.max_inflight)
            nursery.start_soon(self._feed, feed_out)
            nursery.start_soon(self._pipeline.run, feed_in, done_out)
            nursery.start_soon(self._delivery.emit, done_in, self._finish)

    async def _something_waits(self) -> bool:
        """Wait for a fragment to wait for its token; False where none will."""
        while not self._waiting:
            if self.state is SessionState.ENDING:
                return False
            self._something_to_feed = trio.Event()
            await self._something_to_feed.wait()
        return True

    async def _feed(self, outlet: trio.MemorySendChannel[Fragment]) -> None:
        """Give waiting fragments a token each, lowest number first, and start their deadlines."""
        async with outlet:
            while await self._something_waits():
                token = object()
                await self._tokens.acquire_on_behalf_of(token)
                # Only now is it decided whose token it is: a lower number may have come while it was waited for.
                _, _, fragment = heapq.heappop(self._waiting)
                fragment.token = token
                fragment.started_at = trio.current_time()
                fragment.deadline = fragment.started_at + self.timeout_s
                await outlet.send(fragment)

    def _finish(self, fragment: Fragment) -> None:
        self._tokens.release_on_behalf_of(fragment.token)
        if fragment.id in self._accepted:  # else it was abandoned in this very tick
            fragment.finished_at = trio.current_time()
            self._delivery.finish(fragment)

    def _forget(self, fragment: Fragment) -> None:
        """Its result has left."""
        del self._accepted[fragment.id]
        self._memory.remove(fragment.id)
        self._metrics.fragments_in_flight.dec()
        self._update_flow()
