"""Socket.IO v5, rule by rule: joining, leaving, events, acknowledgements, and what closes a connection."""

from __future__ import annotations

import pytest

from protocol.socketio import (
    INVALID_NAMESPACE,
    AckReceived,
    ClientSocket,
    Connected,
    ConnectRefused,
    ConnectRequested,
    Disconnected,
    EventReceived,
    NotJoined,
    ServerSocket,
)
from protocol.socketio.packets import Limits, Message, SocketError

PLACE = '{"_placeholder":true,"num":0}'


def joined_server(*namespaces: str) -> ServerSocket:
    """A server whose client has joined `namespaces`, by default ``/``."""
    socket = ServerSocket()
    for namespace in namespaces or ("/",):
        socket.receive(f"0{namespace},")
        socket.accept(namespace, "sid-" + namespace)
    return socket


def joined_client(*namespaces: str) -> ClientSocket:
    socket = ClientSocket()
    for namespace in namespaces or ("/",):
        socket.connect(namespace)
        socket.receive(f'0{namespace},{{"sid":"sid-{namespace}"}}')
    return socket


# ------------------------------------------------------------------------------------ joining, the server


def test_a_client_joins_with_connect_and_is_answered_with_its_sid() -> None:
    socket = ServerSocket()
    assert not socket.connected
    assert not socket.is_joined("/")
    assert socket.receive('0{"token":"x"}') == [ConnectRequested("/", {"token": "x"})]
    assert not socket.is_joined("/")
    assert socket.accept("/", "abc") == ['0{"sid":"abc"}']
    assert socket.is_joined("/")
    assert socket.connected


def test_no_auth_is_an_empty_object() -> None:
    assert ServerSocket().receive("0") == [ConnectRequested("/", {})]
    assert ServerSocket().receive("0/custom,{}") == [ConnectRequested("/custom", {})]
    assert ServerSocket().receive("0/custom") == [ConnectRequested("/custom", {})]


def test_an_unknown_namespace_is_refused_and_the_connection_goes_on() -> None:
    socket = ServerSocket()
    socket.receive("0/nowhere,")
    assert socket.reject("/nowhere", INVALID_NAMESPACE) == ['4/nowhere,{"message":"Invalid namespace"}']
    assert not socket.connected
    assert socket.receive("0/nowhere") == [ConnectRequested("/nowhere", {})]  # it may ask again
    socket.reject("/nowhere", INVALID_NAMESPACE)
    assert socket.receive("0") == [ConnectRequested("/", {})]


def test_a_refusal_may_carry_data() -> None:
    socket = ServerSocket()
    socket.receive('0{"token":"wrong"}')
    assert socket.reject("/", "wrong token", {"code": "AUTH_FAILED"}) == [
        '4{"message":"wrong token","data":{"code":"AUTH_FAILED"}}'
    ]


def test_a_request_is_answered_once() -> None:
    socket = joined_server()
    with pytest.raises(ValueError, match="no request"):
        socket.accept("/", "again")
    with pytest.raises(ValueError, match="no request"):
        socket.reject("/", "too late")
    with pytest.raises(ValueError, match="no request"):
        socket.accept("/never", "asked")


# ------------------------------------------------------------------------- what closes the connection


@pytest.mark.parametrize(
    "message",
    [
        "7",  # unknown packet type
        "",
        '2["x"',  # invalid JSON
        '2["x"]x',
        '2["x",NaN]',
        "2{}",
        "2[]",
        "2",
        "2[null]",  # event name
        "2[{}]",
        "2[true]",
        '2["connect"]',
        '2["disconnecting"]',
        "0",  # duplicate CONNECT
        '0{"token":"x"}',
        '4{"message":"no"}',  # CONNECT_ERROR from a client
        '2/custom,["x"]',  # a namespace not joined
        "3/custom,1[]",
        "1/custom,",
        "1{}",
        "0/custom,[]",
        "31{}",
        '5["x"]',  # attachment counts
        '51["x"]',
        '5-1-["x"]',
        '51.5-["x"]',
        '511-["x"]',
        f'51-["x",{PLACE.replace("0", "1")}]',  # out of range
        '5999999999999-["x"]',
        f'2{"1" * 21}["x"]',
        b"nobody announced this",
    ],
)
def test_a_broken_rule_closes_a_joined_connection(message: Message) -> None:
    with pytest.raises(SocketError):
        joined_server().receive(message)


@pytest.mark.parametrize("message", ['2["x"]', "30[]", "1", f'51-["x",{PLACE}]', f"61-0[{PLACE}]", b"x"])
def test_nothing_may_come_before_connect(message: Message) -> None:
    with pytest.raises(SocketError):
        ServerSocket().receive(message)


@pytest.mark.parametrize("message", ['2["x"]', "30[]", "1", "0", f'51-["x",{PLACE}]'])
def test_nothing_may_come_between_connect_and_its_answer(message: str) -> None:
    socket = ServerSocket()
    socket.receive("0")
    with pytest.raises(SocketError):
        socket.receive(message)


def test_nothing_may_come_after_a_refusal() -> None:
    socket = ServerSocket()
    socket.receive("0")
    socket.reject("/", "no")
    with pytest.raises(SocketError):
        socket.receive('2["x"]')


def test_text_while_an_attachment_is_pending_closes() -> None:
    socket = joined_server()
    socket.receive('51-["x"]')
    with pytest.raises(SocketError, match="pending"):
        socket.receive('2["y"]')


# ----------------------------------------------------------------------------------------------- events


@pytest.fixture(params=["server", "client"])
def socket(request: pytest.FixtureRequest) -> ServerSocket | ClientSocket:
    """Either end, with ``/`` and ``/custom`` joined: what follows is the same for both."""
    namespaces = ("/", "/custom")
    return joined_server(*namespaces) if request.param == "server" else joined_client(*namespaces)


Socket = ServerSocket | ClientSocket


def test_events_arrive_with_their_arguments(socket: Socket) -> None:
    assert socket.receive('2["hello",1,{"a":null}]') == [EventReceived("/", "hello", (1, {"a": None}))]
    assert socket.receive('2/custom,["hello"]') == [EventReceived("/custom", "hello", ())]
    assert socket.receive("2[5]") == [EventReceived("/", 5, ())]


def test_events_are_emitted_with_their_arguments(socket: Socket) -> None:
    assert socket.emit("/", "hello", 1, {"a": None}) == ['2["hello",1,{"a":null}]']
    assert socket.emit("/custom", "hello") == ['2/custom,["hello"]']


@pytest.mark.parametrize("name", ["connect", "disconnect", "newListener"])
def test_reserved_names_are_not_emitted(socket: Socket, name: str) -> None:
    with pytest.raises(ValueError, match="reserved"):
        socket.emit("/", name)
    with pytest.raises(ValueError, match="reserved"):
        socket.emit_with_ack("/", name)


def test_attachments_arrive_within_the_arguments(socket: Socket) -> None:
    seen = [
        (socket.receive(message), socket.awaiting_attachments)
        for message in (f'52-/custom,["audio",{{"data":{PLACE}}}]', b"\x01", b"\x02")
    ]
    assert seen == [
        ([], True),
        ([], True),
        ([EventReceived("/custom", "audio", ({"data": b"\x01"},))], False),
    ]


def test_attachments_are_emitted_after_the_text(socket: Socket) -> None:
    assert socket.emit("/", "audio", {"data": b"\x01"}) == [f'51-["audio",{{"data":{PLACE}}}]', b"\x01"]


def test_the_limits_bind_what_is_sent_and_received() -> None:
    socket = ServerSocket(Limits(attachments=1))
    socket.receive("0")
    socket.accept("/", "sid")
    with pytest.raises(ValueError, match="more than 1 attachments"):
        socket.emit("/", "x", b"1", b"2")
    with pytest.raises(SocketError, match="more than 1 attachments"):
        socket.receive('52-["x"]')


def test_nothing_is_emitted_to_a_namespace_not_joined(socket: Socket) -> None:
    for send in (
        lambda: socket.emit("/other", "x"),
        lambda: socket.emit_with_ack("/other", "x"),
        lambda: socket.ack("/other", "0"),
        lambda: socket.disconnect("/other"),
    ):
        with pytest.raises(NotJoined, match=r"^namespace /other is not joined$") as caught:
            send()
        assert caught.value.namespace == "/other"


# ------------------------------------------------------------------------------------- acknowledgements


def test_an_event_may_ask_for_an_acknowledgement_whose_id_is_echoed_exactly(socket: Socket) -> None:
    huge = "12345678901234567890"  # past 2**53 and past 64 bits
    assert socket.receive(f'2{huge}["x",1]') == [EventReceived("/", "x", (1,), huge)]
    assert socket.ack("/", huge, "fine", 2) == [f'3{huge}["fine",2]']
    assert socket.receive('2/custom,007["x"]') == [EventReceived("/custom", "x", (), "007")]
    assert socket.ack("/custom", "007") == ["3/custom,007[]"]


def test_acknowledgements_carry_attachments_both_ways(socket: Socket) -> None:
    assert socket.ack("/", "4", b"\x01") == [f"61-4[{PLACE}]", b"\x01"]
    _, ack_id = socket.emit_with_ack("/", "x")
    assert socket.receive(f"61-{ack_id}[{PLACE}]") == []
    assert socket.receive(b"\x02") == [AckReceived("/", ack_id, (b"\x02",))]


def test_an_acknowledgement_comes_back_once_to_the_one_who_asked(socket: Socket) -> None:
    messages, first = socket.emit_with_ack("/", "x", 1)
    assert messages == [f'2{first}["x",1]']
    _, second = socket.emit_with_ack("/", "x", 2)
    assert first != second
    assert socket.receive(f"3{second}[2]") == [AckReceived("/", second, (2,))]
    assert socket.receive(f"3{first}[]") == [AckReceived("/", first, ())]
    assert socket.receive(f"3{first}[]") == []


@pytest.mark.parametrize("text", ["399[]", "3[]", "300[]", "3/custom,0[]", f"3{'9' * 20}[]"])
def test_an_acknowledgement_nobody_asked_for_is_ignored(socket: Socket, text: str) -> None:
    socket.emit_with_ack("/", "x")
    assert socket.receive(text) == []
    assert socket.receive("30[]") == [AckReceived("/", "0", ())]


def test_an_event_that_cannot_travel_leaves_no_trace(socket: Socket) -> None:
    with pytest.raises(ValueError, match="JSON"):
        socket.emit_with_ack("/", "x", float("nan"))
    assert socket.emit_with_ack("/", "x")[1] == "0"


def test_a_peer_that_never_acknowledges_costs_bounded_memory() -> None:
    socket = ServerSocket(Limits(unanswered_acks=2))
    socket.receive("0")
    socket.accept("/", "sid")
    first, second, third = (socket.emit_with_ack("/", "x")[1] for _ in range(3))
    assert socket.receive(f"3{first}[]") == []  # forgotten
    assert socket.receive(f"3{third}[]") == [AckReceived("/", third, ())]
    assert socket.receive(f"3{second}[]") == [AckReceived("/", second, ())]


# ---------------------------------------------------------------------------------------------- leaving


def test_leaving_gets_no_reply_and_what_comes_after_is_ignored(socket: Socket) -> None:
    assert socket.receive("1") == [Disconnected("/")]
    assert not socket.is_joined("/")
    for late in ('2["x"]', '25["x"]', "30[]", "1"):
        assert socket.receive(late) == []
    assert socket.receive(f'51-["x",{PLACE}]') == []
    assert socket.receive(b"\x01") == []
    with pytest.raises(NotJoined):
        socket.emit("/", "x")
    assert socket.connected


def test_one_namespace_is_left_and_the_other_is_not(socket: Socket) -> None:
    assert socket.receive("1/custom,") == [Disconnected("/custom")]
    assert socket.receive('2["x"]') == [EventReceived("/", "x", ())]


def test_leaving_from_this_end_ignores_what_was_on_its_way(socket: Socket) -> None:
    _, ack_id = socket.emit_with_ack("/custom", "x")
    assert socket.receive('51-/custom,["half an event"]') == []
    assert socket.disconnect("/custom") == ["1/custom,"]
    assert socket.receive(b"\x01") == []
    assert socket.receive('2/custom,["late"]') == []
    assert socket.receive(f"3/custom,{ack_id}[]") == []
    assert socket.receive("1/custom,") == []  # the two crossed
    with pytest.raises(NotJoined):
        socket.disconnect("/custom")


def test_a_client_may_join_again() -> None:
    socket = joined_server()
    _, old_ack = socket.emit_with_ack("/", "x")
    socket.receive("1")
    assert socket.receive('0{"again":true}') == [ConnectRequested("/", {"again": True})]
    assert socket.accept("/", "another") == ['0{"sid":"another"}']
    assert socket.receive('2["x"]') == [EventReceived("/", "x", ())]
    _, new_ack = socket.emit_with_ack("/", "x")
    assert new_ack != old_ack
    assert socket.receive(f"3{old_ack}[]") == []


# ------------------------------------------------------------------------------------ joining, the client


def test_the_client_asks_and_is_accepted() -> None:
    socket = ClientSocket()
    assert socket.connect("/", {"token": "x"}) == ['0{"token":"x"}']
    assert not socket.is_joined("/")
    assert socket.receive('0{"sid":"abc"}') == [Connected("/", "abc")]
    assert socket.is_joined("/")
    assert socket.connected
    assert socket.connect("/custom") == ["0/custom,"]


def test_the_client_is_refused_and_may_ask_again() -> None:
    socket = ClientSocket()
    socket.connect("/", {})
    refusal = '4{"message":"wrong token","data":{"code":"AUTH_FAILED"}}'
    assert socket.receive(refusal) == [ConnectRefused("/", "wrong token", {"code": "AUTH_FAILED"})]
    assert not socket.connected
    socket.connect("/")
    assert socket.receive('4"no"') == [ConnectRefused("/", "no")]


def test_the_client_asks_once() -> None:
    socket = ClientSocket()
    socket.connect("/")
    with pytest.raises(ValueError, match="already"):
        socket.connect("/")
    socket.receive('0{"sid":"abc"}')
    with pytest.raises(ValueError, match="already"):
        socket.connect("/")


@pytest.mark.parametrize(
    "message", ["0", "0{}", '0{"sid":1}', '4{"message":1}', "4{}", '2["early"]', "30[]", "1", '0/custom,{"sid":"x"}']
)
def test_the_client_takes_only_a_proper_answer(message: str) -> None:
    socket = ClientSocket()
    socket.connect("/")
    with pytest.raises(SocketError):
        socket.receive(message)


@pytest.mark.parametrize("message", ['0{"sid":"again"}', '4{"message":"too late"}', '2/custom,["x"]'])
def test_the_client_takes_no_answer_to_what_it_did_not_ask(message: str) -> None:
    with pytest.raises(SocketError):
        joined_client().receive(message)


def test_what_the_server_sent_before_it_saw_the_client_leave_is_ignored_while_it_joins_again() -> None:
    socket = joined_client()
    socket.disconnect("/")
    socket.connect("/")
    for late in ('2["x"]', "30[]", "1"):
        assert socket.receive(late) == []
    assert socket.receive('0{"sid":"new"}') == [Connected("/", "new")]
    assert socket.receive('2["x"]') == [EventReceived("/", "x", ())]
