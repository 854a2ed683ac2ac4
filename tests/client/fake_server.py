"""A dubbing server in memory that does what a test's script says, connection by connection.

It speaks through the same `protocol` package as the real one, over real WebSockets on memory streams: a test runs on
virtual time and still sees every byte.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
import trio_websocket
from attrs import evolve

from protocol.dubbing import (
    WORKER_EVENTS,
    Audio,
    Backpressure,
    ErrorEvent,
    FragmentAck,
    FragmentData,
    FragmentError,
    FragmentProcessed,
    ResultAck,
    ServerEvent,
    Severity,
    StageTimings,
    Statistics,
    StreamComplete,
    StreamConfig,
    StreamEnd,
    StreamInit,
    StreamReady,
    WorkerEvent,
    parse,
    payload,
)
from protocol.engineio import Handshake, MessageReceived, ServerConnection
from protocol.errors import ErrorCode, Stage
from protocol.socketio import ConnectRequested, Disconnected, EventReceived, ServerSocket

URL = "http://dubbing.test"

CONFIG = StreamConfig("en", "es", "default", 1_000, 8_000, 1, "pcm_s16le")


def tone(number: int = 1, *, duration_ms: int = 10) -> Audio:
    """A fragment whose every sample is `number`."""
    return Audio("pcm_s16le", 8_000, 1, duration_ms, number.to_bytes(2, "little") * (duration_ms * 8))


def fragment(number: int) -> FragmentData:
    return FragmentData(f"f{number}", "stream", number, 0, tone(number))


class Gone(Exception):
    """The worker has closed the connection."""


class Peer:
    """One connection as the server sees it. `heard` keeps what the worker said, in order."""

    def __init__(self, server: FakeServer, websocket: trio_websocket.WebSocketConnection) -> None:
        self.heard: list[WorkerEvent] = []
        self.auth: dict[str, Any] = {}
        self.alive = True
        self.pongs = 0
        self.left_politely = False
        self._server = server
        self._websocket = websocket
        self._engine = ServerConnection(Handshake("fake", ping_interval_ms=25_000), trio.current_time())
        self._socket = ServerSocket()

    async def start(self) -> None:
        await self._flush()

    async def accept(self) -> None:
        """Let the worker in."""
        event = await self._next()
        assert isinstance(event, ConnectRequested)
        self.auth = event.auth
        await self._send_all(self._socket.accept("/", "fake"))

    async def reject(self, message: str, data: dict[str, Any]) -> None:
        assert isinstance(await self._next(), ConnectRequested)
        await self._send_all(self._socket.reject("/", message, data))

    async def receive(self) -> WorkerEvent:
        """The worker's next event.

        Raises:
            Gone: it has closed the connection.
        """
        event = await self._next()
        if not isinstance(event, EventReceived):
            try:
                await self._websocket.get_message()
            except trio_websocket.ConnectionClosed as closed:
                code = closed.reason.code if closed.reason else None
                self.left_politely = isinstance(event, Disconnected) and code == 1000
            raise Gone
        heard = parse(WORKER_EVENTS[str(event.name)], event.args)
        self.heard.append(heard)
        return heard

    async def receive_one(self, kind: type[Any]) -> Any:
        """The next event of this kind; what comes before it is only remembered in `heard`."""
        while not isinstance(event := await self.receive(), kind):
            pass
        return event

    async def send(self, *events: ServerEvent) -> None:
        for event in events:
            await self._send_all(self._socket.emit("/", event.event, payload(event)))

    async def send_raw(self, event: str, body: dict[str, Any]) -> None:
        """What a server of another version says."""
        await self._send_all(self._socket.emit("/", event, body))

    async def keep_pinging(self) -> None:
        """As long as `alive` holds."""
        while self.alive:
            await trio.sleep(25)
            await self.ping()

    async def ping(self) -> None:
        await self._websocket.send_message("2")

    async def close(self) -> None:
        """Close the WebSocket, and wait for the worker's own close frame."""
        await self._websocket.aclose()

    async def open(self, *, max_inflight: int = 2, session_id: str = "s1", binary: bool = False) -> StreamInit:
        """Accept, take ``stream:init`` and answer ``stream:ready``."""
        await self.accept()
        init: StreamInit = await self.receive_one(StreamInit)
        await self.send(ready(max_inflight=max_inflight, session_id=session_id, binary=binary))
        return init

    async def dub_rest(self) -> None:
        """Dub whatever comes, at once, until the worker ends the stream and leaves."""
        while True:
            match await self.receive():
                case FragmentData() as fragment:
                    await self.send(taken(fragment), dubbed(fragment))
                case StreamEnd():
                    await self.send(complete())

    async def _next(self) -> Any:
        while True:
            try:
                frame = await self._websocket.get_message()
                self.pongs += frame == "3"
            except trio_websocket.ConnectionClosed:
                raise Gone from None
            for event in self._engine.receive(frame, trio.current_time()):
                if isinstance(event, MessageReceived):
                    for received in self._socket.receive(event.data):
                        return received

    async def _send_all(self, messages: list[Any]) -> None:
        for message in messages:
            self._engine.send(message)
        try:
            await self._flush()
        except trio_websocket.ConnectionClosed:
            raise Gone from None

    async def _flush(self) -> None:
        while (frame := self._engine.next_frame()) is not None:
            await self._websocket.send_message(frame)
            self._engine.frame_sent(trio.current_time())


Script = Callable[[Peer], Awaitable[None]]


class FakeServer:
    """Serves one connection by each of its scripts, one after the other; a connection ends when its script does."""

    def __init__(self, nursery: trio.Nursery, *scripts: Script) -> None:
        self.peers: list[Peer] = []
        self.requests: list[dict[bytes, bytes]] = []
        self._nursery = nursery
        self._scripts = list(scripts)

    async def open_stream(self) -> trio.abc.Stream:
        """What a worker's `open_stream` wants."""
        if not self._scripts:
            raise ConnectionRefusedError("connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, ours, self._scripts.pop(0))
        return theirs

    async def _serve(self, stream: trio.abc.Stream, script: Script) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream, max_message_size=2**26)
            self.requests.append(dict(request.headers))
            assert request.path == "/socket.io/?EIO=4&transport=websocket"
            peer = Peer(self, await request.accept())
            self.peers.append(peer)
            await peer.start()
            nursery.start_soon(peer.keep_pinging)
            with suppress(Gone):
                await script(peer)
            await stream.aclose()
            nursery.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------- what it says


def ready(*, max_inflight: int = 2, session_id: str = "s1", binary: bool = False) -> StreamReady:
    return StreamReady("stream", session_id, max_inflight, {"binary_audio": binary})


def taken(fragment: FragmentData) -> FragmentAck:
    return FragmentAck(fragment.fragment_id, "queued", 0, 0, 0)


def dubbed(fragment: FragmentData, **changes: Any) -> FragmentProcessed:
    """A success that gives back the audio it was sent."""
    result = FragmentProcessed(
        fragment_id=fragment.fragment_id,
        stream_id=fragment.stream_id,
        sequence_number=fragment.sequence_number,
        status="success",
        processing_time_ms=10,
        stage_timings=StageTimings(5, 1, 4),
        dubbed_audio=fragment.audio,
        transcript=f"said {fragment.sequence_number}",
        translated_text=f"dicho {fragment.sequence_number}",
        metadata={
            "original_duration_ms": fragment.audio.duration_ms,
            "dubbed_duration_ms": fragment.audio.duration_ms,
        },
    )
    return evolve(result, **changes)


def failed(fragment: FragmentData, code: ErrorCode, **changes: Any) -> FragmentProcessed:
    error = FragmentError(code, "a scripted failure", Stage.TRANSLATION, code.retryable)
    return dubbed(fragment, status="failed", error=error, **{"dubbed_audio": None, "translated_text": None, **changes})


def refused(code: ErrorCode, fragment_id: str | None = None) -> ErrorEvent:
    """As the server says it: what may be tried again is a warning."""
    severity = Severity.WARNING if code.retryable else Severity.ERROR
    return ErrorEvent("e1", code, "a scripted refusal", severity, code.retryable, "stream", fragment_id)


def gap_warning() -> ErrorEvent:
    code = ErrorCode.SEQUENCE_GAP
    return ErrorEvent("e2", code, "a scripted gap", Severity.WARNING, code.retryable, "stream")


def backpressure(action: str, *, delay_ms: int = 0) -> Backpressure:
    severity = {"slow_down": "medium", "pause": "high", "none": "low"}[action]
    return Backpressure("stream", severity, action, 0, 2, 0, delay_ms)


COUNTS = ("success_count", "partial_count", "failed_count", "avg_processing_time_ms", "p95_processing_time_ms")


def complete() -> StreamComplete:
    counts = dict.fromkeys(COUNTS, 1)
    return StreamComplete("stream", 1, 100, Statistics(**counts), **counts)


def acknowledged(peer: Peer) -> list[str]:
    """The fragments whose results the worker has acknowledged on this connection."""
    return [event.fragment_id for event in peer.heard if isinstance(event, ResultAck)]
