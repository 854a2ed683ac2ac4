"""What Socket.IO asks of an application, and what it gives it: peers.

A *peer* is one client in one namespace, from the CONNECT that was accepted to its end.
"""

from __future__ import annotations

from typing import Any, Protocol

from attrs import frozen

from protocol.engineio import CloseReason


class Peer(Protocol):
    """A client that has joined, as the application sees it. It is a new peer when it leaves and joins again."""

    @property
    def id(self) -> str:
        """Its Socket.IO sid. No secret, unlike the connection's own Engine.IO sid."""
        ...

    @property
    def namespace(self) -> str: ...

    @property
    def address(self) -> str:
        """``host:port`` at the other end of the socket."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it has left or will not be sent anything any more."""
        ...

    def emit(self, event: str, *args: object) -> None:
        """Queue an event; bytes in `args` travel as attachments. Does nothing once `closed`.

        Raises:
            ValueError: `args` cannot travel: not JSON and bytes, or over a limit.
            protocol.socketio.NotJoined: within `Application.connected`, before the client was let in.
        """
        ...

    async def drained(self) -> None:
        """Wait until all that is queued for it was sent, or nothing will be sent any more."""
        ...

    def close(self) -> None:
        """Disconnect it when all that is queued was sent. Its client library will not come back by itself.

        Raises:
            protocol.socketio.NotJoined: within `Application.connected`.
        """
        ...


@frozen
class Refusal:
    """Why a client may not join (CONNECT_ERROR); `data` such as ``{"code": "AUTH_FAILED"}``."""

    message: str
    data: dict[str, Any] | None = None


class Application(Protocol):
    """Whom the events are for. Nothing here waits; whatever it raises closes the one connection and is logged."""

    def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
        """Let `peer` in (None) or not. It can be sent events from `welcome` on."""
        ...

    def welcome(self, peer: Peer, auth: dict[str, Any]) -> None:
        """`peer` is in: it was let in just now, or has come back with all that it had missed."""
        ...

    def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        """Take one event; they come in order.

        Returns:
            what the client's callback gets, where it asked for one.
        """
        ...

    def disconnected(self, peer: Peer, reason: CloseReason) -> None:
        """`peer`, once let in, is gone. Comes exactly once."""
        ...
