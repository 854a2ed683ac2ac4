"""Two ends of a connection in any order of moves, each message arriving whenever it likes but in order.

The property behind all of `protocol.socketio`: two ends that use it never break the protocol for each other, whatever
crosses on the way, and an acknowledgement reaches whoever asked, once. And one end of it against a peer that keeps to
no rule answers with events or `SocketError`, never with anything else.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocol.socketio import (
    AckReceived,
    ClientSocket,
    Connected,
    ConnectRefused,
    ConnectRequested,
    Disconnected,
    EventReceived,
    NotJoined,
    ServerSocket,
    client,
    server,
)
from protocol.socketio.packets import Message, SocketError

Event: TypeAlias = server.Event | client.Event

namespaces = st.sampled_from(["/", "/custom"])
arguments = st.lists(st.integers(0, 9) | st.binary(max_size=3) | st.just({"a": [b"x"]}), max_size=2)


class TwoEnds(RuleBasedStateMachine):
    """A server and a client that both keep to the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.server, self.client = ServerSocket(), ClientSocket()
        self.to_server: deque[Message] = deque()
        self.to_client: deque[Message] = deque()
        self.requested: set[str] = set()  # namespaces the server has to answer for
        self.asking: set[str] = set()  # namespaces the client waits for
        self.sent: dict[str, list[tuple[Any, ...]]] = {"server": [], "client": []}
        self.asked: dict[str, set[tuple[str, str]]] = {"server": set(), "client": set()}
        self.answered: dict[str, set[tuple[str, str]]] = {"server": set(), "client": set()}

    # -- the client's moves

    @rule(namespace=namespaces, auth=st.none() | st.just({"token": "x"}))
    def connect(self, namespace: str, auth: dict[str, Any] | None) -> None:
        if namespace not in self.asking and not self.client.is_joined(namespace):
            self.to_server += self.client.connect(namespace, auth)
            self.asking.add(namespace)

    # -- the server's moves

    @precondition(lambda self: self.requested)
    @rule(accepts=st.booleans())
    def answer(self, accepts: bool) -> None:
        namespace = self.requested.pop()
        if accepts:
            self.to_client += self.server.accept(namespace, "sid")
        else:
            self.to_client += self.server.reject(namespace, "no")

    # -- moves of both

    def end(self, name: str) -> tuple[ServerSocket | ClientSocket, deque[Message]]:
        return (self.server, self.to_client) if name == "server" else (self.client, self.to_server)

    @rule(name=st.sampled_from(["server", "client"]), namespace=namespaces, args=arguments, ack=st.booleans())
    def emit(self, name: str, namespace: str, args: list[Any], ack: bool) -> None:
        socket, outbox = self.end(name)
        try:
            if ack:
                messages, ack_id = socket.emit_with_ack(namespace, "event", *args)
                assert (namespace, ack_id) not in self.asked[name], "an id was given twice"
                self.asked[name].add((namespace, ack_id))
            else:
                messages = socket.emit(namespace, "event", *args)
        except NotJoined:
            assert not socket.is_joined(namespace)
            return
        outbox += messages
        self.sent[name].append((namespace, tuple(args)))

    @rule(name=st.sampled_from(["server", "client"]), namespace=namespaces)
    def leave(self, name: str, namespace: str) -> None:
        socket, outbox = self.end(name)
        if socket.is_joined(namespace):
            outbox += socket.disconnect(namespace)
            assert not socket.is_joined(namespace)

    @precondition(lambda self: self.to_server)
    @rule(count=st.integers(1, 4))
    def arrive_at_server(self, count: int) -> None:
        for _ in range(min(count, len(self.to_server))):
            for event in self.server.receive(self.to_server.popleft()):
                if isinstance(event, ConnectRequested):
                    assert event.namespace not in self.requested
                    self.requested.add(event.namespace)
                else:
                    self.arrived("server", event)

    @precondition(lambda self: self.to_client)
    @rule(count=st.integers(1, 4))
    def arrive_at_client(self, count: int) -> None:
        for _ in range(min(count, len(self.to_client))):
            for event in self.client.receive(self.to_client.popleft()):
                if isinstance(event, Connected | ConnectRefused):
                    self.asking.remove(event.namespace)
                    assert self.client.is_joined(event.namespace) == isinstance(event, Connected)
                else:
                    self.arrived("client", event)

    def arrived(self, name: str, event: Event) -> None:
        other = "client" if name == "server" else "server"
        socket, outbox = self.end(name)
        match event:
            case EventReceived(namespace, "event", args, ack_id):
                sent = self.sent[other]
                while sent and sent[0] != (namespace, args):
                    sent.pop(0)  # overtaken by a leaving
                assert sent, "an event arrived that was not sent, or out of order"
                sent.pop(0)
                if ack_id is not None:
                    assert (namespace, ack_id) in self.asked[other]
                    outbox += socket.ack(namespace, ack_id, *args)
            case AckReceived(namespace, ack_id):
                assert (namespace, ack_id) in self.asked[name] - self.answered[name]
                self.answered[name].add((namespace, ack_id))
            case Disconnected(namespace):
                assert not socket.is_joined(namespace)
            case _:
                raise AssertionError(f"{name} got {event}")

    @invariant()
    def nothing_travels_unless_it_was_joined_once(self) -> None:
        assert self.server.connected >= self.client.connected

    def teardown(self) -> None:
        """Whatever is left on the way arrives without breaking a rule; then both agree who is where."""
        while self.to_server or self.to_client or self.requested:
            if self.to_server:
                self.arrive_at_server(4)
            if self.requested:
                self.answer(True)
            if self.to_client:
                self.arrive_at_client(4)
        for namespace in ("/", "/custom"):
            assert self.server.is_joined(namespace) == self.client.is_joined(namespace)
        assert not self.server.awaiting_attachments
        assert not self.client.awaiting_attachments


class RudePeer(RuleBasedStateMachine):
    """A server and a peer that sends what it likes, checked against the rules written down once more."""

    @initialize()
    def begin(self) -> None:
        self.connect_anew()

    @precondition(lambda self: self.closed)
    @rule()
    def connect_anew(self) -> None:
        self.server = ServerSocket()
        self.state: dict[str, str] = {}
        self.asked: set[tuple[str, str]] = set()
        self.closed = False

    def send(self, text: str) -> list[server.Event] | None:
        """The events, or None where the connection was closed."""
        try:
            return self.server.receive(text)
        except SocketError:
            self.closed = True
            return None

    @precondition(lambda self: not self.closed)
    @rule(namespace=namespaces)
    def connect(self, namespace: str) -> None:
        events = self.send(f"0{namespace},")
        if self.state.get(namespace) in ("asking", "joined"):
            assert events is None
        else:
            assert events == [ConnectRequested(namespace, {})]
            self.state[namespace] = "asking"

    @precondition(lambda self: not self.closed and "asking" in self.state.values())
    @rule(accepts=st.booleans())
    def answer(self, accepts: bool) -> None:
        namespace = next(name for name, state in self.state.items() if state == "asking")
        if accepts:
            self.server.accept(namespace, "sid")
            self.state[namespace] = "joined"
        else:
            self.server.reject(namespace, "no")
            del self.state[namespace]

    @precondition(lambda self: not self.closed)
    @rule(namespace=namespaces, binary=st.booleans(), ack_id=st.sampled_from(["", "0", "12"]))
    def event(self, namespace: str, binary: bool, ack_id: str) -> None:
        state = self.state.get(namespace)
        events = self.send(f'51-{namespace},{ack_id}["x"]' if binary else f'2{namespace},{ack_id}["x"]')
        if state not in ("joined", "left"):
            assert events is None, "not closed at once"
            return
        if binary:
            assert events == []
            assert self.server.awaiting_attachments
            events = self.server.receive(b"attachment")
        assert events == ([EventReceived(namespace, "x", (), ack_id or None)] if state == "joined" else [])

    @precondition(lambda self: not self.closed)
    @rule(namespace=namespaces)
    def server_asks(self, namespace: str) -> None:
        if self.state.get(namespace) == "joined":
            self.asked.add((namespace, self.server.emit_with_ack(namespace, "x")[1]))

    @precondition(lambda self: not self.closed)
    @rule(namespace=namespaces, ack_id=st.sampled_from(["0", "1", "2", "00", "99"]))
    def ack(self, namespace: str, ack_id: str) -> None:
        state = self.state.get(namespace)
        events = self.send(f"3{namespace},{ack_id}[]")
        if state not in ("joined", "left"):
            assert events is None
        elif (namespace, ack_id) in self.asked:
            assert events == [AckReceived(namespace, ack_id, ())]
            self.asked.remove((namespace, ack_id))
        else:
            assert events == []

    @precondition(lambda self: not self.closed)
    @rule(namespace=namespaces, from_server=st.booleans())
    def leave(self, namespace: str, from_server: bool) -> None:
        state = self.state.get(namespace)
        if from_server:
            if state != "joined":
                return
            self.server.disconnect(namespace)
        else:
            events = self.send(f"1{namespace},")
            if state not in ("joined", "left"):
                assert events is None
                return
            assert events == ([Disconnected(namespace)] if state == "joined" else [])
        self.state[namespace] = "left"
        self.asked = {(name, ack_id) for name, ack_id in self.asked if name != namespace}

    @invariant()
    def the_server_knows_who_has_joined(self) -> None:
        for namespace in ("/", "/custom"):
            assert self.server.is_joined(namespace) == (self.state.get(namespace) == "joined")


few = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.slow
def test_two_ends_never_break_the_protocol_for_each_other() -> None:
    run_state_machine_as_test(TwoEnds, settings=few)


@pytest.mark.slow
def test_a_rude_peer_gets_events_or_a_closed_connection() -> None:
    run_state_machine_as_test(RudePeer, settings=few)
