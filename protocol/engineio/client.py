"""The client's end of an Engine.IO session."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

from attrs import frozen

from . import connection
from .connection import MAX_QUEUE_BYTES, CloseReason, Connection, MessageReceived
from .handshake import Handshake
from .packets import EngineError, Frame, Packet, PacketType, Transport, decode_frame, decode_payload, encode_payload


@frozen
class Opened:
    """The session is open: polls and upgrades name its sid."""

    handshake: Handshake


Event: TypeAlias = Opened | connection.Event


class ClientConnection(Connection):
    """The client's end of one session. Pings are answered by themselves.

    Args:
        now: seconds.
        open_timeout: seconds the server has for its open packet, from `now`.
        transport: what the session begins on.
        max_queue_bytes: memory of what may wait to be sent.
    """

    def __init__(
        self,
        now: float,
        open_timeout: float = 20.0,
        *,
        transport: Transport = Transport.WEBSOCKET,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
    ) -> None:
        self._handshake: Handshake | None = None
        super().__init__(transport, now + open_timeout, max_queue_bytes)

    @property
    def handshake(self) -> Handshake | None:
        """The server's promises, once its open packet was read."""
        return self._handshake

    # ------------------------------------------------------------------------------------ WebSocket

    def receive(self, frame: Frame, now: float) -> list[Event]:
        """Take one frame of the session's WebSocket.

        The first packet must be the open packet, and no other may be one.
        """
        if self._closed is not None:
            return []
        try:
            return self._receive(decode_frame(frame), now)
        except EngineError as error:
            return [*self._closed_by(CloseReason.PARSE_ERROR, str(error))]

    # -------------------------------------------------------------------------------------- polling

    @property
    def wants_poll(self) -> bool:
        """Whether a GET should be sent now: `begin_poll`."""
        return self._may_use_http and not self._polling

    def begin_poll(self) -> None:
        """A GET is being sent.

        Give the answer's body to `receive_payload`, or close the connection where none comes.
        """
        self._polling = True

    def receive_payload(self, payload: str, now: float) -> Iterator[Event]:
        """Take the answer to a GET: the events of its packets, each when it is asked for. Ask for all of them."""
        self._polling = False
        try:
            for packet in decode_payload(payload):
                if self._closed is not None:
                    return
                yield from self._receive(packet, now)
        except EngineError as error:
            yield from self._closed_by(CloseReason.PARSE_ERROR, str(error))

    def next_payload(self) -> str | None:
        """The body of a POST to send now, if there is one, of at most ``maxPayload`` bytes if its first packet allows.

        After `finish` the last one is the goodbye alone, and the connection is closed when this has returned it.
        """
        if self._handshake is None or self._posting or not self._may_use_http:
            return None
        packets = self._take_packets(math.inf, self._handshake.max_payload)
        if not packets and self._finishing is not None:
            self.close(self._finishing)
            packets = [Packet(PacketType.CLOSE)]
        self._posting = bool(packets)
        return encode_payload(packets) if packets else None

    def payload_sent(self) -> None:
        """The POST was answered with 200. Close the connection where it was not."""
        self._posting = False

    @property
    def _may_use_http(self) -> bool:
        return self._closed is None and self.transport is Transport.POLLING and not self._probed

    # -------------------------------------------------------------------------------------- upgrade

    def begin_upgrade(self) -> Frame:
        """The first frame for a WebSocket that was opened with the session's sid; its answer is for `receive_probe`."""
        self._upgrading = True
        return "2probe"

    def receive_probe(self, frame: Frame) -> None:
        """Take the answer to the probe: no poll and no POST begins from now on, until `finish_upgrade`.

        Raises:
            EngineError: it is no answer; close this WebSocket and say `abandon_upgrade`. The session goes on.
        """
        if not self._upgrading or decode_frame(frame) != Packet(PacketType.PONG, "probe"):
            raise EngineError("no answer to the probe")
        self._probed = True

    def finish_upgrade(self) -> Frame | None:
        """The last frame of the upgrade, once poll and POST are done (None before): the session is on the WebSocket."""
        if self._closed is not None or not self._probed or self._polling or self._posting:
            return None
        self._move()
        return "5"

    # ------------------------------------------------------------------------------ time and packets

    def _beat(self, now: float) -> None:
        """The server has been silent for too long."""
        self.close(CloseReason.OPEN_TIMEOUT if self._handshake is None else CloseReason.PING_TIMEOUT)

    def _receive(self, packet: Packet, now: float) -> list[Event]:
        if self._handshake is None:
            if packet.type is not PacketType.OPEN or isinstance(packet.data, bytes):
                raise EngineError("the first packet must be open")
            self._handshake = Handshake.from_json(packet.data)
            self._await_ping(self._handshake, now)
            return [Opened(self._handshake)]
        match packet.type:
            case PacketType.MESSAGE:
                return [MessageReceived(packet.data)]
            case PacketType.PING:
                self._await_ping(self._handshake, now)
                self._enqueue(Packet(PacketType.PONG, packet.data), first=True)
            case PacketType.OPEN:
                raise EngineError("second open packet")
            case PacketType.CLOSE:
                return [*self._closed_by(CloseReason.SERVER_CLOSE)]
        return []

    def _await_ping(self, handshake: Handshake, now: float) -> None:
        self._deadline = now + (handshake.ping_interval_ms + handshake.ping_timeout_ms) / 1000
