"""One Engine.IO session on trio: its heartbeat, and the WebSocket, polls and POSTs that carry it.

`protocol.engineio` decides; here is who waits for what. The session's own task, `run`, sleeps until something is due or
the session ends. A WebSocket has a *reader*, and a *writer* which is the only one that sends on it; a poll waits for
something to answer it with. All of them look at the state machine when it has changed, and end when it has ended.

**What goes out never waits for the client.** `send` queues and returns. The queue is bounded in bytes of memory; a
client that reads so slowly that it overflows is disconnected, not buffered for.

**A slow client is not a dead one.** A ping overtakes what is queued, but not the message that is just being sent, and
at 100 kB/s one message can take longer than an answer may. So the answer's time starts anew with each piece of 64 KiB
that goes out before the ping, and for the last time with the ping itself.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final, Protocol

import structlog
import trio
from attrs import frozen

from protocol.engineio import (
    Closed,
    CloseReason,
    ConnectionClosed,
    EngineError,
    Event,
    Frame,
    Handshake,
    MessageReceived,
    ServerConnection,
    Transport,
    TransportMisused,
    says_goodbye,
)

from .websocket import WebSocket, WebSocketClosed

log = structlog.get_logger(__name__)

PROBE_BYTES: Final = 1_024
"""The largest frame of a WebSocket that a client tries before it moves to it."""

OVERTAKING_S: Final = 0.05
"""How much earlier a POST may come than a poll that left before it: they take different connections."""

PACKETS_PER_STEP: Final = 32
CHARACTERS_PER_STEP: Final = 16_384
"""What of one POST is taken between two chances for others to run; one packet at least."""

_NORMAL: Final = 1000  # WebSocket close codes (RFC 6455, 7.4.1)
_GOING_AWAY: Final = 1001


class Receiver(Protocol):
    """Whom the messages of one connection are for. Nothing here waits, and what it raises ends the connection."""

    @property
    def deadline(self) -> float:
        """When `tick` must be called, seconds of trio's clock."""
        ...

    @property
    def trusts(self) -> bool:
        """Whether the client may send large messages now; it may change with every message."""
        ...

    def received(self, message: str | bytes) -> None: ...

    def tick(self, now: float) -> None: ...

    def closed(self, why: Closed) -> None:
        """The connection has ended. Comes exactly once, last."""
        ...


@frozen(kw_only=True)
class ConnectionSettings:
    """How sessions behave. The times are the reference server's, the heartbeat is the contract's.

    Attributes:
        max_message_bytes: a larger message ends a WebSocket with 1009; a larger POST is refused with 413.
        stranger_message_bytes: the same, for a client that the receiver does not trust yet.
        send_queue_bytes: what may wait to be sent, as Python counts its memory.
        packets_per_poll: at most so many packets answer one poll.
        upgrade_timeout_s: from a WebSocket's opening to the client's last word that it moves to it.
        flush_timeout_s: from our close to the last queued packet.
        new_id: makes sids; unguessable ones, except in a simulation.
    """

    max_message_bytes: int = 50 * 2**20
    stranger_message_bytes: int = 2**16
    send_queue_bytes: int = 64 * 2**20
    packets_per_poll: int = 16
    ping_interval_s: float = 25.0
    ping_timeout_s: float = 10.0
    upgrade_timeout_s: float = 10.0
    flush_timeout_s: float = 5.0
    new_id: Callable[[], str] = lambda: secrets.token_urlsafe(15)


class Connection:
    """One session. `run` it once.

    Args:
        transport: what it begins on.
        address: ``host:port`` at the other end of the socket that began it.
        make_receiver: called with this connection, once.

    Attributes:
        sid: a secret.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        settings: ConnectionSettings,
        make_receiver: Callable[[Connection], Receiver],
    ) -> None:
        self.sid = settings.new_id()
        self.address = address
        handshake = Handshake(
            sid=self.sid,
            upgrades=(Transport.WEBSOCKET,) if transport is Transport.POLLING else (),
            ping_interval_ms=round(settings.ping_interval_s * 1000),
            ping_timeout_ms=round(settings.ping_timeout_s * 1000),
            max_payload=settings.max_message_bytes,
        )
        self._settings = settings
        self._engine = ServerConnection(
            handshake,
            trio.current_time(),
            transport=transport,
            max_queue_bytes=settings.send_queue_bytes,
            packets_per_poll=settings.packets_per_poll,
        )
        self._changes = trio.lowlevel.ParkingLot()  # whoever waits for the state machine to change
        self._ended = trio.Event()
        self._transports: set[trio.CancelScope] = set()  # of the tasks that carry the session
        self._timer = trio.CancelScope()
        self._receiver = make_receiver(self)

    async def run(self) -> Closed:
        """Keep the session's time, and see it to its end; returns what that was."""
        try:
            while not self._ended.is_set():
                with trio.CancelScope(deadline=self._deadline) as self._timer:
                    await self._ended.wait()
                self._tick(trio.current_time())
        finally:
            self.abort(CloseReason.TRANSPORT_CLOSE)
            why = self._why_closed()
            log.info("connection_closed", address=self.address, reason=why.reason, detail=why.detail)
            with self._defects_end_it():
                self._receiver.closed(why)
        return why

    @property
    def transport(self) -> Transport:
        """What carries the session now."""
        return self._engine.transport

    @property
    def closed(self) -> bool:
        """Whether it has ended, so that nobody may ask for it by its sid any more."""
        return self._engine.closed is not None

    def _why_closed(self) -> Closed:
        assert self._engine.closed is not None
        return self._engine.closed

    @property
    def max_message_bytes(self) -> int:
        """What the client may send now in one message, or in one POST."""
        most = self._settings.max_message_bytes
        return most if self._receiver.trusts else min(most, self._settings.stranger_message_bytes)

    @property
    def is_closing(self) -> bool:
        """Whether anything sent now would not go out."""
        return self._engine.is_closing

    def send(self, message: str | bytes) -> None:
        """Queue a message; does nothing once `is_closing`."""
        if not self._engine.is_closing:
            self._engine.send(message)
            self._changed()

    async def drained(self) -> None:
        """Wait until all that is queued was sent, or nothing will be sent any more."""
        while self._engine.has_unsent and not self.closed:
            await self._changes.park()

    def close(self, reason: CloseReason) -> None:
        """Send what is queued, within `flush_timeout_s`, then close."""
        self._engine.finish(reason, trio.current_time() + self._settings.flush_timeout_s)
        self._changed()

    def abort(self, reason: CloseReason, detail: str = "") -> None:
        """End it now, unsent what is queued. The first reason stands."""
        self._engine.close(reason, detail)
        self._changed()

    def _changed(self) -> None:
        """To be called after whatever may have changed the state machine, or the receiver's deadline."""
        if self.closed and not self._ended.is_set():
            self._ended.set()
            for scope in self._transports:
                scope.cancel()
        self._timer.deadline = self._deadline
        self._changes.unpark_all()

    @property
    def _deadline(self) -> float:
        return math.inf if self.closed else min(self._engine.deadline, self._receiver.deadline)

    def _tick(self, now: float) -> None:
        self._engine.tick(now)
        if not self.closed and now >= self._receiver.deadline:
            with self._defects_end_it():
                self._receiver.tick(now)
        self._changed()

    def _take(self, event: Event) -> None:
        """Hand on what has arrived; `_changed` is to be called after it."""
        if isinstance(event, MessageReceived) and not self.is_closing:
            with self._defects_end_it():
                self._receiver.received(event.data)

    @contextmanager
    def _defects_end_it(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # of the receiver: this connection ends, the others go on
            log.exception("connection_crashed", address=self.address)
            self._engine.close(CloseReason.SERVER_CLOSE, "internal error")

    @contextmanager
    def while_alive(self) -> Iterator[None]:
        """Cancel what is inside when the session ends."""
        with trio.CancelScope() as scope:
            self._transports.add(scope)
            try:
                if self.closed:
                    scope.cancel()
                yield
            finally:
                self._transports.discard(scope)

    @contextmanager
    def while_sending(self) -> Iterator[None]:
        """Cancel what is inside when the session ends, or after `flush_timeout_s` where it has ended already."""
        if self.closed:
            with trio.move_on_after(self._settings.flush_timeout_s):
                yield
        else:
            with self.while_alive():
                yield

    # ------------------------------------------------------------------------------------ WebSocket

    async def serve_websocket(self, websocket: WebSocket) -> None:
        """Carry the session on its WebSocket until either side ends it."""
        try:
            with self.while_alive():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, websocket)
                    nursery.start_soon(self._write, websocket)
        finally:
            self.abort(CloseReason.TRANSPORT_CLOSE)
        reason = self._why_closed().reason
        if reason not in (CloseReason.TRANSPORT_CLOSE, CloseReason.PING_TIMEOUT):
            await websocket.close(_GOING_AWAY if reason is CloseReason.SHUTTING_DOWN else _NORMAL)

    async def upgrade(self, websocket: WebSocket) -> None:
        """Let the client try this WebSocket and move to it; where it does not, only the WebSocket is closed."""
        if await self._is_moved_to(websocket):
            await self.serve_websocket(websocket)
        else:
            await websocket.close(_NORMAL)

    async def _is_moved_to(self, websocket: WebSocket) -> bool:
        try:
            self._engine.begin_upgrade()
        except (TransportMisused, ConnectionClosed):
            return False
        moved = False
        try:
            websocket.limit(self.max_message_bytes)  # its next message may have come together with its last word
            with self.while_alive(), trio.move_on_after(self._settings.upgrade_timeout_s):
                while not moved:
                    frame = await websocket.receive()
                    if len(frame) > PROBE_BYTES:
                        raise EngineError("a large frame while upgrading")
                    answer = self._engine.receive_probe(frame)
                    self._changed()
                    if answer is None:
                        moved = True
                    else:
                        await websocket.send(answer)
        except (EngineError, ConnectionClosed, WebSocketClosed) as error:
            log.debug("upgrade_failed", address=self.address, error=str(error))
        finally:
            if not moved:
                self._engine.abandon_upgrade()
                self._changed()
        return moved

    async def _read(self, websocket: WebSocket) -> None:
        while True:
            websocket.limit(self.max_message_bytes)
            try:
                self._take_frame(await websocket.receive())
            except WebSocketClosed as closed:
                self.abort(CloseReason.TRANSPORT_CLOSE, str(closed))
                return

    def _take_frame(self, frame: Frame) -> None:
        """Nothing of it is left when this returns: it may be of megabytes, and the next be long in coming."""
        for event in self._engine.receive(frame, trio.current_time()):
            self._take(event)
        self._changed()

    async def _write(self, websocket: WebSocket) -> None:
        while True:
            frame = self._engine.next_frame()
            if frame is None:
                await self._changes.park()
                continue
            try:
                await websocket.send(frame, self.piece_sent)
            except WebSocketClosed as closed:
                self.abort(CloseReason.TRANSPORT_CLOSE, str(closed))
                return
            self._engine.frame_sent(trio.current_time())
            self._changed()

    def piece_sent(self) -> None:
        """A piece of a frame has left, or of a poll's answer that goes on."""
        self._engine.piece_sent(trio.current_time())
        self._timer.deadline = self._deadline

    # -------------------------------------------------------------------------------------- polling

    def begin_poll(self) -> None:
        """A GET has come; `poll` has its answer.

        Raises:
            TransportMisused, ConnectionClosed: answer it with 400.
        """
        self._tick(trio.current_time())  # what is due was due before this
        try:
            self._engine.begin_poll()
        finally:
            self._changed()

    async def poll(self) -> str:
        """Wait for what answers a GET."""
        while (payload := self._engine.next_payload()) is None:
            await self._changes.park()
        self._changed()
        return payload

    def payload_sent(self, payload: str) -> None:
        """What `poll` returned has left."""
        self._engine.payload_sent(payload)
        self._changed()

    @contextmanager
    def post(self, content_type: str) -> Iterator[None]:
        """Read the body of a POST inside this context, `while_alive`, then `take_payload`.

        Raises:
            TransportMisused, ConnectionClosed: answer it with 400.
        """
        self._tick(trio.current_time())
        try:
            self._engine.begin_post(content_type)
        finally:
            self._changed()
        try:
            yield
        finally:
            self._engine.abandon_post()

    async def take_payload(self, payload: bytes) -> None:
        """Take the body of a POST, within `post`.

        Raises:
            ConnectionClosed: the client has broken a rule, or the session ended before this; answer it with 400.
        """
        if says_goodbye(payload):
            await self._wait_for_poll()
        self._engine.check_open()
        with closing(self._engine.receive_payload(payload, trio.current_time())) as events:
            packets = characters = 0
            for event in events:
                self._take(event)
                packets += 1
                characters += len(event.data) if isinstance(event, MessageReceived) else 0
                if packets >= PACKETS_PER_STEP or characters >= CHARACTERS_PER_STEP:
                    packets = characters = 0
                    self._changed()
                    await trio.lowlevel.checkpoint()
        self._changed()
        if self._engine.closed is not None and self._engine.closed.reason is CloseReason.PARSE_ERROR:
            raise ConnectionClosed(CloseReason.PARSE_ERROR)

    async def _wait_for_poll(self) -> None:
        """A client that leaves has its poll answered, though its goodbye may have overtaken it."""
        with trio.move_on_after(OVERTAKING_S):
            while not self._engine.is_polled:
                await self._changes.park()
