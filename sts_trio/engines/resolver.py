"""Host names looked up for blocking callers, who wait for it no longer than they have time.

The system's resolver cannot be interrupted: where no name server answers, ``getaddrinfo`` blocks for up to minutes. So
it has a thread of its own, that whoever asked may leave behind. There is never more than one: the next lookup begins
when the last has ended, and what that one found late is used by whoever comes after.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import trio

Address: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
"""As ``socket.getaddrinfo`` gives it."""

FRESH_S: Final = 5.0
"""For so long nobody looks a name up again: those who waited for the same lookup share what it found."""

PATIENCE_S: Final = 0.2
"""What a lookup is given where addresses of an earlier one are known: they seldom change."""


class Resolver:
    """Addresses of names, the last good ones included. To be shared by those who ask for the same names."""

    def __init__(self) -> None:
        self._one = trio.CapacityLimiter(1)  # a thread that was left behind counts until it ends
        self._known: dict[tuple[str, int], tuple[float, Sequence[Address]]] = {}
        """With the time at which they were found."""

    def addresses(self, host: str, port: int, limit_s: float) -> Sequence[Address]:
        """Blocks; to be called in a thread of trio's.

        Raises:
            TimeoutError: there is no answer within `limit_s`, and never was one before.
            OSError: the name has no address, or nobody knows.
            trio.Cancelled: the task that waits for the thread was cancelled; not to be swallowed.
        """
        return trio.from_thread.run(self._addresses, host, port, limit_s)

    async def _addresses(self, host: str, port: int, limit_s: float) -> Sequence[Address]:
        _, known = self._known.get((host, port), (0.0, None))
        with trio.move_on_after(limit_s if known is None else min(limit_s, PATIENCE_S)):
            try:
                return await trio.to_thread.run_sync(
                    self._look_up, host, port, abandon_on_cancel=True, limiter=self._one
                )
            except OSError:
                if known is None:
                    raise
        if known is None:
            raise TimeoutError(f"{host} could not be looked up in time")
        return known

    def _look_up(self, host: str, port: int) -> Sequence[Address]:
        found_at, addresses = self._known.get((host, port), (0.0, ()))
        if addresses and time.monotonic() < found_at + FRESH_S:
            return addresses
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._known[host, port] = time.monotonic(), addresses
        return addresses
