"""Socket.IO protocol v5, server and client: namespaces, events and acknowledgements over one Engine.IO connection.

The rule of each namespace, which `ServerSocket` and `ClientSocket` enforce from their ends:

    The client asks (CONNECT), the server accepts with a sid or refuses with a message. Events and acknowledgements flow
    only after the acceptance. Either side may leave (DISCONNECT); nobody answers that, what was still on its way is
    ignored, and the client may ask again. Whatever else a peer sends breaks the protocol, and the connection with it.

`receive` takes an Engine.IO message and returns events; every other method returns the messages to send, in order and
without others between them. After a `SocketError` the connection must be closed and the object dropped. Nothing here
does I/O or reads a clock.

A client whose connection was lost can come back as who it was (connection state recovery, Socket.IO 4.6): see
`recovery`.

Source: https://socket.io/docs/v4/socket-io-protocol/ ("the protocol" below).
"""

from .client import ClientSocket, Connected, ConnectRefused, RecoveryState
from .packets import DEFAULT_LIMITS, Limits, Message, SocketError
from .recovery import RecoveryLog, RecoveryRequest, RecoveryStore, is_recoverable
from .server import INVALID_NAMESPACE, ConnectRequested, ServerSocket
from .sockets import AckReceived, Disconnected, EventReceived, NotJoined, encode_event

__all__ = [
    "DEFAULT_LIMITS",
    "INVALID_NAMESPACE",
    "AckReceived",
    "ClientSocket",
    "ConnectRefused",
    "ConnectRequested",
    "Connected",
    "Disconnected",
    "EventReceived",
    "Limits",
    "Message",
    "NotJoined",
    "RecoveryLog",
    "RecoveryRequest",
    "RecoveryState",
    "RecoveryStore",
    "ServerSocket",
    "SocketError",
    "encode_event",
    "is_recoverable",
]
