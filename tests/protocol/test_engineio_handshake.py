"""How an Engine.IO v4 session begins: the open packet, and which requests get a session."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.engineio import (
    ClientConnection,
    Closed,
    CloseReason,
    EngineError,
    Frame,
    Handshake,
    HandshakeRefused,
    Refusal,
    ServerConnection,
    Transport,
    check_handshake,
)

from .engines import HANDSHAKE, OPEN, client, is_open, poll, polling_client, sent

POLLING, WEBSOCKET = Transport.POLLING, Transport.WEBSOCKET

# ---------------------------------------------------------------------------------------- the open packet


def test_the_open_packet_has_exactly_the_five_fields_and_comes_first() -> None:
    connection = ServerConnection(HANDSHAKE, now=0)
    connection.send("behind it")
    assert sent(connection) == [OPEN, "4behind it"]


def test_on_polling_the_first_answer_begins_with_the_open_packet() -> None:
    connection = ServerConnection(Handshake("sid-2", ("websocket",)), now=0, transport=POLLING)
    connection.send("behind it")
    assert poll(connection) == (
        '0{"sid":"sid-2","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":10000,"maxPayload":52428800}'
        "\x1e4behind it"
    )


@pytest.mark.parametrize("transport", Transport)
def test_a_ping_that_is_due_before_the_open_packet_has_left_stays_behind_it(transport: Transport) -> None:
    connection = ServerConnection(HANDSHAKE, now=10.0, transport=transport)
    connection.send("hello")
    connection.tick(10.3)
    packets = sent(connection) if transport is WEBSOCKET else (poll(connection) or "").split("\x1e")
    assert packets == [OPEN, "2", "4hello"]


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


def test_the_client_reads_the_open_packet() -> None:
    connection = client()
    assert connection.handshake == HANDSHAKE
    assert is_open(connection)
    assert ClientConnection(now=0).handshake is None


@pytest.mark.parametrize("frame", ["4early", "4" + OPEN[1:], b"early", "2", "", "0", "0{}", "1", "6"])
def test_the_client_takes_nothing_before_a_proper_open_packet(frame: Frame) -> None:
    connection = ClientConnection(now=10.0)
    [event] = connection.receive(frame, 10.0)
    assert isinstance(event, Closed)
    assert event.reason is CloseReason.PARSE_ERROR
    assert connection.closed == event


@pytest.mark.parametrize("payload", ["4early", "bAQ==", "", "6", "nonsense", "0{}"])
def test_nor_in_the_answer_to_its_first_poll(payload: str) -> None:
    connection = ClientConnection(now=10.0, transport=POLLING)
    connection.begin_poll()
    [event] = connection.receive_payload(payload, 10.0)
    assert isinstance(event, Closed)
    assert event.reason is CloseReason.PARSE_ERROR
    assert connection.closed == event


def test_the_client_takes_no_second_open_packet() -> None:
    for events in (client().receive(OPEN, 11.1), list(polling_client().receive_payload(OPEN, 11.1))):
        assert [event.reason for event in events if isinstance(event, Closed)] == [CloseReason.PARSE_ERROR]


def test_the_client_gives_up_on_a_server_that_does_not_open() -> None:
    connection = ClientConnection(now=10.0, open_timeout=5.0)
    assert connection.deadline == 15.0
    connection.tick(14.99)
    assert is_open(connection)
    connection.tick(15.0)
    assert connection.closed == Closed(CloseReason.OPEN_TIMEOUT)


# ------------------------------------------------------------------------------ which requests are accepted

GOOD = {"EIO": "4", "transport": "websocket"}
GOOD_POLL = {"EIO": "4", "transport": "polling"}


def ask(query: dict[str, str], *, method: str = "GET", is_websocket: bool = True, **others: Any) -> Refusal | None:
    """What `query` is refused with, or None."""
    others.setdefault("sessions", {})
    try:
        check_handshake(query, method=method, is_websocket=is_websocket, **others)
    except HandshakeRefused as refused:
        return refused.refusal
    return None


def test_a_handshake_is_accepted_on_both_transports_whatever_else_the_query_holds() -> None:
    for query, is_websocket in ((GOOD, True), (GOOD_POLL, False)):
        for more in ({}, {"t": "Pxyz", "b64": "1"}, {"sid": ""}):
            assert check_handshake(query | more, method="GET", is_websocket=is_websocket, sessions={}) is None


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({}, 0),
        ({"EIO": "4"}, 0),
        ({"EIO": "4", "transport": "webtransport"}, 0),
        ({"EIO": "4", "transport": ""}, 0),
        ({"EIO": "4", "transport": "WebSocket"}, 0),
        (GOOD | {"sid": "nobody"}, 1),
        ({"transport": "websocket"}, 5),
        ({"EIO": "3", "transport": "websocket"}, 5),
        ({"EIO": "abc", "transport": "websocket"}, 5),
        ({"EIO": "", "transport": "websocket"}, 5),
    ],
)
def test_a_bad_query_is_refused_by_code(query: dict[str, str], code: int) -> None:
    assert ask(query) == code
    if query.get("transport") == "websocket":
        assert ask(query | {"transport": "polling"}, is_websocket=False) == code


def test_only_the_transports_that_are_served_are_accepted() -> None:
    assert ask(GOOD_POLL, is_websocket=False, transports=["websocket"]) is Refusal.UNKNOWN_TRANSPORT
    assert ask(GOOD, transports=["polling"]) is Refusal.UNKNOWN_TRANSPORT
    assert ask(GOOD, transports=["websocket"]) is None


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "PUT", "DELETE"])
def test_a_handshake_must_be_a_get(method: str) -> None:
    assert ask(GOOD_POLL, method=method, is_websocket=False) is Refusal.BAD_HANDSHAKE_METHOD
    assert ask(GOOD, method=method) is Refusal.BAD_HANDSHAKE_METHOD


def test_the_transport_must_be_the_one_the_request_uses() -> None:
    assert ask(GOOD, is_websocket=False) is Refusal.BAD_REQUEST  # plain HTTP that says websocket
    assert ask(GOOD_POLL, is_websocket=True) is Refusal.BAD_REQUEST  # a WebSocket that says polling


@pytest.mark.parametrize(
    ("origin", "allowed", "refusal"),
    [
        (None, [], None),  # no browser
        ("https://a.example", None, None),
        ("https://a.example", ["https://a.example"], None),
        ("https://a.example", ["*"], None),
        ("https://a.example", [], Refusal.FORBIDDEN),
        ("https://a.example", ["https://b.example"], Refusal.FORBIDDEN),
        ("https://a.example.evil", ["https://a.example"], Refusal.FORBIDDEN),
        ("null", ["https://a.example"], Refusal.FORBIDDEN),
        ("https://\x01", ["*"], Refusal.BAD_REQUEST),
        ("https://\x7f", None, Refusal.BAD_REQUEST),
        ("https://ä.example", ["*"], Refusal.BAD_REQUEST),
    ],
)
def test_the_origin_of_a_browser_must_be_allowed(
    origin: str | None, allowed: list[str] | None, refusal: Refusal | None
) -> None:
    assert ask(GOOD, origin=origin, allowed_origins=allowed) is refusal
    assert ask(GOOD_POLL, is_websocket=False, origin=origin, allowed_origins=allowed) is refusal


def test_checks_come_in_the_reference_order() -> None:
    wrong = {"EIO": "3", "transport": "smoke", "sid": "nobody"}
    origin: dict[str, Any] = {"origin": "https://evil.example", "allowed_origins": []}
    assert ask(wrong, method="PUT", is_websocket=False, **origin) == 0
    wrong["transport"] = "websocket"
    assert ask(wrong, method="PUT", is_websocket=False, **origin) == 4
    assert ask(wrong, method="PUT", is_websocket=False) == 1
    assert ask(wrong, method="PUT", is_websocket=False, sessions={"nobody": POLLING}) == 3
    del wrong["sid"]
    assert ask(wrong, method="PUT", is_websocket=False) == 2
    assert ask(wrong, is_websocket=False) == 3
    assert ask(wrong) == 5


@pytest.mark.parametrize(
    ("current", "transport", "is_websocket", "accepted"),
    [
        (POLLING, "websocket", True, True),  # an upgrade
        (POLLING, "polling", False, True),  # a poll or a POST
        (WEBSOCKET, "websocket", True, True),  # a second WebSocket: opened, then closed by `begin_upgrade`
        (WEBSOCKET, "polling", False, False),  # polling after the upgrade
        (WEBSOCKET, "websocket", False, False),
        (POLLING, "websocket", False, False),
        (POLLING, "polling", True, False),
        (WEBSOCKET, "polling", True, False),
    ],
)
def test_a_request_of_a_live_session_must_fit_its_transport(
    current: Transport, transport: str, is_websocket: bool, accepted: bool
) -> None:
    for query in ({"EIO": "4", "transport": transport, "sid": "mine"}, {"transport": transport, "sid": "mine"}):
        for method in ("GET", "POST"):
            refusal = ask(query, method=method, is_websocket=is_websocket, sessions={"mine": current})
            assert refusal is (None if accepted else Refusal.BAD_REQUEST)


def test_a_request_of_a_live_session_is_told_from_a_new_one() -> None:
    sessions = {"mine": POLLING, "other": WEBSOCKET}
    found = check_handshake(GOOD_POLL | {"sid": "mine"}, method="POST", is_websocket=False, sessions=sessions)
    assert found == "mine"
    assert check_handshake(GOOD_POLL, method="GET", is_websocket=False, sessions=sessions) is None


def test_a_refusal_says_code_and_message_as_json() -> None:
    with pytest.raises(HandshakeRefused) as caught:
        check_handshake({}, method="GET", is_websocket=True, sessions={})
    assert caught.value.body == {"code": 0, "message": "Transport unknown"}
    assert str(caught.value) == "Transport unknown"
    assert [HandshakeRefused(refusal).body["message"] for refusal in Refusal] == [
        "Transport unknown",
        "Session ID unknown",
        "Bad handshake method",
        "Bad request",
        "Forbidden",
        "Unsupported protocol version",
    ]
    assert [HandshakeRefused(refusal).status for refusal in Refusal] == [400, 400, 400, 400, 403, 400]
    assert [HandshakeRefused(refusal).body["code"] for refusal in Refusal] == [0, 1, 2, 3, 4, 5]
