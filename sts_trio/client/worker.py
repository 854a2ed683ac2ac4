"""A well-behaved worker: sends fragments, takes results, and keeps its stream alive over bad connections.

Every fragment that was sent is in one of three places, and moves one way:

    outstanding  due (to be sent, now or later) or sent (the server has it)
    finished     its last result is here, nobody has taken it yet
    taken        whoever iterates has it; asking for the next one applies it

The rules: at most `max_inflight` fragments are anywhere at once, as the server said in ``stream:ready``, so that the
server never has to slow us down; if it does all the same, it is obeyed. What failed or was refused in a way that may
pass becomes due again, a bounded number of times. After a reconnection everything outstanding becomes due again: the
server knows fragments by their ids and processes none of them twice. An applied result is acknowledged. ``stream:end``
leaves when there is nothing in any of the three: a session that is lost after that has lost nothing but its counts.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import trio
from attrs import define, evolve, frozen

from protocol.dubbing import (
    Audio,
    Backpressure,
    ErrorEvent,
    FragmentData,
    FragmentError,
    FragmentProcessed,
    ResultAck,
    Resume,
    ServerEvent,
    StageTimings,
    StreamComplete,
    StreamConfig,
    StreamEnd,
    StreamInit,
    StreamReady,
)
from protocol.errors import ErrorCode, Stage

from .connection import Address, Connection, ConnectionLost, DubbingError, DubbingRefused, OpenStream, first_failure

PATIENCE_S: Final = 90.0
"""A server that says nothing for so long while it has fragments is lost: its own longest deadline is 30 s."""

MAX_RECONNECTS: Final = 5
"""In a row, without a result between them."""

MAX_ATTEMPTS: Final = 3
"""How often a fragment is processed before its failure counts."""

MAX_REFUSALS: Final = 20
"""How often a fragment is refused for now before that counts as its failure."""

_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 8.0

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class Stream:
    """What a worker asks for in ``stream:init``; see the contract for each."""

    config: StreamConfig
    stream_id: str
    worker_id: str = "sts-trio"
    max_inflight: int | None = None
    timeout_ms: int | None = None


@define
class _Fragment:
    data: FragmentData
    due: float | None  # when to send it; None: the server has it
    attempts: int = 1
    refusals: int = 0


@asynccontextmanager
async def open_worker(
    url: str, stream: Stream, *, token: str | None = None, open_stream: OpenStream | None = None
) -> AsyncIterator[Worker]:
    """A worker with its stream open; it leaves the server when the context ends.

    Args:
        url: of the server, such as ``http://localhost:8000``.
        token: what a server with `STS_API_KEY` wants to see.
        open_stream: what carries each connection; by default TCP to `url`.

    Raises:
        ServerUnreachable: there is no server at `url`.
        DubbingRefused: the server does not want this stream.
        ValueError: `url` is none.
    """
    worker = Worker(Address.parse(url), stream, token, open_stream)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(worker._run)
            yield worker
            if not worker._over:
                nursery.cancel_scope.cancel()  # else it is about to leave politely, in a bounded time
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:  # whoever uses the worker need not know that there is a nursery in it
            raise group.exceptions[0] from None
        raise


class Worker:
    """One stream, seen from the media side. Made by `open_worker`.

    One task calls `send` and at last `end`, another iterates over the worker: results come in order, except those of
    fragments that were tried again. Both raise the `DubbingError` that ended the stream, if one did.

    Attributes:
        ready: the server's answer to ``stream:init``, of the present connection.
        complete: the server's ``stream:complete``, once everything was dubbed; still None if only that was lost.
    """

    ready: StreamReady

    def __init__(self, address: Address, stream: Stream, token: str | None, open_stream: OpenStream | None) -> None:
        self.complete: StreamComplete | None = None
        self._address = address
        self._stream = stream
        self._token = token
        self._open_stream = open_stream
        self._session_id: str | None = None
        self._next_number = 0
        self._outstanding: dict[str, _Fragment] = {}
        self._finished: deque[FragmentProcessed] = deque()
        self._taken: str | None = None
        self._acks: deque[str] = deque()
        self._ending = False
        self._end_sent = False  # in this session: nothing is left to lose with it
        self._end_due = True  # on this connection
        self._over = False
        self._paused = False
        self._delay_s = 0.0  # between fragments, while the server asks for it
        self._not_before = -math.inf
        self._reconnects = 0
        self._failure: DubbingError | None = None
        self._changed = trio.lowlevel.ParkingLot()

    async def send(self, audio: Audio, metadata: dict[str, Any] | None = None) -> int:
        """Have the programme's next fragment dubbed; waits while `max_inflight` are on their way.

        Returns:
            Its sequence number.

        Raises:
            DubbingError: the stream has failed.
        """
        await trio.lowlevel.checkpoint()  # first: whoever is cancelled has sent nothing
        while self._inflight >= self.ready.max_inflight:
            self._check()
            await self._changed.park()
        self._check()
        number = self._next_number
        self._next_number += 1
        data = FragmentData(
            fragment_id=uuid.uuid4().hex,
            stream_id=self._stream.stream_id,
            sequence_number=number,
            timestamp=_unix_ms(),
            audio=audio,
            metadata=metadata,
        )
        self._outstanding[data.fragment_id] = _Fragment(data, due=trio.current_time())
        self._changed.unpark_all()
        return number

    def end(self) -> None:
        """There are no more fragments: iterating ends once all of them were dubbed."""
        self._ending = True
        self._changed.unpark_all()

    def __aiter__(self) -> Worker:
        return self

    async def __anext__(self) -> FragmentProcessed:
        await trio.lowlevel.checkpoint()  # first: whoever is cancelled has taken nothing
        if self._taken is not None:
            self._acks.append(self._taken)
            self._taken = None
            self._changed.unpark_all()
        while not self._finished:
            self._check()
            if self._over:
                raise StopAsyncIteration
            await self._changed.park()
        result = self._finished.popleft()
        self._taken = result.fragment_id
        return result

    @property
    def _inflight(self) -> int:
        return len(self._outstanding) + len(self._finished) + (self._taken is not None)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    # ------------------------------------------------------------------------------------ connections

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """One connection after the other, until the stream is complete or it is no use any more."""
        started = trio.Event()
        while not self._over:
            failure: DubbingError | None = None
            try:
                await self._converse(started, task_status)
            except* DubbingError as group:
                failure = first_failure(group)
            if failure is None or self._over:
                break
            if not started.is_set():
                raise failure
            if not failure.retryable or self._reconnects == MAX_RECONNECTS:
                if self._end_sent:
                    self._finish_without_counts(str(failure))
                    break
                self._failure = failure
                break
            log.warning("reconnecting", reason=str(failure))
            await trio.sleep(_backoff_s(self._reconnects))
            self._reconnects += 1
        self._changed.unpark_all()

    async def _converse(self, started: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        """One connection, from its opening until the stream is complete."""
        async with trio.open_nursery() as nursery:
            connection = Connection(
                self._address,
                token=self._token,
                headers={"X-Stream-ID": self._stream.stream_id, "X-Worker-ID": self._stream.worker_id},
                open_stream=self._open_stream,
            )
            await nursery.start(connection.run)
            await self._open(connection)
            if not started.is_set():
                started.set()
                task_status.started()
            if not self._over:
                nursery.start_soon(self._send_due, connection)
                await self._receive(connection)
            await connection.close()
            nursery.cancel_scope.cancel()

    async def _open(self, connection: Connection) -> None:
        """``stream:init`` to ``stream:ready``, taking up the session again if there was one."""
        await connection.send(self._init())
        with trio.move_on_after(PATIENCE_S):
            while True:
                event = await connection.receive()
                if isinstance(event, StreamReady):
                    break
                if isinstance(event, ErrorEvent) and event.fragment_id is None and event.code != ErrorCode.SEQUENCE_GAP:
                    if self._session_id is None:
                        raise DubbingRefused(event.code, event.message, retryable=event.retryable)
                    if self._end_sent:
                        self._finish_without_counts(event.message)
                        return
                    self._session_id = None  # the server has forgotten it: what is outstanding goes to a new one
                    await connection.send(self._init())
                else:
                    self._handle(event)
            self._take_up(event)
            return
        raise ConnectionLost(self._address.url, "no answer to stream:init")

    def _init(self) -> StreamInit:
        first = min(
            (fragment.data.sequence_number for fragment in self._outstanding.values()), default=self._next_number
        )
        return StreamInit(
            stream_id=self._stream.stream_id,
            worker_id=self._stream.worker_id,
            config=self._stream.config,
            max_inflight=self._stream.max_inflight,
            timeout_ms=self._stream.timeout_ms,
            resume=None if self._session_id is None else Resume(self._session_id, first),
        )

    def _take_up(self, ready: StreamReady) -> None:
        self.ready = ready
        fresh = ready.session_id != self._session_id
        self._session_id = ready.session_id
        self._end_sent = self._end_sent and not fresh
        self._end_due = True
        self._paused = False
        self._delay_s, self._not_before = 0.0, -math.inf
        now = trio.current_time()
        for fragment in self._outstanding.values():
            if fresh or fragment.due is None:  # a new session starts with the number it gets first, the lowest we have
                fragment.due = now
        self._changed.unpark_all()

    # --------------------------------------------------------------------------------------- sending

    async def _send_due(self, connection: Connection) -> None:
        while True:
            if self._acks:
                ack = ResultAck(self._acks[0], "applied", _unix_ms())
                await connection.send(ack)
                self._acks.popleft()
            elif (due := self._next_due()) is not None:
                now = trio.current_time()
                send_at = math.inf if self._paused else max(due[0], self._not_before)
                if send_at > now:
                    await self._change(send_at)
                    continue
                fragment = due[1]
                fragment.due = None
                self._not_before = now + self._delay_s
                await connection.send(self._carried(fragment.data))
            elif self._ending and not self._inflight and self._end_due:
                self._end_sent, self._end_due = True, False
                await connection.send(StreamEnd(self._stream.stream_id, "the programme ended"))
            else:
                await self._change(math.inf)

    def _next_due(self) -> tuple[float, _Fragment] | None:
        """When to send which fragment: of those that are due the first of the programme, else the one due first."""
        now = trio.current_time()
        due = [(max(f.due, now), f) for f in self._outstanding.values() if f.due is not None]
        return min(due, key=lambda entry: (entry[0], entry[1].data.sequence_number), default=None)

    def _carried(self, data: FragmentData) -> FragmentData:
        """As an attachment where the server takes those: a quarter less to send, and no base64."""
        return evolve(data, audio=evolve(data.audio, binary=self.ready.capabilities.get("binary_audio", False)))

    async def _change(self, deadline: float) -> None:
        with trio.move_on_at(deadline):
            await self._changed.park()

    # --------------------------------------------------------------------------------------- receiving

    async def _receive(self, connection: Connection) -> None:
        """Handle events until the stream is complete."""
        while not self._over:
            with trio.move_on_after(PATIENCE_S):
                self._handle(await connection.receive())
                continue
            if any(fragment.due is None for fragment in self._outstanding.values()) or self._paused or self._end_sent:
                raise ConnectionLost(self._address.url, f"the server has said nothing for {PATIENCE_S:.0f} s")

    def _handle(self, event: ServerEvent) -> None:
        match event:
            case FragmentProcessed():
                self._take_result(event)
            case Backpressure():
                self._paused = event.action == "pause"
                delay_s = min(event.recommended_delay_ms / 1000, _LONGEST_DELAY_S)
                self._delay_s = delay_s if event.action == "slow_down" else 0.0
                self._not_before = trio.current_time() + self._delay_s
            case ErrorEvent():
                self._take_error(event)
            case StreamComplete():
                if not self._end_sent:
                    raise ConnectionLost(self._address.url, "the server ended the stream early")
                self.complete = event
                self._over = True
        self._changed.unpark_all()

    def _take_result(self, result: FragmentProcessed) -> None:
        fragment = self._outstanding.get(result.fragment_id)
        if fragment is None:  # sent again after a reconnection: we have it, and say so
            if result.fragment_id != self._taken and all(result.fragment_id != f.fragment_id for f in self._finished):
                self._acks.append(result.fragment_id)
            return
        self._reconnects = 0
        number = fragment.data.sequence_number
        if result.sequence_number != number:  # the id says which fragment it is; its place in the programme is ours
            log.warning("wrong_sequence_number", sent=number, received=result.sequence_number)
            result = evolve(result, sequence_number=number)
        if result.status == "failed" and result.error is not None and result.error.retryable:
            if fragment.due is not None:  # the failure we know already, sent again
                return
            if fragment.attempts < MAX_ATTEMPTS:
                fragment.due = trio.current_time() + _backoff_s(fragment.attempts - 1)
                fragment.attempts += 1
                return
        self._finish(fragment, result)

    def _take_error(self, error: ErrorEvent) -> None:
        if error.code == ErrorCode.SEQUENCE_GAP:  # the only one that refuses nothing, whatever its severity
            log.warning("server_warning", code=error.code, message=error.message)
            return
        if error.code == ErrorCode.STREAM_NOT_FOUND and self._end_sent:
            self._finish_without_counts(error.message)
            return
        if error.code == ErrorCode.STREAM_NOT_FOUND:  # the server has lost it, or is shutting down
            self._session_id = None
            raise ConnectionLost(self._address.url, error.message)
        fragment = self._outstanding.get(error.fragment_id or "")
        if fragment is None and error.fragment_id is None:
            raise DubbingRefused(error.code, error.message, retryable=error.retryable)
        if fragment is None:  # refused again although its result is here already
            return
        if error.retryable and fragment.refusals < MAX_REFUSALS:
            fragment.due = trio.current_time() + max(self._delay_s, _backoff_s(fragment.refusals))
            fragment.refusals += 1
            return
        self._finish(fragment, _refused(fragment.data, error))

    def _finish_without_counts(self, reason: str) -> None:
        """The session is gone, and had no more to say than ``stream:complete``: every result is applied."""
        log.warning("completion_lost", reason=reason)
        self._over = True
        self._changed.unpark_all()

    def _finish(self, fragment: _Fragment, result: FragmentProcessed) -> None:
        del self._outstanding[fragment.data.fragment_id]
        self._finished.append(result)


def _refused(data: FragmentData, error: ErrorEvent) -> FragmentProcessed:
    """A refusal as a result: the fragment failed before the first stage."""
    return FragmentProcessed(
        fragment_id=data.fragment_id,
        stream_id=data.stream_id,
        sequence_number=data.sequence_number,
        status="failed",
        processing_time_ms=0,
        stage_timings=StageTimings(),
        error=FragmentError(error.code, error.message, Stage.DECODE, error.retryable),
        metadata={"original_duration_ms": data.audio.duration_ms},
    )


def _backoff_s(failures: int) -> float:
    """Doubling, with jitter: workers that lost the same server must not all return in the same moment."""
    longest: float = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**failures)
    return longest * random.uniform(0.5, 1.0)


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
