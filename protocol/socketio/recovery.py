"""Connection state recovery, the server's part: what a client missed while its connection was lost is sent again.

    Every event that can be recovered carries an *offset* as its last argument, and the CONNECT answer carries a *pid*,
    a secret. A client that comes back with pid and last offset gets what came after it, then a CONNECT answer with the
    sid and pid it had. Where the server does not know them any more, the client begins anew, with a new sid and pid.

An event that asks for an acknowledgement, or is volatile, has no offset and is not sent again. What was lost by
somebody's own decision (either side left the namespace, a broken rule) is not recovered; see `is_recoverable`.

Source: https://socket.io/docs/v4/connection-state-recovery
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from attrs import frozen

from ..engineio import CloseReason
from .packets import Message

T = TypeVar("T")

_RECOVERABLE: Final = frozenset(
    {
        CloseReason.TRANSPORT_CLOSE,
        CloseReason.TRANSPORT_ERROR,
        CloseReason.PING_TIMEOUT,
        CloseReason.CLIENT_CLOSE,  # a client library that leaves for good says so in its namespaces before
        CloseReason.SHUTTING_DOWN,
    }
)


def is_recoverable(reason: CloseReason) -> bool:
    """Whether clients of a connection that ended so may come back to what they had."""
    return reason in _RECOVERABLE


@frozen
class RecoveryRequest:
    """What a client that wants to recover brings along in its CONNECT."""

    pid: str
    offset: str

    @classmethod
    def read(cls, auth: Mapping[str, Any]) -> RecoveryRequest | None:
        """The request in a CONNECT's object; None where there is none."""
        pid, offset = auth.get("pid"), auth.get("offset")
        return cls(pid, offset) if isinstance(pid, str) and isinstance(offset, str) else None


_RECORD_BYTES: Final = 200
"""What keeping an event costs beside its messages."""


@frozen
class _Sent:
    number: int
    at: float
    messages: Sequence[Message]
    bytes: int


class RecoveryLog:
    """The events that one client was sent lately.

    Args:
        window_s: older ones are forgotten, seconds.
        max_bytes: of memory; beyond this the oldest are forgotten.
    """

    def __init__(self, *, window_s: float, max_bytes: int) -> None:
        self._window_s = window_s
        self._max_bytes = max_bytes
        self._sent: deque[_Sent] = deque()
        self._last = 0
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return self._bytes

    def next_offset(self) -> str:
        """The last argument of the event that is `add`-ed next."""
        return str(self._last + 1)

    def add(self, messages: Sequence[Message], now: float) -> None:
        """Keep an event that was sent with `next_offset`, or was to be sent to a client that is away."""
        self._last += 1
        sent = _Sent(self._last, now, messages, _RECORD_BYTES + sum(map(sys.getsizeof, messages)))
        self._sent.append(sent)
        self._bytes += sent.bytes
        while self._sent and (self._bytes > self._max_bytes or self._sent[0].at < now - self._window_s):
            self._bytes -= self._sent.popleft().bytes

    def since(self, offset: str) -> list[Message] | None:
        """What was sent after `offset`, in order; None where that is not known any more, or never was."""
        if not offset.isascii() or not offset.isdigit() or len(offset) > 20 or not 1 <= int(offset) <= self._last:
            return None
        first = int(offset) + 1
        oldest_kept = self._last - len(self._sent) + 1
        if first < oldest_kept:
            return None
        return [message for sent in self._sent if sent.number >= first for message in sent.messages]


class RecoveryStore(Generic[T]):
    """Clients that are away, by pid, each for `window_s` seconds, and not more than `max_clients`."""

    def __init__(self, *, window_s: float, max_clients: int) -> None:
        self._window_s = window_s
        self._max_clients = max_clients
        self._away: dict[str, tuple[float, T]] = {}  # in the order of their leaving, and so of their time

    @property
    def deadline(self) -> float:
        """When the next is to be given up (`expire`), seconds; infinite while nobody is away."""
        return next(iter(self._away.values()))[0] if self._away else math.inf

    def keep(self, pid: str, client: T, now: float) -> list[T]:
        """A client has lost its connection. Whoever has to be given up for it is returned."""
        self._away.pop(pid, None)
        self._away[pid] = (now + self._window_s, client)
        return [self._away.pop(next(iter(self._away)))[1]] if len(self._away) > self._max_clients else []

    def take(self, pid: str) -> T | None:
        """The client that comes back with `pid`, no longer away; None where there is none."""
        kept = self._away.pop(pid, None)
        return None if kept is None else kept[1]

    def expire(self, now: float) -> list[T]:
        """Whoever has been away for too long."""
        return [self._away.pop(pid)[1] for pid, (until, _) in list(self._away.items()) if until <= now]

    def clear(self) -> list[T]:
        """Give everybody up."""
        clients = [client for _, client in self._away.values()]
        self._away.clear()
        return clients
