"""Engine.IO v4, rule by rule: packets, handshake, heartbeat, closing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.engineio import (
    ClientConnection,
    Closed,
    CloseReason,
    ConnectionClosed,
    EngineError,
    Frame,
    Handshake,
    HandshakeRefused,
    MessageReceived,
    Opened,
    Packet,
    PacketType,
    PingReceived,
    ServerConnection,
    check_handshake,
    decode_frame,
    encode_frame,
)

HANDSHAKE = Handshake("sid-1", ping_interval_ms=300, ping_timeout_ms=200, max_payload=1_000_000)
OPEN = '0{"sid":"sid-1","upgrades":[],"pingInterval":300,"pingTimeout":200,"maxPayload":1000000}'

# ---------------------------------------------------------------------------------------------- packets


@pytest.mark.parametrize(
    ("packet", "frame"),
    [
        (Packet(PacketType.OPEN, "{}"), "0{}"),
        (Packet(PacketType.CLOSE), "1"),
        (Packet(PacketType.PING), "2"),
        (Packet(PacketType.PONG, "probe"), "3probe"),
        (Packet(PacketType.MESSAGE, "hello €"), "4hello €"),
        (Packet(PacketType.MESSAGE, ""), "4"),
        (Packet(PacketType.MESSAGE, b"\x01\x02"), b"\x01\x02"),
        (Packet(PacketType.MESSAGE, b""), b""),
        (Packet(PacketType.UPGRADE), "5"),
        (Packet(PacketType.NOOP), "6"),
    ],
)
def test_a_frame_is_a_digit_and_text_or_bare_bytes(packet: Packet, frame: Frame) -> None:
    assert encode_frame(packet) == frame
    assert decode_frame(frame) == packet


@given(st.builds(Packet, st.sampled_from(PacketType), st.text()) | st.builds(Packet, st.just(4), st.binary()))
def test_every_packet_survives_the_wire(packet: Packet) -> None:
    if isinstance(packet.data, bytes):
        packet = Packet(PacketType.MESSAGE, packet.data)
    assert decode_frame(encode_frame(packet)) == packet


@pytest.mark.parametrize("frame", ["", "7", "9hello", "hello", " 4", "-1", "٤hello", "²"])
def test_a_text_frame_without_a_packet_type_is_refused(frame: str) -> None:
    with pytest.raises(EngineError):
        decode_frame(frame)


def test_only_a_message_can_be_binary() -> None:
    with pytest.raises(ValueError, match="PING"):
        encode_frame(Packet(PacketType.PING, b"x"))


# -------------------------------------------------------------------------------------------- handshake


def test_the_open_packet_has_exactly_the_five_fields() -> None:
    frame = ServerConnection(HANDSHAKE, now=0).open()
    assert frame == OPEN


@given(
    st.builds(
        Handshake,
        sid=st.text(min_size=1),
        upgrades=st.lists(st.text()).map(tuple),
        ping_interval_ms=st.integers(1, 2**53),
        ping_timeout_ms=st.integers(1, 2**53),
        max_payload=st.integers(1, 2**53),
    )
)
def test_a_handshake_survives_the_wire(handshake: Handshake) -> None:
    assert Handshake.from_json(handshake.to_json()) == handshake


def test_fields_of_later_versions_are_ignored() -> None:
    assert Handshake.from_json(OPEN[1:-1] + ',"colour":"blue"}') == HANDSHAKE


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sid": 1}, "sid"),
        ({"sid": ""}, "sid"),
        ({"sid": None}, "sid"),
        ({"upgrades": None}, "upgrades"),
        ({"upgrades": [1]}, "upgrades"),
        ({"upgrades": "websocket"}, "upgrades"),
        ({"pingInterval": "300"}, "ping_interval_ms"),
        ({"pingInterval": 0}, "ping_interval_ms"),
        ({"pingInterval": True}, "ping_interval_ms"),
        ({"pingTimeout": -1}, "ping_timeout_ms"),
        ({"pingTimeout": 1.5}, "ping_timeout_ms"),
        ({"maxPayload": None}, "max_payload"),
    ],
)
def test_an_open_packet_with_a_bad_field_is_refused_by_its_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        Handshake.from_json(json.dumps(json.loads(OPEN[1:]) | change))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '"sid"', "NaN"])
def test_an_open_packet_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="open packet"):
        Handshake.from_json(text)


GOOD = {"EIO": "4", "transport": "websocket"}
POLLING_TOO = ("polling", "websocket")


def ask(
    query: dict[str, str],
    *,
    method: str = "GET",
    is_upgrade: bool = True,
    sessions: dict[str, str] | None = None,
    transports: tuple[str, ...] = ("websocket",),
) -> int | None:
    """The code `query` is refused with, or None."""
    try:
        check_handshake(query, method=method, is_upgrade=is_upgrade, sessions=sessions or {}, transports=transports)
    except HandshakeRefused as refusal:
        return refusal.code
    return None


def test_a_websocket_handshake_is_accepted() -> None:
    assert ask(GOOD) is None
    assert ask(GOOD | {"t": "Pxyz", "b64": "1"}) is None


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({}, 0),
        ({"EIO": "4"}, 0),
        ({"EIO": "4", "transport": "polling"}, 0),
        ({"EIO": "4", "transport": "webtransport"}, 0),
        ({"EIO": "4", "transport": ""}, 0),
        (GOOD | {"sid": "nobody"}, 1),
        ({"transport": "websocket"}, 5),
        ({"EIO": "3", "transport": "websocket"}, 5),
        ({"EIO": "abc", "transport": "websocket"}, 5),
        ({"EIO": "", "transport": "websocket"}, 5),
    ],
)
def test_a_bad_query_is_refused_by_code(query: dict[str, str], code: int) -> None:
    assert ask(query) == code


def test_a_handshake_must_be_a_get() -> None:
    assert ask(GOOD, method="POST", is_upgrade=False) == 2
    assert ask(GOOD, method="OPTIONS") == 2


def test_the_transport_must_be_the_one_the_request_uses() -> None:
    assert ask(GOOD, is_upgrade=False) == 3  # plain HTTP that says websocket
    assert ask(GOOD | {"transport": "polling"}, transports=POLLING_TOO) == 3  # a WebSocket that says polling


def test_checks_come_in_the_reference_order() -> None:
    everything_wrong = {"EIO": "3", "transport": "smoke", "sid": "nobody"}
    assert ask(everything_wrong, method="PUT", is_upgrade=False) == 0
    assert ask(everything_wrong | {"transport": "websocket"}, method="PUT", is_upgrade=False) == 1
    assert ask({"EIO": "3", "transport": "websocket"}, method="PUT", is_upgrade=False) == 2
    assert ask({"EIO": "3", "transport": "websocket"}, is_upgrade=False) == 3
    assert ask({"EIO": "3", "transport": "websocket"}) == 5


@pytest.mark.parametrize(
    ("current", "transport", "is_upgrade", "code"),
    [
        ("polling", "websocket", True, None),  # an upgrade
        ("polling", "polling", False, None),  # a poll
        ("websocket", "websocket", True, 3),  # a second WebSocket
        ("websocket", "polling", False, 3),  # polling after the upgrade
        ("websocket", "websocket", False, 3),
        ("polling", "websocket", False, 3),
        ("polling", "polling", True, 3),
    ],
)
def test_a_request_of_a_live_session_must_fit_its_transport(
    current: str, transport: str, is_upgrade: bool, code: int | None
) -> None:
    query = {"EIO": "4", "transport": transport, "sid": "mine"}
    assert ask(query, is_upgrade=is_upgrade, sessions={"mine": current}, transports=POLLING_TOO) == code


def test_a_refusal_says_code_and_message_as_json() -> None:
    with pytest.raises(HandshakeRefused) as caught:
        check_handshake({}, method="GET", is_upgrade=True, sessions={})
    assert caught.value.body == {"code": 0, "message": "Transport unknown"}
    assert [HandshakeRefused(code).message for code in range(6)] == [
        "Transport unknown",
        "Session ID unknown",
        "Bad handshake method",
        "Bad request",
        "Forbidden",
        "Unsupported protocol version",
    ]
    assert caught.value.status == 400
    assert HandshakeRefused(4, status=403).status == 403


# --------------------------------------------------------------------------------------- the server's end


def server() -> ServerConnection:
    return ServerConnection(HANDSHAKE, now=10.0)


def test_the_server_pings_after_each_interval_and_the_interval_restarts_with_the_pong() -> None:
    connection = server()
    assert connection.deadline == pytest.approx(10.3)
    assert connection.tick(10.29) == []
    assert connection.tick(10.3) == ["2"]
    assert connection.deadline == pytest.approx(10.5)
    assert connection.receive("3", 10.45) == []
    assert connection.deadline == pytest.approx(10.75)
    assert connection.tick(10.5) == []
    assert connection.tick(10.75) == ["2"]
    assert connection.closed is None


def test_a_client_that_does_not_answer_in_time_is_closed() -> None:
    connection = server()
    connection.tick(10.3)
    assert connection.tick(10.49) == []
    assert not connection.closed
    assert connection.tick(10.5) == []
    assert connection.closed is CloseReason.PING_TIMEOUT
    assert connection.deadline == math.inf


def test_messages_do_not_stand_in_for_a_pong() -> None:
    connection = server()
    connection.tick(10.3)
    assert connection.receive("4hello", 10.4) == [MessageReceived("hello")]
    connection.tick(10.5)
    assert connection.closed is CloseReason.PING_TIMEOUT


def test_a_pong_nobody_waits_for_is_ignored() -> None:
    connection = server()
    assert connection.receive("3", 10.1) == []
    assert connection.deadline == pytest.approx(10.3)  # and puts nothing off
    assert connection.closed is None


def test_a_ping_from_a_client_closes() -> None:
    connection = server()
    [event] = connection.receive("2", 10.1)
    assert isinstance(event, Closed)
    assert event.reason is CloseReason.PARSE_ERROR
    assert "ping" in event.detail


@pytest.mark.parametrize("frame", ["2probe", "", "7", "nonsense"])
def test_a_frame_that_is_no_packet_closes(frame: str) -> None:
    connection = server()
    [event] = connection.receive(frame, 10.1)
    assert isinstance(event, Closed)
    assert event.reason is connection.closed is CloseReason.PARSE_ERROR


def test_a_close_packet_closes_at_once() -> None:
    connection = server()
    assert connection.receive("1", 10.1) == [Closed(CloseReason.CLIENT_CLOSE)]
    assert connection.closed is CloseReason.CLIENT_CLOSE


@pytest.mark.parametrize("frame", ["0{}", "5", "6"])
def test_packets_without_a_meaning_on_an_open_websocket_are_ignored(frame: str) -> None:
    connection = server()
    assert connection.receive(frame, 10.1) == []
    assert connection.closed is None


def test_messages_go_both_ways_as_they_are() -> None:
    connection = server()
    assert connection.receive("4", 10.1) == [MessageReceived("")]
    assert connection.receive(b"\x04\x00", 10.1) == [MessageReceived(b"\x04\x00")]
    assert connection.send("hello") == "4hello"
    assert connection.send(b"\x04\x00") == b"\x04\x00"


@pytest.mark.parametrize("make", [server, lambda: ClientConnection(10.0)])
def test_nothing_is_taken_or_sent_after_the_end(make: Any) -> None:
    connection = make()
    connection.close(CloseReason.TRANSPORT_CLOSE)
    connection.close(CloseReason.SHUTTING_DOWN)  # the first reason stands
    assert connection.closed is CloseReason.TRANSPORT_CLOSE
    assert connection.receive("4late", 11.0) == []
    assert connection.receive("", 11.0) == []
    assert connection.tick(99.0) == []
    with pytest.raises(ConnectionClosed, match="transport close") as caught:
        connection.send("late")
    assert caught.value.reason is CloseReason.TRANSPORT_CLOSE


# --------------------------------------------------------------------------------------- the client's end


def client() -> ClientConnection:
    connection = ClientConnection(now=10.0)
    assert connection.receive(OPEN, 11.0) == [Opened(HANDSHAKE)]
    return connection


def test_the_client_reads_the_open_packet() -> None:
    connection = client()
    assert connection.handshake == HANDSHAKE
    assert connection.deadline == pytest.approx(11.5)  # one interval and one timeout


def test_the_client_answers_pings_and_each_puts_the_deadline_off() -> None:
    connection = client()
    assert connection.receive("2", 11.4) == [PingReceived("3")]
    assert connection.deadline == pytest.approx(11.9)
    assert connection.receive("2x", 11.5) == [PingReceived("3x")]


def test_the_client_gives_up_on_a_server_that_does_not_ping() -> None:
    connection = client()
    connection.receive("4hello", 11.4)
    connection.tick(11.49)
    assert not connection.closed
    connection.tick(11.5)
    assert connection.closed is CloseReason.PING_TIMEOUT


def test_the_client_gives_up_on_a_server_that_does_not_open() -> None:
    connection = ClientConnection(now=10.0, open_timeout=5.0)
    assert connection.deadline == 15.0
    connection.tick(15.0)
    assert connection.closed is CloseReason.OPEN_TIMEOUT


@pytest.mark.parametrize("frame", ["4early", "4" + OPEN[1:], b"early", "2", "", "0", "0{}"])
def test_the_client_takes_nothing_before_a_proper_open_packet(frame: Frame) -> None:
    connection = ClientConnection(now=10.0)
    [event] = connection.receive(frame, 10.0)
    assert isinstance(event, Closed)
    assert event.reason is connection.closed is CloseReason.PARSE_ERROR


def test_the_client_closes_on_a_second_open_and_when_told_to() -> None:
    [event] = client().receive(OPEN, 11.1)
    assert isinstance(event, Closed)
    assert event.reason is CloseReason.PARSE_ERROR
    assert client().receive("1", 11.1) == [Closed(CloseReason.SERVER_CLOSE)]


def test_the_client_takes_messages_and_ignores_noops() -> None:
    connection = client()
    assert connection.receive("4hello", 11.1) == [MessageReceived("hello")]
    assert connection.receive(b"raw", 11.1) == [MessageReceived(b"raw")]
    assert connection.receive("6", 11.1) == []
    assert connection.closed is None


# --------------------------------------------------------------------------------------------- together


@given(st.floats(0.0, 0.199), st.lists(st.text() | st.binary(), max_size=5))
def test_a_client_that_answers_in_time_is_never_closed(delay: float, messages: list[str | bytes]) -> None:
    ours, theirs = ServerConnection(HANDSHAKE, 0.0), ClientConnection(0.0)
    theirs.receive(ours.open(), 0.0)
    for message in messages:
        now = ours.deadline
        [ping] = ours.tick(now)
        [event] = theirs.receive(ping, now)
        assert isinstance(event, PingReceived)
        assert ours.receive(event.pong, now + delay) == []
        assert theirs.receive(ours.send(message), now) == [MessageReceived(message)]
        assert ours.receive(theirs.send(message), now + delay) == [MessageReceived(message)]
        theirs.tick(now + delay)
    assert ours.closed is theirs.closed is None


@given(st.lists(st.text(max_size=8) | st.binary(max_size=8) | st.sampled_from([OPEN, "1", "2", "3"]), max_size=12))
def test_whatever_arrives_the_only_answer_is_an_event(frames: list[Frame]) -> None:
    for connection in (ServerConnection(HANDSHAKE, 0.0), ClientConnection(0.0)):
        closed = False
        for now, frame in enumerate(frames):
            events = connection.receive(frame, float(now))
            assert not (closed and events), "something came after the end"
            closed = closed or any(isinstance(event, Closed) for event in events)
            assert closed == (connection.closed is not None)
