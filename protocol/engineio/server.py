"""The server's end of an Engine.IO session."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from .connection import (
    MAX_QUEUE_BYTES,
    CloseReason,
    Connection,
    ConnectionClosed,
    Event,
    MessageReceived,
    TransportMisused,
)
from .handshake import Handshake
from .packets import EngineError, Frame, Packet, PacketType, Transport, decode_frame, decode_payload, encode_payload

PACKETS_PER_POLL: Final = 16
"""Python's client libraries read no more packets from one response, and disconnect at the 17th."""

SILENT_PACKETS: Final = 100
"""Packets of one POST that are no message. A client has no reason to send more than a pong."""

_PROBE: Final = "probe"


class ServerConnection(Connection):
    """The server's end of one session. The open packet is queued already.

    Args:
        handshake: what the session is promised.
        now: seconds; the first ping is due one interval later.
        transport: what the session begins on.
        max_queue_bytes: memory of what may wait to be sent.
        packets_per_poll: at most so many packets answer one poll.
    """

    def __init__(
        self,
        handshake: Handshake,
        now: float,
        *,
        transport: Transport = Transport.WEBSOCKET,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        packets_per_poll: int = PACKETS_PER_POLL,
    ) -> None:
        self.handshake = handshake
        self._packets_per_poll = packets_per_poll
        self._interval = handshake.ping_interval_ms / 1000
        self._timeout = handshake.ping_timeout_ms / 1000
        self._awaiting_pong = False
        self._ping_unsent = False
        self._ping_in_payload = False
        self._sending_payload: str | None = None
        super().__init__(transport, now + self._interval, max_queue_bytes)
        self._enqueue(Packet(PacketType.OPEN, handshake.to_json()))

    # ------------------------------------------------------------------------------------ WebSocket

    def receive(self, frame: Frame, now: float) -> list[Event]:
        """Take one frame of the session's WebSocket.

        A ping, which only servers send, ends the connection, as does a frame that is no packet. Packets that have no
        meaning here (open, upgrade, noop, a pong nobody waits for) are ignored, as the reference server does.
        """
        if self._closed is not None:
            return []
        try:
            return self._receive(decode_frame(frame), now)
        except EngineError as error:
            return self._closed_by(CloseReason.PARSE_ERROR, str(error))

    def frame_sent(self, now: float) -> None:
        if self._sending is not None and self._sending.type is PacketType.PING:
            self.piece_sent(now)
            self._ping_unsent = False
        super().frame_sent(now)

    # -------------------------------------------------------------------------------------- polling

    @property
    def is_polled(self) -> bool:
        """Whether a GET is held."""
        return self._polling

    def begin_poll(self) -> None:
        """A GET has come: answer it with `next_payload`, and close the connection where its client goes away first.

        Raises:
            TransportMisused: another one is still held, which ends the session.
            ConnectionClosed: there is no session any more.
        """
        self.check_open()
        if self._polling:
            raise self._misused("overlapping polls")
        self._polling = True

    def next_payload(self) -> str | None:
        """What answers the GET that is held, which it then is no more; None: nothing yet, it is held on.

        A poll is also answered where there is nothing to send any more: with a noop while the client moves to a
        WebSocket, and with the goodbye when the session has ended. That is alone in its payload, because JavaScript's
        client library reads a close packet before the messages around it.
        """
        if not self._polling:
            return None
        is_moving = self._probed or self.transport is Transport.WEBSOCKET
        if self._finishing is not None and not is_moving and not self.has_unsent:
            self.close(self._finishing)
        if self._closed is not None:
            payload = encode_payload([_goodbye(self._closed.reason)])
        elif is_moving:
            payload = encode_payload([Packet(PacketType.NOOP)])
        elif self._sending_payload is not None or not self._queue:
            return None  # who does not wait for one answer does not get two at once
        else:
            packets = self._take_packets(self._packets_per_poll, self.handshake.max_payload)
            self._ping_in_payload = any(packet.type is PacketType.PING for packet in packets)
            payload = self._sending_payload = encode_payload(packets)
        self._polling = False
        return payload

    def payload_sent(self, payload: str) -> None:
        """`payload`, which `next_payload` gave, has left. A ping's time runs from when it was due, not fetched."""
        if payload is not self._sending_payload:
            return  # a noop or a goodbye
        self._sending_payload = None
        if self._ping_in_payload:
            self._ping_in_payload = self._ping_unsent = False
        self._close_if_finished()

    @property
    def has_unsent(self) -> bool:
        return self._sending_payload is not None or super().has_unsent

    def begin_post(self, content_type: str = "") -> None:
        """A POST has come: read its body and give it to `receive_payload`.

        Close the connection where the body does not come to its end, and call `abandon_post` where it is too long.

        Raises:
            TransportMisused: another one is not done, or it has a binary body, either of which ends the session.
            ConnectionClosed: there is no session any more.
        """
        self.check_open()
        if self._posting:
            raise self._misused("overlapping posts")
        if content_type.partition(";")[0].strip().lower() == "application/octet-stream":
            raise self._misused("binary payload")
        self._posting = True

    def abandon_post(self) -> None:
        """The POST was refused, and the session goes on without what it held."""
        self._posting = False

    def receive_payload(self, payload: bytes, now: float) -> Generator[Event, None, None]:
        """Take the body of a POST: the events of its packets, each when it is asked for. Ask for all of them.

        A packet that is none ends the connection: what came before it counts, what comes after it does not. So do more
        than `SILENT_PACKETS` that mean nothing, in which a large body could hold the server up without an event.
        """
        silent = 0
        try:
            for packet in decode_payload(payload.decode()):
                if self._closed is not None:
                    return
                events = self._receive(packet, now)
                yield from events
                silent += not events
                if silent > SILENT_PACKETS:
                    raise EngineError(f"more than {SILENT_PACKETS} packets without a message")
        except UnicodeDecodeError:
            yield from self._closed_by(CloseReason.PARSE_ERROR, "payload is not UTF-8")
        except EngineError as error:
            yield from self._closed_by(CloseReason.PARSE_ERROR, str(error))
        finally:
            self._posting = False

    # -------------------------------------------------------------------------------------- upgrade

    def begin_upgrade(self) -> None:
        """The client has opened a WebSocket for this session: give its frames to `receive_probe`.

        Raises:
            TransportMisused: the session is on a WebSocket already, or one is being probed: close the new one.
            ConnectionClosed: there is no session any more.
        """
        self.check_open()
        if self._upgrading or self.transport is Transport.WEBSOCKET:
            raise TransportMisused("a second WebSocket")
        self._upgrading = True

    def receive_probe(self, frame: Frame) -> Frame | None:
        """Take one frame of the WebSocket that the client wants to move to.

        Returns:
            What to answer on it; or None: the session has moved, and what follows is for `receive`.

        Raises:
            EngineError: it does not follow the rules; close this WebSocket and say `abandon_upgrade`. The session goes
            on.
        """
        self.check_open()
        if not self._upgrading:
            raise EngineError("no WebSocket is being probed")
        packet = decode_frame(frame)
        if packet == Packet(PacketType.PING, _PROBE):
            self._probed = True
            return "3probe"
        if packet.type is not PacketType.UPGRADE or not self._probed:
            raise EngineError(f"{packet.type.name} while upgrading")
        if self._posting:
            raise EngineError("UPGRADE while a POST is being taken")
        self._move()
        return None

    # ----------------------------------------------------------------------------------------- time

    def _beat(self, now: float) -> None:
        """A ping is due, or the answer to one."""
        if self._awaiting_pong:
            self.close(CloseReason.PING_TIMEOUT)
            return
        self._awaiting_pong = self._ping_unsent = True
        # From when the ping was due. But a server that is late itself must not make the client pay for it.
        self._deadline = max(self._deadline + self._timeout, now + 0.9 * self._timeout)
        self._enqueue(Packet(PacketType.PING), first=True)

    def piece_sent(self, now: float) -> None:
        """A piece of a frame has just been sent, or of a payload of which there is more.

        A client cannot answer a ping that it was not sent yet: as long as one waits behind what is being sent, the
        answer is due a timeout after the last piece. Without a ping it does nothing.
        """
        if self._ping_unsent:
            self._deadline = now + self._timeout

    # -------------------------------------------------------------------------------------- packets

    def _receive(self, packet: Packet, now: float) -> list[Event]:
        match packet.type:
            case PacketType.MESSAGE:
                return [MessageReceived(packet.data)]
            case PacketType.PONG if self._awaiting_pong:
                self._awaiting_pong = self._ping_unsent = False
                self._deadline = now + self._interval
            case PacketType.PING:
                return self._closed_by(CloseReason.PARSE_ERROR, "ping from a client")
            case PacketType.CLOSE:
                return self._closed_by(CloseReason.CLIENT_CLOSE)
        return []

    def check_open(self) -> None:
        """
        Raises:
            ConnectionClosed: there is no session any more.
        """
        if self._closed is not None:
            raise ConnectionClosed(self._closed.reason)

    def _misused(self, rule: str) -> TransportMisused:
        self.close(CloseReason.TRANSPORT_ERROR, rule)
        return TransportMisused(rule)


def _goodbye(reason: CloseReason) -> Packet:
    """What releases a poll: who said goodbye itself, or shall come back, is not told to go away."""
    stays_away = reason not in (CloseReason.CLIENT_CLOSE, CloseReason.SHUTTING_DOWN)
    return Packet(PacketType.CLOSE if stays_away else PacketType.NOOP)
