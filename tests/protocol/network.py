"""Two ends of an Engine.IO session, those who carry them, and a network in which everything takes as long as it likes.

Nothing happens by itself: `moves` are all the things that can happen next, and each says whether it did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TypeAlias

from attrs import define, field

from protocol.engineio import (
    ClientConnection,
    Closed,
    CloseReason,
    ConnectionClosed,
    EngineError,
    Frame,
    Handshake,
    MessageReceived,
    Opened,
    ServerConnection,
    Transport,
    TransportMisused,
)
from protocol.engineio.packets import SEPARATOR

QUEUE_BYTES = 1_000_000


class Signal(Enum):
    """What travels on a WebSocket besides frames."""

    REQUEST = "request"
    CLOSE = "close"


@define(eq=False)
class WebSocket:
    """Frames on their way, in order, and whether an end has closed: what still arrives there is dropped."""

    to_server: deque[Frame | Signal] = field(factory=deque)
    to_client: deque[Frame | Signal] = field(factory=deque)
    server_done: bool = False
    client_done: bool = False

    def cut(self) -> None:
        """What was on its way is lost; each end sees it when it gets there."""
        for wire in (self.to_server, self.to_client):
            wire.clear()
            wire.append(Signal.CLOSE)


@define
class Request:
    """An HTTP request on its way, `held` by the server, and then `answered`; the answer None is a 400."""

    body: str = ""
    held: bool = False
    answered: bool = False
    answer: str | None = None


Move: TypeAlias = Callable[[], bool]


class Network:
    """The session and its network.

    Attributes:
        sent: by the name of the end that was given them, the messages that have not arrived yet.
        harmed: somebody cut the session's transport, so that it may end, and messages may be lost.
    """

    def __init__(self, transport: Transport, max_payload: int, packets_per_poll: int) -> None:
        upgrades = ("websocket",) if transport is Transport.POLLING else ()
        self.handshake = Handshake("sid", upgrades, ping_interval_ms=300, ping_timeout_ms=200, max_payload=max_payload)
        self.packets_per_poll = packets_per_poll
        self.server = ServerConnection(
            self.handshake, 0.0, transport=transport, max_queue_bytes=QUEUE_BYTES, packets_per_poll=packets_per_poll
        )
        self.client = ClientConnection(0.0, transport=transport, max_queue_bytes=QUEUE_BYTES)
        self.now = 0.0
        self.poll: Request | None = None
        self.post: Request | None = None
        self.sockets: list[WebSocket] = []
        self.server_socket: WebSocket | None = None  # what the end has moved to
        self.client_socket: WebSocket | None = None
        self.server_probe: WebSocket | None = None  # what it may move to
        self.client_probe: WebSocket | None = None
        self.server_frame: Frame | None = None  # what it is writing
        self.client_frame: Frame | None = None
        self.probed = False  # the server has answered the probe of `server_probe`
        self.sent: dict[str, deque[str | bytes]] = {"server": deque(), "client": deque()}
        self.harmed = False
        if transport is Transport.WEBSOCKET:
            self.server_socket = self.client_socket = WebSocket()
            self.sockets.append(self.server_socket)
        self.moves: list[Move] = [
            self.server_writes,
            self.client_writes,
            self.client_polls,
            self.poll_arrives,
            self.poll_returns,
            self.client_posts,
            self.post_arrives,
            self.post_ends,
            self.post_returns,
            self.client_finishes_upgrade,
            self.frame_arrives_at_server,
            self.frame_arrives_at_client,
        ]

    # -------------------------------------------------------------------------------------- everything

    def end(self, side: str) -> ServerConnection | ClientConnection:
        return self.server if side == "server" else self.client

    def settle(self) -> None:
        """Let everything arrive."""
        for _ in range(10_000):
            if not sum(move() for move in self.moves):  # each of them, not until the first
                return
        raise AssertionError("it goes on for ever")

    def tick(self) -> None:
        self.server.tick(self.now)
        self.client.tick(self.now)
        self.look()

    def look(self) -> None:
        """What those who carry an end do after every call."""
        if self.poll and self.poll.held:
            self.poll.answer = self.server.next_payload()
            if self.poll.answer is not None:
                self.poll.held, self.poll.answered = False, True
                self.server.payload_sent(self.poll.answer)
                self.check_size(self.poll.answer)
                assert self.poll.answer.count(SEPARATOR) < self.packets_per_poll
        if self.server.closed is not None:
            for socket in (self.server_socket, self.server_probe):
                self.server_leaves(socket)
            self.server_probe = None
        if self.client.closed is not None:
            for socket in (self.client_socket, self.client_probe):
                self.client_leaves(socket)
            self.client_probe = None
            if self.poll and self.poll.held and self.post is None:  # after its goodbye it waits for the answer
                self.poll = None
                self.server.close(CloseReason.TRANSPORT_CLOSE)

    def check_size(self, payload: str) -> None:
        assert len(payload.encode()) <= self.handshake.max_payload or SEPARATOR not in payload

    def take(self, side: str, events: Iterable[object]) -> None:
        """Events of one end: what the other was given arrives once, in order, and before the end."""
        arriving = self.sent["client" if side == "server" else "server"]
        for event in events:
            assert self.end(side).closed is None or isinstance(event, Closed)
            match event:
                case MessageReceived(message):
                    assert arriving, f"{message!r} was not sent, or arrived already"
                    assert message == arriving.popleft()
                case Closed():
                    assert event == self.end(side).closed
                case Opened():
                    assert side == "client"
        self.look()

    # ------------------------------------------------------------------------------------- WebSockets

    def server_leaves(self, socket: WebSocket | None) -> None:
        if socket is not None and not socket.server_done:
            socket.server_done = True
            socket.to_client.append(Signal.CLOSE)

    def client_leaves(self, socket: WebSocket | None) -> None:
        if socket is not None and not socket.client_done:
            socket.client_done = True
            socket.to_server.append(Signal.CLOSE)

    def server_writes(self) -> bool:
        """A frame begins to leave, or has left; one that is cut off by the end is lost."""
        if self.server_frame is None:
            self.server_frame = self.server.next_frame()
            return self.server_frame is not None
        if self.server_socket is not None and not self.server_socket.server_done:
            self.server_socket.to_client.append(self.server_frame)
        self.server_frame = None
        self.server.frame_sent(self.now)
        self.look()
        return True

    def client_writes(self) -> bool:
        if self.client_frame is None:
            self.client_frame = self.client.next_frame()
            return self.client_frame is not None
        if self.client_socket is not None and not self.client_socket.client_done:
            self.client_socket.to_server.append(self.client_frame)
        self.client_frame = None
        self.client.frame_sent(self.now)
        self.look()
        return True

    def frame_arrives_at_server(self) -> bool:
        socket = next((socket for socket in self.sockets if socket.to_server), None)
        if socket is None:
            return False
        item = socket.to_server.popleft()
        if socket.server_done:
            return True
        if item is Signal.REQUEST:
            try:
                self.server.begin_upgrade()
            except (TransportMisused, ConnectionClosed):
                self.server_leaves(socket)
            else:
                self.server_probe = socket
        elif item is Signal.CLOSE:
            socket.server_done = True
            if socket is self.server_probe:
                self.server_abandons_upgrade()
            elif socket is self.server_socket:
                self.server.close(CloseReason.TRANSPORT_CLOSE)
        elif socket is self.server_probe:
            self.frame_arrives_at_probe(socket, item)
        else:
            assert socket is self.server_socket
            self.take("server", self.server.receive(item, self.now))
        self.look()
        return True

    def frame_arrives_at_probe(self, socket: WebSocket, item: Frame | Signal) -> None:
        assert not isinstance(item, Signal)
        reply = self.server.receive_probe(item)
        if reply is not None:
            socket.to_client.append(reply)
            self.probed = True
        else:
            self.server_socket, self.server_probe, self.probed = socket, None, False

    def server_abandons_upgrade(self) -> None:
        self.server.abandon_upgrade()
        self.server_leaves(self.server_probe)
        self.server_probe, self.probed = None, False

    def frame_arrives_at_client(self) -> bool:
        socket = next((socket for socket in self.sockets if socket.to_client), None)
        if socket is None:
            return False
        item = socket.to_client.popleft()
        if socket.client_done:
            return True
        if item is Signal.CLOSE:
            socket.client_done = True
            if socket is self.client_probe:
                self.client_abandons_upgrade()
            elif socket is self.client_socket:
                self.client.close(CloseReason.TRANSPORT_CLOSE)
        elif socket is self.client_probe:
            assert not isinstance(item, Signal)
            try:
                self.client.receive_probe(item)
            except EngineError:
                assert item != "3probe"
                self.client_abandons_upgrade()
        else:
            assert socket is self.client_socket
            assert not isinstance(item, Signal)
            self.take("client", self.client.receive(item, self.now))
        self.look()
        return True

    def client_begins_upgrade(self) -> None:
        self.client_probe = WebSocket(to_server=deque([Signal.REQUEST, self.client.begin_upgrade()]))
        self.sockets.append(self.client_probe)

    def client_abandons_upgrade(self) -> None:
        self.client.abandon_upgrade()
        self.client_leaves(self.client_probe)
        self.client_probe = None

    def client_finishes_upgrade(self) -> bool:
        if self.client_probe is None or (frame := self.client.finish_upgrade()) is None:
            return False
        self.harmed |= Signal.CLOSE in self.client_probe.to_client  # it is gone, and the client does not know yet
        self.client_probe.to_server.append(frame)
        self.client_socket, self.client_probe = self.client_probe, None
        self.look()
        return True

    # ------------------------------------------------------------------------------------ long-polling

    def client_polls(self) -> bool:
        if not self.client.wants_poll:
            return False
        assert self.poll is None
        self.client.begin_poll()
        self.poll = Request()
        return True

    def poll_arrives(self) -> bool:
        if self.poll is None or self.poll.held or self.poll.answered:
            return False
        self.poll.held = self.server_takes(self.server.begin_poll)
        self.poll.answered = not self.poll.held
        self.look()
        return True

    def poll_returns(self) -> bool:
        if self.poll is None or not self.poll.answered:
            return False
        answer, self.poll = self.poll.answer, None
        if answer is None:
            self.client.close(CloseReason.TRANSPORT_ERROR)
            self.look()
        else:
            self.take("client", self.client.receive_payload(answer, self.now))
        return True

    def client_posts(self) -> bool:
        body = self.client.next_payload()
        if body is None:
            return False
        assert self.post is None
        self.check_size(body)
        self.post = Request(body)
        self.look()
        return True

    def post_arrives(self) -> bool:
        if self.post is None or self.post.held or self.post.answered:
            return False
        self.post.held = self.server_takes(self.server.begin_post)
        self.post.answered = not self.post.held
        return True

    def server_takes(self, begin: Callable[[], None]) -> bool:
        """Whether a request is let in; one for a session that has moved or ended is not."""
        if self.server.transport is Transport.WEBSOCKET:
            return False
        try:
            begin()
        except ConnectionClosed:
            return False
        return True

    def post_ends(self) -> bool:
        if self.post is None or not self.post.held:
            return False
        self.take("server", self.server.receive_payload(self.post.body.encode(), self.now))
        self.post.held, self.post.answered, self.post.answer = False, True, "ok"
        return True

    def post_returns(self) -> bool:
        if self.post is None or not self.post.answered:
            return False
        answer, self.post = self.post.answer, None
        if answer is None:
            self.harmed |= self.poll is not None  # which may bring the last messages, as it will turn out too late
            self.client.close(CloseReason.TRANSPORT_ERROR)
        else:
            self.client.payload_sent()
        self.look()
        return True

    def http_breaks(self) -> None:
        """Poll and POST are lost, wherever they are."""
        if (self.poll and self.poll.held) or (self.post and self.post.held):
            self.server.close(CloseReason.TRANSPORT_CLOSE)
        self.poll = self.post = None
        self.client.close(CloseReason.TRANSPORT_ERROR)
        self.look()
