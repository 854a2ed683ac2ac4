"""Engine.IO connections as tests want them: short heartbeats, times that are easy to read, one open packet."""

from __future__ import annotations

from typing import Final

from protocol.engineio import (
    ClientConnection,
    Frame,
    Handshake,
    Opened,
    ServerConnection,
    Transport,
    encode_payload,
)
from protocol.engineio.connection import MAX_QUEUE_BYTES
from protocol.engineio.packets import Packet, PacketType
from protocol.engineio.server import PACKETS_PER_POLL

HANDSHAKE: Final = Handshake("sid-1", ping_interval_ms=300, ping_timeout_ms=200, max_payload=1_000_000)
POLLING_HANDSHAKE: Final = Handshake(
    "sid-1", ("websocket",), ping_interval_ms=300, ping_timeout_ms=200, max_payload=100
)

OPEN: Final = '0{"sid":"sid-1","upgrades":[],"pingInterval":300,"pingTimeout":200,"maxPayload":1000000}'


def server(max_queue_bytes: int = MAX_QUEUE_BYTES) -> ServerConnection:
    """The server's end of a session that began on a WebSocket at 10.0 s; its open packet has left."""
    connection = ServerConnection(HANDSHAKE, 10.0, max_queue_bytes=max_queue_bytes)
    assert sent(connection) == [OPEN]
    return connection


def polling_server(
    *, max_queue_bytes: int = MAX_QUEUE_BYTES, packets_per_poll: int = PACKETS_PER_POLL
) -> ServerConnection:
    """The server's end of a session that began with a poll at 10.0 s, which was answered with the open packet."""
    connection = ServerConnection(
        POLLING_HANDSHAKE,
        10.0,
        transport=Transport.POLLING,
        max_queue_bytes=max_queue_bytes,
        packets_per_poll=packets_per_poll,
    )
    assert poll(connection) == "0" + POLLING_HANDSHAKE.to_json()
    return connection


def client() -> ClientConnection:
    """The client's end of a session on a WebSocket, opened at 11.0 s."""
    connection = ClientConnection(now=10.0)
    assert connection.receive(OPEN, 11.0) == [Opened(HANDSHAKE)]
    return connection


def polling_client(handshake: Handshake = POLLING_HANDSHAKE) -> ClientConnection:
    """The client's end of a session on long-polling, opened at 11.0 s, and no poll on its way."""
    connection = ClientConnection(now=10.0, transport=Transport.POLLING)
    connection.begin_poll()
    payload = encode_payload([Packet(PacketType.OPEN, handshake.to_json())])
    assert list(connection.receive_payload(payload, 11.0)) == [Opened(handshake)]
    return connection


def is_open(connection: ServerConnection | ClientConnection) -> bool:
    """Whether it has not closed yet."""
    return connection.closed is None


def sent(connection: ServerConnection | ClientConnection, now: float = 10.0) -> list[Frame]:
    """All that is ready to leave on the WebSocket, which takes it at once."""
    frames: list[Frame] = []
    while (frame := connection.next_frame()) is not None:
        frames.append(frame)
        connection.frame_sent(now)
    return frames


def poll(connection: ServerConnection, now: float = 10.0) -> str | None:
    """What a poll is answered with; None where it is held."""
    connection.begin_poll()
    return answer(connection, now)


def answer(connection: ServerConnection, now: float = 10.0) -> str | None:
    """What the held poll is answered with now."""
    payload = connection.next_payload()
    if payload is not None:
        connection.payload_sent(payload)
    return payload
