"""Connection state recovery (Socket.IO 4.6), rule by rule: the log, those who are away, and the client's part."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.engineio import CloseReason
from protocol.socketio import (
    ClientSocket,
    Connected,
    ConnectRefused,
    ConnectRequested,
    Disconnected,
    EventReceived,
    Message,
    NotJoined,
    RecoveryLog,
    RecoveryRequest,
    RecoveryState,
    RecoveryStore,
    ServerSocket,
    SocketError,
    is_recoverable,
)

# ---------------------------------------------------------------------------------------- the server's log


def log(*, window_s: float = 60.0, max_bytes: int = 10_000) -> RecoveryLog:
    return RecoveryLog(window_s=window_s, max_bytes=max_bytes)


def cost(*messages: str | bytes) -> int:
    """The memory that keeping an event takes."""
    kept = log()
    kept.add(messages, now=0.0)
    assert kept.bytes > 200 + sum(map(len, messages))
    return kept.bytes


def test_the_log_knows_what_came_after_an_offset() -> None:
    kept = log()
    assert kept.next_offset() == "1"
    for message in ("a", "b", "c"):
        kept.add([message], now=0.0)
    assert kept.next_offset() == "4"
    assert kept.since("1") == ["b", "c"]
    assert kept.since("2") == ["c"]
    assert kept.since("3") == []


def test_an_event_is_kept_with_its_attachments() -> None:
    kept = log()
    kept.add(["first"], now=0.0)
    kept.add(["52-[...]", b"\x01", b"\x02"], now=0.0)
    kept.add(["last"], now=0.0)
    assert kept.since("1") == ["52-[...]", b"\x01", b"\x02", "last"]


@pytest.mark.parametrize("offset", ["", "0", "4", "-1", "1.0", " 1", "x", "٣", "²", "9" * 5_000, "9" * 20, "1\n"])
def test_an_offset_that_was_never_given_is_not_known(offset: str) -> None:
    kept = log()
    for message in ("a", "b", "c"):
        kept.add([message], now=0.0)
    assert kept.since(offset) is None
    assert log().since("1") is None


def test_the_oldest_are_forgotten_beyond_so_many_bytes() -> None:
    kept = log(max_bytes=cost("aaaa") + cost("bbbb") + cost("cc"))
    for message in ("aaaa", "bbbb", "cc"):
        kept.add([message], now=0.0)
    assert kept.bytes == cost("aaaa") + cost("bbbb") + cost("cc")
    assert kept.since("1") == ["bbbb", "cc"]
    kept.add(["dd"], now=0.0)
    assert kept.bytes == cost("bbbb") + cost("cc") + cost("dd")
    assert kept.since("1") == ["bbbb", "cc", "dd"]  # "aaaa" is not needed for that
    kept.add(["eeee"], now=0.0)
    assert kept.since("1") is None
    assert kept.since("2") == ["cc", "dd", "eeee"]
    assert cost("d", b"d") > cost("d")


def test_an_event_over_the_limit_is_not_kept_and_says_so() -> None:
    kept = log(max_bytes=cost("b" * 10))
    kept.add(["a"], now=0.0)
    kept.add(["b" * 11], now=0.0)
    assert kept.bytes == 0
    assert kept.since("1") is None
    assert kept.since("2") == []
    kept.add(["c"], now=0.0)
    assert kept.since("2") == ["c"]


def test_the_oldest_are_forgotten_after_so_many_seconds() -> None:
    kept = log(window_s=5.0)
    kept.add(["a"], now=10.0)
    kept.add(["b"], now=10.0)
    kept.add(["c"], now=15.0)
    assert kept.since("1") == ["b", "c"]
    kept.add(["d"], now=15.001)
    assert kept.since("1") is None
    assert kept.since("2") == ["c", "d"]
    assert kept.bytes == cost("c") + cost("d")


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(0, 3_000))
def test_the_log_is_right_or_says_that_it_does_not_know(sizes: list[int], max_bytes: int) -> None:
    kept = log(max_bytes=max_bytes)
    sent = []
    for number, size in enumerate(sizes, 1):
        assert kept.next_offset() == str(number)
        sent.append(f"{number}".ljust(size, "."))
        kept.add([sent[-1]], now=0.0)
        assert kept.bytes <= max_bytes
    for offset in range(1, len(sent) + 1):
        missed = kept.since(str(offset))
        if missed is None:
            assert sum(map(cost, sent[offset:])) > max_bytes
        else:
            assert missed == sent[offset:]


# --------------------------------------------------------------------------------------- those who are away


def store(max_clients: int = 10) -> RecoveryStore[str]:
    return RecoveryStore(window_s=5.0, max_clients=max_clients)


def test_who_is_away_can_come_back_once() -> None:
    away = store()
    assert away.keep("pid-a", "a", now=0.0) == []
    assert away.keep("pid-b", "b", now=1.0) == []
    assert away.take("pid-b") == "b"
    assert away.take("pid-b") is None
    assert away.take("unknown") is None
    assert away.take("pid-a") == "a"


def test_who_is_away_for_too_long_is_given_up() -> None:
    away = store()
    assert away.deadline == math.inf
    away.keep("pid-a", "a", now=0.0)
    away.keep("pid-b", "b", now=1.0)
    assert away.deadline == 5.0
    assert away.expire(4.999) == []
    assert away.expire(5.0) == ["a"]
    assert away.take("pid-a") is None
    assert away.deadline == 6.0
    assert away.expire(99.0) == ["b"]
    assert away.deadline == math.inf


def test_only_so_many_are_kept_and_the_one_longest_away_goes() -> None:
    away = store(max_clients=2)
    away.keep("pid-a", "a", now=0.0)
    away.keep("pid-b", "b", now=1.0)
    assert away.keep("pid-c", "c", now=2.0) == ["a"]
    assert away.take("pid-a") is None
    assert away.take("pid-b") == "b"
    assert away.keep("pid-d", "d", now=3.0) == []


def test_nobody_is_kept_where_nobody_may_be() -> None:
    assert store(max_clients=0).keep("pid-a", "a", now=0.0) == ["a"]


def test_everybody_can_be_given_up() -> None:
    away = store()
    away.keep("pid-a", "a", now=0.0)
    away.keep("pid-b", "b", now=1.0)
    assert away.clear() == ["a", "b"]
    assert away.clear() == []
    assert away.deadline == math.inf


# ------------------------------------------------------------------------------------------- what recovers


def test_what_was_lost_by_accident_can_be_recovered_and_nothing_else() -> None:
    assert {reason for reason in CloseReason if is_recoverable(reason)} == {
        CloseReason.TRANSPORT_CLOSE,
        CloseReason.TRANSPORT_ERROR,
        CloseReason.PING_TIMEOUT,
        CloseReason.CLIENT_CLOSE,
        CloseReason.SHUTTING_DOWN,
    }


@pytest.mark.parametrize(
    ("auth", "request_"),
    [
        ({"pid": "p", "offset": "7"}, RecoveryRequest("p", "7")),
        ({"pid": "p", "offset": "7", "token": "x"}, RecoveryRequest("p", "7")),
        ({}, None),
        ({"pid": "p"}, None),
        ({"offset": "7"}, None),
        ({"pid": 1, "offset": "7"}, None),
        ({"pid": "p", "offset": 7}, None),
        ({"pid": None, "offset": None}, None),
    ],
)
def test_a_client_asks_with_pid_and_offset(auth: dict[str, object], request_: RecoveryRequest | None) -> None:
    assert RecoveryRequest.read(auth) == request_


# ------------------------------------------------------------------------------------------ the server's end


def test_without_recovery_the_answer_is_exactly_the_sid() -> None:
    socket = ServerSocket()
    socket.receive("0")
    assert socket.accept("/", "sid") == ['0{"sid":"sid"}']


def test_with_recovery_the_answer_has_a_pid() -> None:
    socket = ServerSocket()
    socket.receive("0/custom,")
    assert socket.accept("/custom", "sid", pid="secret") == ['0/custom,{"sid":"sid","pid":"secret"}']


def test_what_was_missed_leaves_before_the_answer_which_repeats_sid_and_pid() -> None:
    socket = ServerSocket()
    assert socket.receive('0{"pid":"secret","offset":"1","token":"x"}') == [
        ConnectRequested("/", {"pid": "secret", "offset": "1", "token": "x"})
    ]
    missed: list[Message] = ['2["b","2"]', '51-["c",{"_placeholder":true,"num":0},"3"]', b"\x01"]
    assert socket.accept("/", "sid", pid="secret", missed=missed) == [*missed, '0{"sid":"sid","pid":"secret"}']
    assert socket.is_joined("/")


# ------------------------------------------------------------------------------------------ the client's end


def lost_client(*events: str) -> ClientSocket:
    """A client that joined with recovery, received `events`, and lost its connection."""
    socket = ClientSocket()
    socket.connect("/")
    socket.receive('0{"sid":"old","pid":"secret"}')
    for event in events:
        socket.receive(event)
    return socket


def returning_client(*events: str) -> ClientSocket:
    """The same with its next connection, which it has asked to join."""
    socket = ClientSocket(recovery=lost_client(*events).recovery)
    socket.connect("/")
    return socket


def test_a_client_remembers_its_pid_and_the_offset_of_the_last_event() -> None:
    assert lost_client().recovery == {"/": RecoveryState("secret")}
    assert lost_client('2["a",1,"1"]', '2["b","2"]').recovery == {"/": RecoveryState("secret", "2")}


def test_the_offset_is_left_in_the_event() -> None:
    assert lost_client().receive('2["a",1,"1"]') == [EventReceived("/", "a", (1, "1"))]


@pytest.mark.parametrize("event", ['2["b"]', '2["b",7]', '2["b","x",null]', '25["b","9"]', '3["9"]', '30["9"]'])
def test_what_has_no_offset_changes_nothing(event: str) -> None:
    assert lost_client('2["a","1"]', event).recovery == {"/": RecoveryState("secret", "1")}


def test_without_a_pid_there_is_nothing_to_recover() -> None:
    socket = ClientSocket()
    socket.connect("/")
    socket.receive('0{"sid":"old"}')
    socket.receive('2["a","1"]')
    assert socket.recovery == {}
    assert ClientSocket(recovery=socket.recovery).connect("/") == ["0"]


def test_each_namespace_recovers_by_itself() -> None:
    socket = ClientSocket()
    for namespace in ("/", "/custom", "/plain"):
        socket.connect(namespace)
    socket.receive('0{"sid":"a","pid":"p"}')
    socket.receive('0/custom,{"sid":"b","pid":"q"}')
    socket.receive('0/plain,{"sid":"c"}')
    socket.receive('2/custom,["x","5"]')
    socket = ClientSocket(recovery=socket.recovery)
    assert socket.connect("/") == ['0{"pid":"p"}']
    assert socket.connect("/custom") == ['0/custom,{"pid":"q","offset":"5"}']
    assert socket.connect("/plain") == ["0/plain,"]


def test_a_client_comes_back_with_pid_and_offset_beside_its_auth() -> None:
    recovery = lost_client('2["a","1"]').recovery
    assert ClientSocket(recovery=recovery).connect("/") == ['0{"pid":"secret","offset":"1"}']
    assert ClientSocket(recovery=recovery).connect("/", {"token": "x"}) == [
        '0{"pid":"secret","offset":"1","token":"x"}'
    ]
    assert ClientSocket(recovery=recovery).connect("/other") == ["0/other,"]


def test_what_was_missed_arrives_before_the_answer() -> None:
    socket = returning_client('2["a","1"]')
    assert socket.receive('2["b","2"]') == [EventReceived("/", "b", ("2",))]
    assert socket.receive('51-["c",{"_placeholder":true,"num":0},"3"]') == []
    assert socket.receive(b"\x01") == [EventReceived("/", "c", (b"\x01", "3"))]
    assert not socket.is_joined("/")
    assert socket.receive('0{"sid":"old","pid":"secret"}') == [Connected("/", "old", recovered=True)]
    assert socket.is_joined("/")
    assert socket.recovery == {"/": RecoveryState("secret", "3")}


def test_a_client_that_is_not_known_any_more_begins_anew() -> None:
    socket = returning_client('2["a","1"]')
    assert socket.receive('0{"sid":"new","pid":"another"}') == [Connected("/", "new", recovered=False)]
    assert socket.recovery == {"/": RecoveryState("another")}
    socket.receive('2["b","1"]')
    assert socket.recovery == {"/": RecoveryState("another", "1")}


def test_a_server_that_recovers_no_more_is_believed() -> None:
    socket = returning_client('2["a","1"]')
    assert socket.receive('0{"sid":"new"}') == [Connected("/", "new", recovered=False)]
    assert socket.recovery == {}


def test_a_client_that_was_not_lost_has_not_recovered() -> None:
    socket = ClientSocket()
    socket.connect("/")
    assert socket.receive('0{"sid":"a","pid":"p"}') == [Connected("/", "a", recovered=False)]


def test_nothing_is_sent_before_the_answer() -> None:
    socket = returning_client('2["a","1"]')
    with pytest.raises(NotJoined):
        socket.emit("/", "early")
    with pytest.raises(ValueError, match="already"):
        socket.connect("/")


@pytest.mark.parametrize("late", ["30[]", "1"])
def test_only_events_are_missed(late: str) -> None:
    assert returning_client('2["a","1"]').receive(late) == []


def test_nothing_comes_before_the_answer_where_nothing_was_missed() -> None:
    socket = ClientSocket()
    socket.connect("/")
    with pytest.raises(SocketError):
        socket.receive('2["a","1"]')


def test_who_leaves_does_not_come_back() -> None:
    socket = lost_client('2["a","1"]')
    socket.disconnect("/")
    assert socket.recovery == {}
    assert socket.connect("/") == ["0"]


def test_who_was_made_to_leave_does_not_come_back() -> None:
    socket = lost_client('2["a","1"]')
    assert socket.receive("1") == [Disconnected("/")]
    assert socket.recovery == {}


def test_a_client_that_was_refused_may_ask_again_with_what_it_had() -> None:
    socket = returning_client('2["a","1"]')
    assert socket.receive('4{"message":"try later"}') == [ConnectRefused("/", "try later")]
    assert socket.connect("/") == ['0{"pid":"secret","offset":"1"}']


def test_what_was_taken_from_a_socket_stays_as_it_was() -> None:
    socket = lost_client('2["a","1"]')
    taken = socket.recovery
    socket.receive('2["b","2"]')
    assert taken == {"/": RecoveryState("secret", "1")}
    next_one = ClientSocket(recovery=taken)
    next_one.connect("/")
    next_one.receive('0{"sid":"new","pid":"another"}')
    assert taken == {"/": RecoveryState("secret", "1")}
