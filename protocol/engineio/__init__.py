"""Engine.IO protocol v4, server and client, free of I/O.

Engine.IO turns one or two transports into an ordered channel of messages that notices when the other side is gone. A
client that knows nothing of the way between starts with HTTP long-polling, which passes everywhere, and moves to a
WebSocket when it has proven one. Three rules that everything else hangs on:

    *Heartbeat.* The server opens the session with its `Handshake`, then pings every ``pingInterval``; the client
    answers each ping within ``pingTimeout``. Whoever waits longer than that for the other closes. The interval starts
    again when the answer arrives.

    *Order.* A session has one transport at a time, and what waits to be sent leaves on that one. While a client moves
    (its probe was answered, its upgrade packet has not come) nothing leaves at all: polls are answered with a noop.

    *End.* A peer that breaks a rule is closed at once, and after that nothing is taken or sent any more. Whoever waits
    for an answer gets one.

A connection object is told what arrives, and the time; it answers with events, and has what is to be sent ready where
its transport asks for it:

    WebSocket   `receive` each frame; send each `next_frame` and say `frame_sent`
    polling     GET: `begin_poll`, then answer with `next_payload` as soon as it is not None
                POST: `begin_post`, then `receive_payload` with the body
    upgrade     `begin_upgrade`, then give each frame of the WebSocket to `receive_probe`
    time        call `tick` when `deadline` has come

After each call whoever carries the connection looks at `closed`, `deadline` and what is ready to be sent. Times are
seconds of any monotonic clock; what is on the wire is in ms, as the protocol has it.

Source: https://socket.io/docs/v4/engine-io-protocol/ ("the protocol" below).
"""

from .client import ClientConnection, Opened
from .connection import (
    Closed,
    CloseReason,
    ConnectionClosed,
    Event,
    MessageReceived,
    TransportMisused,
)
from .handshake import Handshake, HandshakeRefused, Refusal, check_handshake
from .packets import (
    PROTOCOL_VERSION,
    EngineError,
    Frame,
    Packet,
    PacketType,
    Transport,
    decode_frame,
    decode_payload,
    encode_frame,
    encode_payload,
    says_goodbye,
)
from .server import ServerConnection

__all__ = [
    "PROTOCOL_VERSION",
    "ClientConnection",
    "CloseReason",
    "Closed",
    "ConnectionClosed",
    "EngineError",
    "Event",
    "Frame",
    "Handshake",
    "HandshakeRefused",
    "MessageReceived",
    "Opened",
    "Packet",
    "PacketType",
    "Refusal",
    "ServerConnection",
    "Transport",
    "TransportMisused",
    "check_handshake",
    "decode_frame",
    "decode_payload",
    "encode_frame",
    "encode_payload",
    "says_goodbye",
]
