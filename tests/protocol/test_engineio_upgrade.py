"""How an Engine.IO v4 session moves from long-polling to a WebSocket, and what becomes of attempts that fail."""

from __future__ import annotations

import pytest

from protocol.engineio import (
    Closed,
    CloseReason,
    ConnectionClosed,
    EngineError,
    Frame,
    MessageReceived,
    Transport,
    TransportMisused,
)

from .engines import answer, client, is_open, poll, polling_client, polling_server, sent, server

# --------------------------------------------------------------------------------------------- the server


def test_a_client_proves_its_websocket_and_moves() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    transports = [connection.transport]
    assert connection.receive_probe("2probe") == "3probe"
    transports.append(connection.transport)
    assert connection.receive_probe("5") is None
    transports.append(connection.transport)
    assert transports == ["polling", "polling", "websocket"]
    connection.send("hello")
    assert sent(connection) == ["4hello"]
    assert connection.receive("4hi", 10.1) == [MessageReceived("hi")]
    with pytest.raises(EngineError):
        connection.receive_probe("2probe")


def test_until_the_probe_nothing_changes() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    assert poll(connection) is None
    connection.send("hello")
    assert answer(connection) == "4hello"


def test_from_the_probe_on_every_poll_is_answered_with_a_noop_and_nothing_leaves() -> None:
    connection = polling_server()
    assert poll(connection) is None
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    assert answer(connection) == "6"
    connection.send("waits")
    assert poll(connection) == "6"
    assert poll(connection) == "6"
    assert connection.next_frame() is None
    connection.receive_probe("5")
    assert sent(connection) == ["4waits"]


def test_posts_are_still_taken_while_the_client_moves() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.begin_post()
    connection.receive_probe("2probe")
    assert list(connection.receive_payload(b"4on its way", 10.1)) == [MessageReceived("on its way")]
    connection.receive_probe("5")
    assert connection.transport is Transport.WEBSOCKET


def test_a_client_must_not_move_before_its_post_is_done() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    connection.begin_post()
    with pytest.raises(EngineError, match="POST"):
        connection.receive_probe("5")
    connection.abandon_upgrade()
    assert connection.transport is Transport.POLLING
    assert list(connection.receive_payload(b"4hello", 10.1)) == [MessageReceived("hello")]


def test_a_poll_that_is_held_while_the_client_moves_gets_its_noop_afterwards() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    connection.begin_poll()
    connection.receive_probe("5")
    connection.send("not for the poll")
    assert answer(connection) == "6"
    assert sent(connection) == ["4not for the poll"]


@pytest.mark.parametrize(
    "frame", ["2", "2prob", "2probes", "3probe", "4hello", b"probe", b"", "", "5", "6", "0", "1", "7"]
)
def test_anything_but_a_probe_fails_the_websocket_and_not_the_session(frame: Frame) -> None:
    connection = polling_server()
    connection.begin_upgrade()
    with pytest.raises(EngineError):
        connection.receive_probe(frame)
    connection.abandon_upgrade()
    assert is_open(connection)
    connection.send("hello")
    assert poll(connection) == "4hello"


@pytest.mark.parametrize("frame", ["4hello", b"hello", "6", "1", "3probe", "2", "nonsense"])
def test_nor_does_anything_but_an_upgrade_after_the_probe(frame: Frame) -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    connection.send("hello")
    with pytest.raises(EngineError):
        connection.receive_probe(frame)
    assert poll(connection) == "6"
    connection.abandon_upgrade()
    assert connection.transport is Transport.POLLING
    assert poll(connection) == "4hello"


def test_a_held_poll_is_served_again_once_the_websocket_has_failed() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    connection.abandon_upgrade()
    assert poll(connection) is None
    connection.send("hello")
    assert answer(connection) == "4hello"


def test_a_probe_may_be_repeated_and_an_upgrade_tried_again() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    assert connection.receive_probe("2probe") == "3probe"
    assert connection.receive_probe("2probe") == "3probe"
    connection.abandon_upgrade()
    connection.begin_upgrade()
    with pytest.raises(EngineError):
        connection.receive_probe("5")  # the probe of the first one does not count
    assert connection.receive_probe("2probe") == "3probe"
    assert connection.receive_probe("5") is None


def test_a_frame_of_a_websocket_that_was_given_up_changes_nothing() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.abandon_upgrade()
    with pytest.raises(EngineError):
        connection.receive_probe("2probe")
    connection.send("hello")
    assert poll(connection) == "4hello"


def test_a_second_websocket_is_refused_and_the_first_goes_on() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    with pytest.raises(TransportMisused):
        connection.begin_upgrade()
    connection.receive_probe("2probe")
    with pytest.raises(TransportMisused):
        connection.begin_upgrade()
    assert connection.receive_probe("5") is None
    with pytest.raises(TransportMisused):
        connection.begin_upgrade()
    with pytest.raises(TransportMisused):
        server().begin_upgrade()
    assert is_open(connection)


def test_a_session_that_has_ended_has_nothing_to_move() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.receive_probe("2probe")
    connection.close(CloseReason.SHUTTING_DOWN)
    with pytest.raises(ConnectionClosed, match="shutting down"):
        connection.receive_probe("5")
    with pytest.raises(ConnectionClosed, match="shutting down"):
        connection.begin_upgrade()
    assert connection.transport is Transport.POLLING


def test_a_poll_held_while_the_client_moves_is_told_of_the_end() -> None:
    connection = polling_server()
    connection.begin_upgrade()
    connection.begin_poll()
    connection.receive_probe("2probe")
    connection.close(CloseReason.SERVER_CLOSE)
    assert answer(connection) == "1"


# --------------------------------------------------------------------------------------------- the client


def test_the_client_moves_once_poll_and_post_are_done() -> None:
    connection = polling_client()
    connection.begin_poll()
    connection.send("first")
    assert connection.next_payload() == "4first"
    assert connection.begin_upgrade() == "2probe"
    connection.receive_probe("3probe")
    assert connection.finish_upgrade() is None
    connection.payload_sent()
    connection.send("second")
    assert connection.next_payload() is None
    assert connection.finish_upgrade() is None
    assert list(connection.receive_payload("6", 11.1)) == []
    assert not connection.wants_poll
    assert connection.next_frame() is None
    assert connection.finish_upgrade() == "5"
    assert connection.transport is Transport.WEBSOCKET
    assert not connection.wants_poll
    assert connection.next_payload() is None
    assert sent(connection) == ["4second"]
    assert connection.receive("4hello", 11.2) == [MessageReceived("hello")]
    assert connection.finish_upgrade() is None


def test_the_client_does_not_move_before_its_post_is_done() -> None:
    connection = polling_client()
    connection.send("first")
    assert connection.next_payload() == "4first"
    connection.begin_upgrade()
    connection.receive_probe("3probe")
    assert connection.finish_upgrade() is None
    connection.payload_sent()
    assert connection.finish_upgrade() == "5"


def test_the_client_does_not_move_before_its_poll_is_done() -> None:
    connection = polling_client()
    connection.begin_poll()
    connection.begin_upgrade()
    connection.receive_probe("3probe")
    assert connection.finish_upgrade() is None
    list(connection.receive_payload("6", 11.1))
    assert connection.finish_upgrade() == "5"


def test_until_the_answer_to_the_probe_the_client_polls_and_posts_as_before() -> None:
    connection = polling_client()
    connection.begin_upgrade()
    assert connection.wants_poll
    connection.send("hello")
    assert connection.next_payload() == "4hello"
    assert connection.finish_upgrade() is None


def test_messages_of_a_poll_that_ends_while_the_client_moves_are_taken() -> None:
    connection = polling_client()
    connection.begin_poll()
    connection.begin_upgrade()
    connection.receive_probe("3probe")
    assert list(connection.receive_payload("4hello\x1e2", 11.1)) == [MessageReceived("hello")]
    assert connection.finish_upgrade() == "5"
    assert sent(connection) == ["3"]


@pytest.mark.parametrize("frame", ["3", "3prob", "3probes", "2probe", "4hello", b"3probe", "", "1", "6", "nonsense"])
def test_any_other_answer_fails_the_websocket_and_not_the_session(frame: Frame) -> None:
    connection = polling_client()
    connection.begin_upgrade()
    with pytest.raises(EngineError):
        connection.receive_probe(frame)
    connection.abandon_upgrade()
    assert is_open(connection)
    assert connection.wants_poll
    assert connection.finish_upgrade() is None
    connection.send("hello")
    assert connection.next_payload() == "4hello"


def test_the_client_goes_on_with_polling_when_its_websocket_fails_late() -> None:
    connection = polling_client()
    connection.begin_upgrade()
    connection.receive_probe("3probe")
    wanted = [connection.wants_poll]
    connection.abandon_upgrade()
    assert [*wanted, connection.wants_poll] == [False, True]
    assert connection.finish_upgrade() is None
    assert connection.begin_upgrade() == "2probe"  # and may try again
    connection.receive_probe("3probe")
    assert connection.finish_upgrade() == "5"


def test_an_answer_to_a_probe_that_was_not_sent_is_none() -> None:
    with pytest.raises(EngineError):
        polling_client().receive_probe("3probe")
    with pytest.raises(EngineError):
        client().receive_probe("3probe")


def test_a_session_that_ends_meanwhile_does_not_move() -> None:
    connection = polling_client()
    connection.begin_upgrade()
    connection.receive_probe("3probe")
    assert list(connection.receive_payload("1", 11.1)) == [Closed(CloseReason.SERVER_CLOSE)]
    assert connection.finish_upgrade() is None
