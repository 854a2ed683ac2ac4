"""The server's end of a Socket.IO connection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from attrs import frozen

from . import sockets
from .packets import Message, PacketType, SocketError
from .sockets import Membership, Socket

INVALID_NAMESPACE: Final = "Invalid namespace"
"""The message that refuses a namespace which does not exist."""


@frozen
class ConnectRequested:
    """Server side: the client wants to join; answer with `accept` or `reject`. No `auth` is ``{}``."""

    namespace: str
    auth: dict[str, Any]


Event: TypeAlias = ConnectRequested | sockets.Event


class ServerSocket(Socket):
    """The server's end."""

    def receive(self, message: Message) -> list[Event]:
        """Take one message of the client. An acknowledgement nobody asked for is ignored.

        Raises:
            SocketError: the client broke the protocol or a limit.
        """
        packet = self._next_packet(message)
        if packet is None:
            return []
        if packet.type is PacketType.CONNECT_ERROR:
            raise SocketError("CONNECT_ERROR from a client")
        if packet.type is not PacketType.CONNECT:
            return [*self._receive_joined(packet)]
        if self._membership(packet.namespace) not in (None, Membership.LEFT):
            raise SocketError("second CONNECT to a namespace")
        self._begin(packet.namespace, Membership.CONNECTING)
        return [ConnectRequested(packet.namespace, packet.data or {})]

    def accept(
        self, namespace: str, sid: str, *, pid: str | None = None, missed: Iterable[Message] = ()
    ) -> list[Message]:
        """Let the client in.

        Args:
            sid: names it in this namespace; not the Engine.IO sid, which is a secret.
            pid: with which it can come back (`recovery`); None where it cannot.
            missed: the messages that a client which has come back has missed: they leave before the answer.

        Raises:
            ValueError: no `ConnectRequested` for `namespace` is open.
        """
        self._requested(namespace)
        self._join(namespace)
        body = {"sid": sid} if pid is None else {"sid": sid, "pid": pid}
        return [*missed, *self._encode(PacketType.CONNECT, namespace, body)]

    def reject(self, namespace: str, message: str, data: Any = None) -> list[Message]:
        """Refuse the client: `INVALID_NAMESPACE` where there is none of that name. It may ask again.

        Raises:
            ValueError: no `ConnectRequested` for `namespace` is open.
        """
        self._requested(namespace)
        del self._namespaces[namespace]
        body = {"message": message} if data is None else {"message": message, "data": data}
        return self._encode(PacketType.CONNECT_ERROR, namespace, body)

    def _requested(self, namespace: str) -> None:
        if self._membership(namespace) is not Membership.CONNECTING:
            raise ValueError(f"no request to join {namespace} is open")
