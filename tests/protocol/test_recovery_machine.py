"""The property behind `protocol.socketio.recovery`, over connections that are cut wherever it hurts.

Of the events that a client's session is sent, those that can be recovered arrive once and in order, however often the
connection is lost: a client that comes back has them all before it is told so. Or it is not recovered: then it is
somebody else, with a sid and pid that nobody had before.
"""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from protocol.socketio import (
    AckReceived,
    ClientSocket,
    Connected,
    ConnectRequested,
    Disconnected,
    EventReceived,
    Message,
    RecoveryLog,
    RecoveryRequest,
    RecoveryStore,
    ServerSocket,
    encode_event,
)

WINDOW_S = 10.0
MAX_AWAY = 2

KINDS = ["recoverable", "binary", "volatile", "asking"]
kinds = st.lists(st.sampled_from(KINDS), max_size=3)
seldom = st.sampled_from([False] * 7 + [True])


@define(eq=False)
class Session:
    """What a server knows of a client, on whatever connection; and for the test, all that could be recovered."""

    sid: str
    pid: str
    log: RecoveryLog
    socket: ServerSocket
    sent: list[int] = field(factory=list)
    due: int = 0  # how many of these must have arrived when it is told that it has recovered


@define(eq=False)
class Link:
    """A connection, and what is on its way."""

    server: ServerSocket = field(factory=ServerSocket)
    to_server: deque[Message] = field(factory=deque)
    to_client: deque[Message] = field(factory=deque)
    sessions: list[Session] = field(factory=list)  # the last is the one that is joined, if any is
    joined: bool = False


class Recovery(RuleBasedStateMachine):
    """One client that loses its connection again and again."""

    @initialize(max_bytes=st.sampled_from([0, 1_500, 100_000, 100_000]), joined=st.booleans())
    def begin(self, max_bytes: int, joined: bool) -> None:
        self.max_bytes = max_bytes
        self.now = 0.0
        self.sids = self.numbers = 0
        self.store: RecoveryStore[Session] = RecoveryStore(window_s=WINDOW_S, max_clients=MAX_AWAY)
        self.away: dict[str, float] = {}  # what the store should hold: until when
        self.unnoticed: list[Link] = []
        self.answers: deque[Session] = deque()  # the sessions whose CONNECT answers are on their way
        self.received: list[int] = []  # by the client in the session it is in
        self.session: Session | None = None  # which the client believes to be in
        self.client = ClientSocket()
        self.connect()
        if joined:
            self.all_arrive()
            self.the_server_sends("recoverable")
            self.all_arrive()

    def connect(self) -> None:
        self.client = ClientSocket(recovery=self.client.recovery)
        self.link = Link()
        self.link.to_server += self.client.connect("/", {"token": "x"})

    # --------------------------------------------------------------------------------------- the network

    @rule(
        asked=st.booleans(),
        lost=kinds,
        arrive=st.integers(0, 12),
        noticed=st.sampled_from([True, True, False]),
        missed=kinds,
        returns=st.booleans(),
    )
    def the_connection_is_cut(
        self, asked: bool, lost: list[str], arrive: int, noticed: bool, missed: list[str], returns: bool
    ) -> None:
        """Of what is on its way to the client the first few messages still arrive. The server may notice later."""
        if asked:
            self.some_arrive_at_server(1_000)
        for kind in lost:
            self.the_server_sends(kind)
        self.some_arrive_at_client(arrive)
        self.answers.clear()
        self.unnoticed.append(self.link)
        self.connect()
        while noticed and self.unnoticed:
            self.the_server_notices()
        for kind in missed:
            self.the_server_sends(kind)
        if returns:
            self.all_arrive()

    @precondition(lambda self: self.unnoticed)
    @rule()
    def the_server_notices(self) -> None:
        link = self.unnoticed.pop(0)
        if not link.joined:
            return
        session = link.sessions[-1]
        self.away[session.pid] = self.now + WINDOW_S
        given_up = [left.pid for left in self.store.keep(session.pid, session, self.now)]
        assert given_up == list(self.away)[:-MAX_AWAY]
        for pid in given_up:
            del self.away[pid]

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.5, 4.0, 7.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        late = [pid for pid, until in self.away.items() if until <= self.now]
        assert [session.pid for session in self.store.expire(self.now)] == late
        for pid in late:
            del self.away[pid]

    @rule()
    def all_arrive(self) -> None:
        self.some_arrive_at_server(1_000)
        self.some_arrive_at_client(1_000)

    @rule(count=st.integers(1, 12))
    def some_arrive_at_client(self, count: int) -> None:
        for _ in range(min(count, len(self.link.to_client))):
            for event in self.client.receive(self.link.to_client.popleft()):
                match event:
                    case Connected(_, sid, recovered):
                        self.connected(sid, recovered)
                    case EventReceived(_, "recoverable", (int(number), *_, str())):
                        self.received.append(number)
                    case EventReceived(_, "asking", _, str(ack_id)):
                        self.link.to_server += self.client.ack("/", ack_id)
                    case Disconnected():
                        assert not self.client.recovery
                        self.link.to_server += self.client.connect("/", {"token": "x"})
                    case _:
                        assert event == EventReceived("/", "volatile", (0,))

    def connected(self, sid: str, recovered: bool) -> None:
        session = self.answers.popleft()
        assert (sid, self.client.recovery["/"].pid) == (session.sid, session.pid)
        assert recovered == (session is self.session)
        if recovered:
            assert len(self.received) == session.due
        else:
            self.session, self.received = session, []

    @rule(count=st.integers(1, 4))
    def some_arrive_at_server(self, count: int) -> None:
        link = self.link
        for _ in range(min(count, len(link.to_server))):
            for event in link.server.receive(link.to_server.popleft()):
                match event:
                    case ConnectRequested(_, auth):
                        assert auth["token"] == "x"
                        self.accept(link, RecoveryRequest.read(auth))
                    case Disconnected():
                        link.joined = False
                    case _:
                        assert isinstance(event, AckReceived)

    # --------------------------------------------------------------------------------------- the server

    def accept(self, link: Link, request: RecoveryRequest | None) -> None:
        session = self.returning(request)
        if session is not None:
            assert request is not None
            missed = session.log.since(request.offset) or []
            session.due = len(session.sent)
        else:
            missed = []
            self.sids += 1
            log = RecoveryLog(window_s=WINDOW_S, max_bytes=self.max_bytes)
            session = Session(f"sid-{self.sids}", f"pid-{self.sids}", log, link.server)
        session.socket = link.server
        link.to_client += link.server.accept("/", session.sid, pid=session.pid, missed=missed)
        link.sessions.append(session)
        link.joined = True
        self.answers.append(session)

    def returning(self, request: RecoveryRequest | None) -> Session | None:
        if request is None:
            return None
        session = self.store.take(request.pid)
        assert (session is not None) == (request.pid in self.away)
        if session is None:
            return None
        del self.away[session.pid]
        known = session.log.since(request.offset) is not None
        assert known or self.now > WINDOW_S or self.max_bytes < 100_000, "nothing was forgotten yet"
        return session if known else None

    @rule(several=kinds)
    def the_server_sends_several(self, several: list[str]) -> None:
        for kind in several:
            self.the_server_sends(kind)

    def the_server_sends(self, kind: str) -> None:
        """To every session that lasts: on its connection, lost or not, or while it is away."""
        for session in self.sessions_that_last():
            self.send(session, kind)

    def send(self, session: Session, kind: str) -> None:
        link = next((link for link in [self.link, *self.unnoticed] if link.server is session.socket), None)
        messages: list[Message] = []
        match kind:
            case "recoverable" | "binary":
                self.numbers += 1
                extra = [b"x", {"y": b"y"}] if kind == "binary" else []
                args = [self.numbers, *extra, session.log.next_offset()]
                messages = encode_event("/", "recoverable", args)
                session.log.add(messages, self.now)
                session.sent.append(self.numbers)
            case "volatile" if link is not None:
                messages = session.socket.emit("/", "volatile", 0)
            case "asking" if link is not None:
                messages, _ = session.socket.emit_with_ack("/", "asking")
        if link is self.link:
            link.to_client += messages

    def sessions_that_last(self) -> list[Session]:
        """Those on a connection, lost or not, and those that are away."""
        sessions = [link.sessions[-1] for link in [*self.unnoticed, self.link] if link.joined]
        for pid in list(self.away):
            session = self.store.take(pid)
            assert session is not None
            sessions.append(session)
            self.store.keep(pid, session, self.away[pid] - WINDOW_S)
        return sessions

    # ------------------------------------------------------------------------------------ leaving for good

    @rule(really=seldom)
    def the_client_leaves_and_joins_again(self, really: bool) -> None:
        if really and self.client.is_joined("/"):
            self.link.to_server += self.client.disconnect("/")
            assert not self.client.recovery
            self.link.to_server += self.client.connect("/", {"token": "x"})

    @rule(really=seldom)
    def the_server_makes_the_client_leave(self, really: bool) -> None:
        if really and self.link.joined:
            self.link.to_client += self.link.server.disconnect("/")
            self.link.joined = False

    def teardown(self) -> None:
        """Whatever still arrives, the client has of its session what came first, in order, and nothing twice."""
        if not hasattr(self, "link"):
            return
        for _ in range(4):
            self.all_arrive()
        assert self.client.is_joined("/")
        assert self.session is not None
        assert self.received == self.session.sent


@pytest.mark.slow
def test_a_client_misses_nothing_or_begins_anew() -> None:
    run_state_machine_as_test(Recovery, settings=settings(max_examples=100, stateful_step_count=30, deadline=None))


@pytest.mark.slow
def test_nor_on_many_walks_at_random() -> None:
    """More lost connections than can be drawn."""
    for seed in range(250):
        rng = Random(seed)
        walk = Recovery()
        walk.begin(max_bytes=rng.choice([0, 1_500, 100_000]), joined=True)
        for _ in range(20):
            several = [rng.choice(KINDS) for _ in range(rng.randrange(4))]
            match rng.randrange(7):
                case 0 | 1:
                    missed = [rng.choice(KINDS) for _ in range(rng.randrange(4))]
                    walk.the_connection_is_cut(
                        asked=rng.random() < 0.5,
                        lost=several,
                        arrive=rng.randrange(9),
                        noticed=rng.random() < 0.7,
                        missed=missed,
                        returns=rng.random() < 0.5,
                    )
                case 2:
                    walk.all_arrive()
                case 3 | 4:
                    walk.the_server_sends_several(several)
                case 5:
                    walk.time_passes(rng.choice([0.5, 4.0, 7.0]))
                case _:
                    leave = rng.choice([walk.the_client_leaves_and_joins_again, walk.the_server_makes_the_client_leave])
                    leave(really=rng.random() < 0.2)
        walk.teardown()
