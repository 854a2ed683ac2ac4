"""A well-behaved worker: sends fragments, takes results, and keeps its stream alive over bad connections.

At most `max_inflight` fragments are in its hands at once, as the server said in ``stream:ready``, so that the server
never has to slow us down; if it does all the same, it is obeyed. After a reconnection everything without a result is
sent again: the server knows fragments by their ids and processes none of them twice. ``stream:end`` leaves when every
result is applied: a session that is lost after that has lost nothing but its counts. What becomes of each fragment is
decided in `fragments`.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import trio
from attrs import evolve, frozen

from protocol.dubbing import (
    Audio,
    Backpressure,
    ErrorEvent,
    FragmentData,
    FragmentProcessed,
    ResultAck,
    Resume,
    ServerEvent,
    StreamComplete,
    StreamConfig,
    StreamEnd,
    StreamInit,
    StreamReady,
)
from protocol.errors import ErrorCode

from .connection import Address, Connection, ConnectionLost, DubbingError, DubbingRefused, OpenStream, first_failure
from .fragments import LONGEST_DELAY_S, Fragments, backoff_s

PATIENCE_S: Final = 90.0
"""A server that says nothing for so long while it has fragments is lost: its own longest deadline is 30 s."""

MAX_RECONNECTS: Final = 5
"""In a row, without a result between them."""

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class Stream:
    """What a worker asks for in ``stream:init``; see the contract for each."""

    config: StreamConfig
    stream_id: str
    worker_id: str = "sts-trio"
    max_inflight: int | None = None
    timeout_ms: int | None = None


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
        self._fragments = Fragments()
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
        while len(self._fragments) >= self.ready.max_inflight:
            self._check()
            await self._changed.park()
        self._check()
        number = self._fragments.next_number
        data = FragmentData(
            fragment_id=uuid.uuid4().hex,
            stream_id=self._stream.stream_id,
            sequence_number=number,
            timestamp=_unix_ms(),
            audio=audio,
            metadata=metadata,
        )
        self._fragments.add(data, trio.current_time())
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
        self._fragments.apply_taken()
        self._changed.unpark_all()
        while (result := self._fragments.take()) is None:
            self._check()
            if self._over:
                raise StopAsyncIteration
            await self._changed.park()
        return result

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
            await trio.sleep(backoff_s(self._reconnects))
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
        return StreamInit(
            stream_id=self._stream.stream_id,
            worker_id=self._stream.worker_id,
            config=self._stream.config,
            max_inflight=self._stream.max_inflight,
            timeout_ms=self._stream.timeout_ms,
            resume=None if self._session_id is None else Resume(self._session_id, self._fragments.first_number),
        )

    def _take_up(self, ready: StreamReady) -> None:
        self.ready = ready
        fresh = ready.session_id != self._session_id
        self._session_id = ready.session_id
        self._end_sent = self._end_sent and not fresh
        self._end_due = True
        self._paused = False
        self._delay_s, self._not_before = 0.0, -math.inf
        self._fragments.reconnected(trio.current_time(), new_session=fresh)
        self._changed.unpark_all()

    # --------------------------------------------------------------------------------------- sending

    async def _send_due(self, connection: Connection) -> None:
        while True:
            now = trio.current_time()
            if self._fragments.acks:
                ack = ResultAck(self._fragments.acks[0], "applied", _unix_ms())
                await connection.send(ack)
                self._fragments.acks.popleft()
            elif (due := self._fragments.next_due(now)) is not None:
                send_at = math.inf if self._paused else max(due[0], self._not_before)
                if send_at > now:
                    await self._change(send_at)
                    continue
                fragment = due[1]
                fragment.due = None
                self._not_before = now + self._delay_s
                await connection.send(self._carried(fragment.data))
            elif self._ending and not self._fragments and self._end_due:
                self._end_sent, self._end_due = True, False
                await connection.send(StreamEnd(self._stream.stream_id, "the programme ended"))
            else:
                await self._change(math.inf)

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
            if self._fragments.server_has_some or self._paused or self._end_sent:
                raise ConnectionLost(self._address.url, f"the server has said nothing for {PATIENCE_S:.0f} s")

    def _handle(self, event: ServerEvent) -> None:
        match event:
            case FragmentProcessed():
                if self._fragments.on_result(event, trio.current_time()):
                    self._reconnects = 0
            case Backpressure():
                self._paused = event.action == "pause"
                delay_s = min(event.recommended_delay_ms / 1000, LONGEST_DELAY_S)
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
        if error.fragment_id is None:
            raise DubbingRefused(error.code, error.message, retryable=error.retryable)
        self._fragments.on_refusal(error, trio.current_time(), self._delay_s)

    def _finish_without_counts(self, reason: str) -> None:
        """The session is gone, and had no more to say than ``stream:complete``: every result is applied."""
        log.warning("completion_lost", reason=reason)
        self._over = True
        self._changed.unpark_all()


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
