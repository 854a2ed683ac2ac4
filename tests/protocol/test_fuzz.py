"""Random and mutated frames, from the socket's edge to the contract: only the protocol's own errors come out."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.dubbing import SERVER_EVENTS, WORKER_EVENTS, parse
from protocol.engineio import ClientConnection, Frame, Handshake, MessageReceived, ServerConnection
from protocol.errors import PayloadError
from protocol.socketio import ClientSocket, ConnectRequested, EventReceived, Message, RecoveryLog, ServerSocket
from protocol.socketio.packets import Decoder, Limits, SocketError, encode

from . import fuzz
from .cases import cases

LIMITS = Limits(packet_bytes=2_000, values=200, nesting=8, namespace_characters=20)

pytestmark = pytest.mark.slow

CASES = 600

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


def test_hostile_bytes_harm_no_layer() -> None:
    """For as long as one likes: ``python -m tests.protocol.fuzz``."""
    for case in islice(cases(seed=1), CASES):
        fuzz.run_within_bounds(case)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_case(case: bytes) -> None:
    fuzz.run(case)


def test_the_cases_of_a_seed_are_the_same_ones() -> None:
    assert list(islice(cases(7), 50)) == list(islice(cases(7), 50)) != list(islice(cases(8), 50))


def test_the_cases_get_through_to_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = set()

    def watch(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if result is not None and result != []:
                reached.add(name)
            return result

        monkeypatch.setattr(owner, name, watched)

    deep = {
        "accept": ServerSocket,  # a CONNECT was understood
        "ack": ServerSocket,  # an event
        "since": RecoveryLog,
        "next_payload": ServerConnection,
        "receive_probe": ServerConnection,
        "next_frame": ClientConnection,
        "finish_upgrade": ClientConnection,
        "receive": ClientSocket,
        "parse": fuzz,  # the contract
        "check_handshake": fuzz,
    }
    for name, owner in deep.items():
        watch(owner, name)
    for case in islice(cases(seed=1), CASES):
        fuzz.run(case)
    assert reached == set(deep)


@pytest.mark.parametrize("defect", [IndexError("planted"), RecursionError("planted"), AssertionError("planted")])
def test_a_defect_is_found_and_can_be_shown_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], defect: Exception
) -> None:
    receive = ServerSocket.receive

    def defective(socket: ServerSocket, message: Message) -> Any:
        if message == "1/custom,":
            raise defect
        return receive(socket, message)

    monkeypatch.setattr(ServerSocket, "receive", defective)
    with pytest.raises(type(defect), match="planted"):
        fuzz.main(["--seconds", "60", "--seed", "1"])
    case = capsys.readouterr().err.split()[-1]
    with pytest.raises(type(defect), match="planted"):
        fuzz.main(["--case", case])
    monkeypatch.undo()
    assert fuzz.main(["--case", case]) == 0


def test_a_case_that_takes_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hoard(socket: ServerSocket, message: Message) -> list[object]:
        return [bytes(fuzz.CASE_MEMORY)]

    monkeypatch.setattr(ServerSocket, "receive", hoard)
    with pytest.raises(fuzz.TooMuch):
        fuzz.run_within_bounds(b"\x00t40")


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
