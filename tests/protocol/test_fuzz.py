"""Random and mutated frames, from the socket's edge to the contract: only the protocol's own errors come out."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.dubbing import SERVER_EVENTS, WORKER_EVENTS, parse
from protocol.engineio import Frame, Handshake, MessageReceived, ServerConnection
from protocol.errors import PayloadError
from protocol.socketio import ClientSocket, ConnectRequested, EventReceived, ServerSocket
from protocol.socketio.packets import Decoder, Limits, SocketError, encode

LIMITS = Limits(packet_bytes=2_000, values=200, nesting=8, namespace_characters=20)

pytestmark = pytest.mark.slow

VALID = [
    "40",
    '40{"token":"x"}',
    "40/custom,",
    "41",
    "41/custom,",
    '42["stream:init",{"stream_id":"s","worker_id":"w","config":{"source_language":"en","target_language":"es",'
    '"voice_profile":"v","chunk_duration_ms":6000,"sample_rate_hz":48000,"channels":2,"format":"m4a"}}]',
    '427["fragment:data",{"fragment_id":"f","stream_id":"s","sequence_number":0,"timestamp":1,"audio":{"format":'
    '"pcm_s16le","sample_rate_hz":8000,"channels":1,"duration_ms":0,"data_base64":""},"metadata":{"pts_ns":[1]}}]',
    '42["fragment:ack",{"fragment_id":"f","status":"received","timestamp":1.0}]',
    '451-/custom,12["x",{"_placeholder":true,"num":0}]',
    '461-3[{"_placeholder":true,"num":0}]',
    '430["fine",-1.5e3,"\\u20ac"]',
    '44{"message":"no"}',
    "3",
    "2probe",
]

scraps = st.sampled_from([*'012456-/,[]{}"\\: \x00\ud800€٣', "9" * 30, "[" * 50, "null", "true", "NaN", "1e999"]) | (
    st.sampled_from(['{"_placeholder":true,"num":0}', '"connect"', "/custom,"])
)


@st.composite
def mutated(draw: st.DrawFn) -> Frame:
    """A valid frame with a few pieces cut, doubled or put in."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 6)))
        piece = draw(st.sampled_from(["", text[start:end] * 2]) | scraps)
        text = text[:start] + piece + text[end:]
    return text


frames = mutated() | st.lists(scraps, max_size=12).map("".join) | st.text(max_size=20) | st.binary(max_size=20)


@settings(max_examples=300)
@given(st.lists(frames, min_size=1, max_size=12))
@example(["40", '42["x",' + "[" * 1000, "4"])
@example(["40", '451-["x"]', b"", b""])
def test_a_server_meets_whatever_arrives_with_its_own_errors_alone(arriving: list[Frame]) -> None:
    connection = ServerConnection(Handshake("sid"), now=0.0)
    socket = ServerSocket(LIMITS)
    for frame in arriving:
        for message in connection.receive(frame, 0.0):
            if not isinstance(message, MessageReceived):
                return
            try:
                events = socket.receive(message.data)
            except SocketError:
                return
            for event in events:
                if isinstance(event, ConnectRequested):
                    socket.accept(event.namespace, "sid")
                elif isinstance(event, EventReceived):
                    offer_to_the_contract(event)
                    socket.ack(event.namespace, event.ack_id or "0", *event.args)  # what came can be sent back


@settings(max_examples=150)
@given(st.lists(frames, min_size=1, max_size=12))
def test_so_does_a_client(arriving: list[Frame]) -> None:
    socket = ClientSocket(LIMITS)
    socket.connect("/")
    socket.connect("/custom")
    for frame in ['0{"sid":"x"}', *arriving]:
        try:
            socket.receive(frame[1:] if isinstance(frame, str) and frame.startswith("4") else frame)
        except SocketError:
            return


@settings(max_examples=300)
@given(st.lists(frames.map(lambda frame: frame[1:]), max_size=6))
def test_what_a_decoder_takes_is_within_the_limits_and_can_be_encoded_again(arriving: list[Frame]) -> None:
    decoder = Decoder(LIMITS)
    for message in arriving:
        try:
            packet = decoder.feed(message)
        except SocketError:
            return
        if packet is not None:
            assert packet.namespace.startswith("/")
            encoded = encode(packet, LIMITS)
            assert len(encoded) <= 1 + LIMITS.attachments


def offer_to_the_contract(event: EventReceived) -> None:
    for cls in (*WORKER_EVENTS.values(), *SERVER_EVENTS.values()):
        with suppress(PayloadError):
            parse(cls, event.args)
