"""An Engine.IO v4 session over HTTP long-polling: what answers a GET, what a POST does, and who misuses either."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.engineio import (
    ClientConnection,
    Closed,
    CloseReason,
    ConnectionClosed,
    Handshake,
    MessageReceived,
    Opened,
    ServerConnection,
    Transport,
    TransportMisused,
    encode_payload,
)
from protocol.engineio.packets import Packet, PacketType

from .engines import POLLING_HANDSHAKE, answer, is_open, poll, polling_client, polling_server


def post(connection: ServerConnection, body: bytes | str) -> list[object]:
    """The events of one POST."""
    connection.begin_post("text/plain;charset=UTF-8")
    return list(connection.receive_payload(body.encode() if isinstance(body, str) else body, 10.1))


# ----------------------------------------------------------------------------------------- the server's GET


def test_a_poll_is_held_until_there_is_something_to_send() -> None:
    connection = polling_server()
    held = [connection.is_polled]
    assert poll(connection) is None
    assert connection.next_payload() is None
    held.append(connection.is_polled)
    connection.send("hello")
    assert answer(connection) == "4hello"
    assert [*held, connection.is_polled] == [False, True, False]
    assert not connection.has_unsent
    assert connection.next_payload() is None  # nothing is held any more


def test_what_waits_is_kept_for_the_next_poll() -> None:
    connection = polling_server()
    connection.send("a")
    connection.send(b"\x01")
    connection.send("b")
    assert connection.next_payload() is None
    assert poll(connection) == "4a\x1ebAQ==\x1e4b"
    assert poll(connection) is None


def test_a_poll_brings_no_more_packets_than_python_clients_read() -> None:
    connection = polling_server()
    for number in range(40):
        connection.send(f"{number}")
    answers = [(poll(connection) or "").split("\x1e") for _ in range(3)]
    assert [len(packets) for packets in answers] == [16, 16, 8]
    assert [packet for packets in answers for packet in packets] == [f"4{number}" for number in range(40)]
    assert poll(connection) is None


def test_the_packets_of_a_poll_are_a_setting() -> None:
    connection = polling_server(packets_per_poll=2)
    for message in "abc":
        connection.send(message)
    assert poll(connection) == "4a\x1e4b"
    assert poll(connection) == "4c"


@pytest.mark.parametrize("message", ["x" * 48, "é" * 24, b"x" * 35, b"x" * 36])  # each 49 bytes of payload
def test_a_payload_is_no_longer_than_the_handshake_says(message: str | bytes) -> None:
    connection = polling_server()  # of 100 bytes
    for _ in range(3):
        connection.send(message)
    one = encode_payload([Packet(PacketType.MESSAGE, message)])
    assert len(one.encode()) == 49
    assert poll(connection) == f"{one}\x1e{one}"
    assert poll(connection) == one
    connection.send(message)
    connection.send("é" * 26)  # 53 bytes: two too many
    assert poll(connection) == one
    assert poll(connection) == "4" + "é" * 26


def test_a_message_longer_than_that_travels_alone() -> None:
    connection = polling_server()
    for message in ("a", "x" * 200, "b"):
        connection.send(message)
    assert poll(connection) == "4a"
    assert poll(connection) == "4" + "x" * 200
    assert poll(connection) == "4b"


def test_nothing_leaves_on_a_websocket_that_is_not_there() -> None:
    connection = polling_server()
    connection.send("hello")
    assert connection.next_frame() is None
    assert poll(connection) == "4hello"


def test_polls_that_overlap_end_the_session_and_the_held_one_is_told() -> None:
    connection = polling_server()
    assert poll(connection) is None
    with pytest.raises(TransportMisused, match="overlapping polls"):
        connection.begin_poll()
    assert connection.closed == Closed(CloseReason.TRANSPORT_ERROR, "overlapping polls")
    assert answer(connection) == "1"
    assert connection.next_payload() is None
    with pytest.raises(ConnectionClosed):
        connection.begin_poll()


@pytest.mark.parametrize(
    "end",
    [
        lambda connection: connection.close(CloseReason.SERVER_CLOSE),
        lambda connection: connection.close(CloseReason.PARSE_ERROR, "a broken rule"),
        lambda connection: connection.close(CloseReason.CONNECT_TIMEOUT),
        lambda connection: connection.send("x" * 100_000),
        lambda connection: post(connection, "2"),
        lambda connection: post(connection, "nonsense"),
        lambda connection: (connection.tick(10.3), answer(connection), connection.begin_poll(), connection.tick(10.5)),
    ],
)
def test_the_held_poll_is_told_of_every_end(end: Callable[[ServerConnection], object]) -> None:
    connection = polling_server(max_queue_bytes=50_000)
    assert poll(connection) is None
    end(connection)
    assert connection.closed is not None
    assert answer(connection) == "1"
    assert answer(connection) is None
    with pytest.raises(ConnectionClosed) as caught:
        connection.begin_poll()
    assert caught.value.reason is connection.closed.reason


# ---------------------------------------------------------------------------------------- the server's POST


def test_a_post_brings_packets_in_order() -> None:
    connection = polling_server()
    assert post(connection, "4a\x1ebAQI=\x1e6\x1e4€") == [
        MessageReceived("a"),
        MessageReceived(b"\x01\x02"),
        MessageReceived("€"),
    ]
    assert is_open(connection)


def test_a_post_may_bring_any_number_of_packets() -> None:
    connection = polling_server()
    assert len(post(connection, "\x1e".join(["4x"] * 500))) == 500
    assert is_open(connection)


def test_posts_come_one_after_the_other_beside_a_held_poll() -> None:
    connection = polling_server()
    assert poll(connection) is None
    for _ in range(3):
        assert post(connection, "4x") == [MessageReceived("x")]
    assert answer(connection) is None


def test_posts_that_overlap_end_the_session() -> None:
    connection = polling_server()
    assert poll(connection) is None
    connection.begin_post()
    with pytest.raises(TransportMisused, match="overlapping posts"):
        connection.begin_post()
    assert connection.closed == Closed(CloseReason.TRANSPORT_ERROR, "overlapping posts")
    assert answer(connection) == "1"
    assert list(connection.receive_payload(b"4the first one", 10.1)) == []
    with pytest.raises(ConnectionClosed):
        connection.begin_post()


@pytest.mark.parametrize(
    "content_type", ["application/octet-stream", "Application/Octet-Stream", " application/octet-stream ; q=1"]
)
def test_a_post_of_bytes_ends_the_session(content_type: str) -> None:
    connection = polling_server()
    with pytest.raises(TransportMisused, match="binary"):
        connection.begin_post(content_type)
    assert connection.closed == Closed(CloseReason.TRANSPORT_ERROR, "binary payload")


@pytest.mark.parametrize("content_type", ["", "text/plain", "text/plain;charset=UTF-8", "application/json"])
def test_any_other_type_is_text(content_type: str) -> None:
    connection = polling_server()
    connection.begin_post(content_type)
    assert list(connection.receive_payload(b"4x", 10.1)) == [MessageReceived("x")]


def test_a_post_that_was_too_long_leaves_the_session_as_it_was() -> None:
    connection = polling_server()
    connection.begin_post()
    connection.abandon_post()
    assert is_open(connection)
    assert post(connection, "4x") == [MessageReceived("x")]


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b"", "empty packet"),
        (b"nonsense", "unknown packet type"),
        (b"7", "unknown packet type"),
        (b"\x1e", "empty packet"),
        (b"bAQ", "invalid base64"),
        (b"b!!!!", "invalid base64"),
        (b"4\xff", "payload is not UTF-8"),
        (b"4\xed\xa0\x80", "payload is not UTF-8"),
        (b"2", "ping from a client"),
        (b"2probe", "ping from a client"),
    ],
)
def test_a_bad_packet_in_a_post_ends_the_session(body: bytes, rule: str) -> None:
    connection = polling_server()
    assert post(connection, body) == [Closed(CloseReason.PARSE_ERROR, rule)]
    assert connection.closed == Closed(CloseReason.PARSE_ERROR, rule)


def test_what_came_before_a_bad_packet_counts_and_what_comes_after_does_not() -> None:
    connection = polling_server()
    assert post(connection, "4a\x1e7\x1e4b") == [
        MessageReceived("a"),
        Closed(CloseReason.PARSE_ERROR, "unknown packet type"),
    ]


@pytest.mark.parametrize("rest", ["", "\x1e4late", "\x1e1", "\x1enonsense", "\x1e"])
def test_the_end_is_told_once_whatever_follows_in_the_post(rest: str) -> None:
    connection = polling_server()
    assert post(connection, "4a\x1e1" + rest) == [MessageReceived("a"), Closed(CloseReason.CLIENT_CLOSE)]
    assert connection.closed == Closed(CloseReason.CLIENT_CLOSE)


def test_nothing_is_taken_once_the_one_who_reads_has_closed() -> None:
    connection = polling_server()
    connection.begin_post()
    events = connection.receive_payload(b"4a\x1e4b\x1enonsense", 10.1)
    assert next(events) == MessageReceived("a")
    connection.close(CloseReason.PARSE_ERROR, "a rule of Socket.IO")
    assert list(events) == []
    assert connection.closed == Closed(CloseReason.PARSE_ERROR, "a rule of Socket.IO")


@pytest.mark.parametrize("body", [b"4x", b"nonsense", b"\xff"])
def test_a_body_that_comes_after_the_end_is_nothing(body: bytes) -> None:
    connection = polling_server()
    connection.begin_post()
    connection.close(CloseReason.SHUTTING_DOWN)
    assert list(connection.receive_payload(body, 10.1)) == []
    assert connection.closed == Closed(CloseReason.SHUTTING_DOWN)


def test_a_goodbye_releases_the_held_poll_and_is_the_end() -> None:
    connection = polling_server()
    assert poll(connection) is None
    assert post(connection, "1") == [Closed(CloseReason.CLIENT_CLOSE)]
    assert answer(connection) == "6"
    with pytest.raises(ConnectionClosed, match="client close"):
        connection.begin_poll()
    with pytest.raises(ConnectionClosed):
        connection.begin_post()


# ------------------------------------------------------------------------------------------------ the client


def test_the_client_polls_from_the_beginning_one_poll_at_a_time() -> None:
    connection = ClientConnection(10.0, transport=Transport.POLLING)
    wanted = [connection.wants_poll]
    connection.begin_poll()
    wanted.append(connection.wants_poll)
    payload = "0" + POLLING_HANDSHAKE.to_json() + "\x1e4hello\x1ebAQ=="
    assert list(connection.receive_payload(payload, 11.0)) == [
        Opened(POLLING_HANDSHAKE),
        MessageReceived("hello"),
        MessageReceived(b"\x01"),
    ]
    assert [*wanted, connection.wants_poll] == [True, False, True]


def test_the_client_posts_nothing_before_the_session_is_open() -> None:
    connection = ClientConnection(10.0, transport=Transport.POLLING)
    connection.send("early")
    assert connection.next_payload() is None
    connection.begin_poll()
    list(connection.receive_payload("0" + POLLING_HANDSHAKE.to_json(), 11.0))
    assert connection.next_payload() == "4early"


def test_the_client_posts_what_waits_one_post_at_a_time() -> None:
    connection = polling_client()
    assert connection.next_payload() is None
    connection.send("a")
    connection.send(b"\x01")
    assert connection.next_payload() == "4a\x1ebAQ=="
    connection.send("b")
    assert connection.next_payload() is None
    connection.payload_sent()
    assert connection.next_payload() == "4b"
    assert connection.next_frame() is None


def test_the_client_posts_any_number_of_packets_but_no_more_bytes_than_the_server_takes() -> None:
    connection = polling_client(Handshake("sid-1", max_payload=99))
    for _ in range(40):
        connection.send("xx")
    bodies = []
    while (body := connection.next_payload()) is not None:
        bodies.append(body)
        connection.payload_sent()
    assert "\x1e".join(bodies) == "\x1e".join(["4xx"] * 40)
    assert [len(body) for body in bodies] == [95, 63]
    assert all(len(body) <= 99 for body in bodies)


def test_the_client_does_not_poll_once_closed() -> None:
    connection = polling_client()
    connection.close(CloseReason.TRANSPORT_CLOSE)
    assert not connection.wants_poll
    connection.begin_poll()
    for late in ("4late", "nonsense"):
        assert list(connection.receive_payload(late, 11.1)) == []
    assert connection.closed == Closed(CloseReason.TRANSPORT_CLOSE)


@pytest.mark.parametrize("rest", ["", "\x1e4late", "\x1enonsense"])
def test_the_client_closes_on_the_servers_goodbye(rest: str) -> None:
    connection = polling_client()
    assert list(connection.receive_payload("4last\x1e1" + rest, 11.1)) == [
        MessageReceived("last"),
        Closed(CloseReason.SERVER_CLOSE),
    ]


@pytest.mark.parametrize("payload", ["", "nonsense", "b!", "4a\x1e\x1e4b"])
def test_the_client_closes_on_an_answer_that_is_no_payload(payload: str) -> None:
    connection = polling_client()
    *_, last = connection.receive_payload(payload, 11.1)
    assert isinstance(last, Closed)
    assert last.reason is CloseReason.PARSE_ERROR
    assert connection.closed == last


def test_the_client_takes_nothing_once_the_one_who_reads_has_closed() -> None:
    connection = polling_client()
    events = connection.receive_payload("4a\x1e4b", 11.1)
    assert next(events) == MessageReceived("a")
    connection.close(CloseReason.CLIENT_CLOSE)
    assert list(events) == []


def test_a_noop_only_ends_the_poll() -> None:
    connection = polling_client()
    connection.begin_poll()
    assert list(connection.receive_payload("6", 11.1)) == []
    assert connection.wants_poll


def test_a_post_without_messages_is_short() -> None:
    """Millions of noops would hold a server up, which takes a step for each message only."""
    connection = polling_server()
    assert post(connection, "\x1e".join(["6"] * 100)) == []
    assert is_open(connection)
    [event] = post(connection, "\x1e".join(["6"] * 101))
    assert isinstance(event, Closed)
    assert event.reason is CloseReason.PARSE_ERROR
    busy = polling_server()
    assert len(post(busy, "\x1e".join(["4x"] * 500))) == 500
    assert is_open(busy)


def test_one_answer_leaves_at_a_time_whatever_is_answered_beside_it() -> None:
    """Else a client that does not read could have many held for it, none of them counted."""
    connection = polling_server()
    connection.send("first")
    connection.begin_poll()
    first = connection.next_payload()
    assert first == "4first"
    assert connection.has_unsent
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    assert poll(connection) == "6"  # and that has left
    connection.abandon_upgrade()
    connection.send("second")
    assert poll(connection) is None
    connection.payload_sent(first)
    assert answer(connection) == "4second"
    assert not connection.has_unsent
