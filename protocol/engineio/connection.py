"""What both ends of an Engine.IO session share: what waits to be sent, and how it ends."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections import deque
from enum import StrEnum
from typing import Final, TypeAlias

from attrs import frozen

from .packets import Frame, Packet, PacketType, Transport, encode_frame

MAX_QUEUE_BYTES: Final = 64 * 2**20


class CloseReason(StrEnum):
    """Why a connection ended."""

    TRANSPORT_CLOSE = "transport close"  # the WebSocket or the held poll closed or broke
    TRANSPORT_ERROR = "transport error"  # the peer used the transport as it must not be used
    PING_TIMEOUT = "ping timeout"  # a ping or its answer did not come in time
    OPEN_TIMEOUT = "open timeout"  # the server's open packet did not come in time
    CONNECT_TIMEOUT = "connect timeout"  # no Socket.IO namespace was joined in time
    ATTACHMENTS_TIMEOUT = "attachments timeout"  # a Socket.IO packet's attachments did not come in time
    SLOW_READER = "slow reader"  # more waits to be sent than may
    CLIENT_CLOSE = "client close"  # the client said so
    SERVER_CLOSE = "server close"  # the server said so
    PARSE_ERROR = "parse error"  # the peer sent what it must not send
    SHUTTING_DOWN = "server shutting down"


class ConnectionClosed(Exception):
    """Something was asked of a connection that is closed or about to be."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(f"the connection is closed: {reason}")
        self.reason = reason


class TransportMisused(Exception):
    """A request that must not come now, such as a second poll beside the first: answer it with 400.

    Where the rule is that the session ends, it is closed by then.
    """


@frozen
class MessageReceived:
    """A message arrived, as text or binary as it was sent."""

    data: str | bytes


@frozen
class Closed:
    """The peer ended the connection or broke a rule. Always the last event.

    Attributes:
        detail: the broken rule, for the log.
    """

    reason: CloseReason
    detail: str = ""


Event: TypeAlias = MessageReceived | Closed


class Connection(ABC):
    """One end of a session.

    Attributes:
        transport: what carries the session now.
    """

    def __init__(self, transport: Transport, deadline: float, max_queue_bytes: int) -> None:
        self.transport = transport
        self._deadline = deadline
        self._max_queue_bytes = max_queue_bytes
        self._queue: deque[Packet] = deque()
        self._queued_bytes = 0  # of what is in the queue or being sent on the WebSocket
        self._sending: Packet | None = None
        self._polling = self._posting = False  # a GET, a POST is under way
        self._upgrading = self._probed = False
        self._finishing: CloseReason | None = None
        self._finish_by = math.inf
        self._closed: Closed | None = None

    @property
    def closed(self) -> Closed | None:
        """Why the connection ended; None while it lives."""
        return self._closed

    @property
    def is_closing(self) -> bool:
        """Whether nothing more can be sent: it is closed, or only sends what is left."""
        return self._closed is not None or self._finishing is not None

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits to be sent or is being sent."""
        return bool(self._queue) or self._sending is not None

    @property
    def deadline(self) -> float:
        """When `tick` must be called, in seconds; infinite once closed. Any other call may change it."""
        return math.inf if self._closed is not None else min(self._deadline, self._finish_by)

    def close(self, reason: CloseReason, detail: str = "") -> None:
        """End the connection now, with what is queued unsent. The first reason stands."""
        if self._closed is None:
            self._closed = Closed(reason, detail)
            self._queue.clear()
            self._queued_bytes = 0 if self._sending is None else _memory(self._sending)

    def finish(self, reason: CloseReason, by: float) -> None:
        """Send what is queued, then close, at `by` seconds at the latest. The first reason stands."""
        if not self.is_closing:
            self._finishing = reason
            self._finish_by = by
            self._close_if_finished()

    def send(self, message: str | bytes) -> None:
        """Queue a message. A queue that overflows closes the connection: the peer reads too slowly.

        Raises:
            ConnectionClosed: nothing is sent any more.
        """
        if self._closed is not None:
            raise ConnectionClosed(self._closed.reason)
        if self._finishing is not None:
            raise ConnectionClosed(self._finishing)
        self._enqueue(Packet(PacketType.MESSAGE, message))

    def next_frame(self) -> Frame | None:
        """The frame to send on the session's WebSocket, if there is one and none is being sent."""
        if self.transport is not Transport.WEBSOCKET or self._sending is not None or not self._queue:
            return None
        self._sending = self._queue.popleft()
        return encode_frame(self._sending)

    def frame_sent(self, now: float) -> None:
        """What `next_frame` gave has left."""
        if self._sending is not None:
            self._queued_bytes -= _memory(self._sending)
            self._sending = None
        self._close_if_finished()

    def _enqueue(self, packet: Packet, *, first: bool = False) -> None:
        if first:  # but for the open packet, which nothing may come before
            self._queue.insert(1 if self._queue and self._queue[0].type is PacketType.OPEN else 0, packet)
        else:
            self._queue.append(packet)
        self._queued_bytes += _memory(packet)
        if self._queued_bytes > self._max_queue_bytes:
            self.close(CloseReason.SLOW_READER, f"{self._queued_bytes} bytes wait to be sent")

    def _take_packets(self, max_packets: float, max_bytes: float) -> list[Packet]:
        """What of the queue fits into one payload, the first packet always."""
        packets: list[Packet] = []
        bytes_left = max_bytes
        while self._queue and len(packets) < max_packets:
            bytes_left -= _payload_bytes(self._queue[0])
            if packets and bytes_left < 0:
                break
            packets.append(self._queue.popleft())
            self._queued_bytes -= _memory(packets[-1])
        return packets

    def abandon_upgrade(self) -> None:
        """The new WebSocket has failed, or has become the session's."""
        self._upgrading = self._probed = False

    def _move(self) -> None:
        """The session is on the new WebSocket from now on."""
        self.transport = Transport.WEBSOCKET
        self.abandon_upgrade()
        self._close_if_finished()

    def tick(self, now: float) -> None:
        """Do what is due. Nothing before `deadline`."""
        if now < self.deadline:
            return
        if self._finishing is not None and now >= self._finish_by:
            self.close(self._finishing, "not everything could be sent")
        else:
            self._beat(now)

    @abstractmethod
    def _beat(self, now: float) -> None:
        """The heartbeat's next step is due."""

    def _close_if_finished(self) -> None:
        if self._finishing is not None and self.transport is Transport.WEBSOCKET and not self.has_unsent:
            self.close(self._finishing)

    def _closed_by(self, reason: CloseReason, detail: str = "") -> list[Event]:
        if self._closed is not None:  # a payload goes on behind what ended the connection
            return []
        self.close(reason, detail)
        return [Closed(reason, detail)]


def _memory(packet: Packet) -> int:
    """Bytes, objects included, so that a great many small packets are bounded, too."""
    return sys.getsizeof(packet.data) + sys.getsizeof(packet)


def _payload_bytes(packet: Packet) -> int:
    """The packet's length in a payload, with a separator."""
    data = packet.data
    if isinstance(data, bytes):
        return 2 + (len(data) + 2) // 3 * 4
    return 2 + (len(data) if data.isascii() else len(data.encode(errors="surrogatepass")))
