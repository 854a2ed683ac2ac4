"""Who may connect: how many at once, in all and from one address, and how many handshakes per second.

    What one address can take is less than what there is. So a worker that reconnects in a loop, or somebody who means
    harm, fills up what is its own, and the others find room.

What is "one address" is what one party has for the asking: an IPv4 address, but of IPv6 the whole /64 (RFC 6177, 2).
Behind a proxy everybody shares the proxy's address; then the limit per address has to be the limit of all.

Rules only: no clock and no I/O. Everything that was admitted must be released, by the same address.
"""

from __future__ import annotations

import math
from enum import StrEnum
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeAlias

from attrs import define, field, frozen

RETRY_AFTER_S: Final = 10
"""When to come back to a limit on what is open: nobody knows when something closes."""

REMEMBERED_ADDRESSES: Final = 10_000
"""Parties whose handshakes are counted at once: about 2 MB. Over that the one that was quiet longest is forgotten."""

IPV6_PREFIX_BITS: Final = 64

Party: TypeAlias = IPv4Address | int
"""Who counts as one: an IPv4 address or the first 64 bits of an IPv6 one."""


class Reason(StrEnum):
    """Why somebody is not let in; a metric's label."""

    CONNECTIONS = "connections"
    ADDRESS_CONNECTIONS = "address_connections"
    SESSIONS = "sessions"
    ADDRESS_SESSIONS = "address_sessions"
    ADDRESS_HANDSHAKES = "address_handshakes"


_MESSAGES: Final = {
    Reason.CONNECTIONS: "too many connections",
    Reason.ADDRESS_CONNECTIONS: "too many connections from one address",
    Reason.SESSIONS: "too many sessions",
    Reason.ADDRESS_SESSIONS: "too many sessions from one address",
    Reason.ADDRESS_HANDSHAKES: "too many handshakes from one address",
}


@frozen
class Denial:
    """Why somebody is not let in, and when to ask again (seconds, at least 1: HTTP's Retry-After)."""

    reason: Reason
    retry_after_s: int = RETRY_AFTER_S

    @property
    def status(self) -> HTTPStatus:
        """503 where the server is full, 429 where the address has had its share."""
        if self.reason in (Reason.CONNECTIONS, Reason.SESSIONS):
            return HTTPStatus.SERVICE_UNAVAILABLE
        return HTTPStatus.TOO_MANY_REQUESTS

    @property
    def message(self) -> str:
        """What the client is told."""
        return _MESSAGES[self.reason]


@frozen(kw_only=True)
class AdmissionLimits:
    """How much is let in.

    Attributes:
        connections: sockets at once; Engine.IO sessions, too, which are counted apart.
        connections_per_address: of these from one address.
        handshakes_per_s: Engine.IO handshakes from one address, over time. At once it may make as many as it may have
            connections: when a server comes back, everybody does.
    """

    connections: int = 512
    connections_per_address: int = 128
    handshakes_per_s: float = 20.0


class Admission:
    """Counts who is connected and says who may be. Addresses are those of the peer's socket, without the port.

    A *connection* lasts from its accept to its close. An Engine.IO *session* on long-polling has one only while a
    request is held, and lives on between requests, so sessions are counted on their own, under the same limits.
    """

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        limits = limits or AdmissionLimits()
        self._connections = _Places(
            limits.connections, limits.connections_per_address, Reason.CONNECTIONS, Reason.ADDRESS_CONNECTIONS
        )
        self._sessions = _Places(
            limits.connections, limits.connections_per_address, Reason.SESSIONS, Reason.ADDRESS_SESSIONS
        )
        self._handshakes = _Buckets(limits.handshakes_per_s, limits.connections_per_address)

    def admit_connection(self, address: str) -> Denial | None:
        """Count a connection that was accepted, unless there are too many; None: it is in, `release_connection` it.

        Raises:
            ValueError: not an IP address. So do all methods.
        """
        return self._connections.take(_party(address))

    def release_connection(self, address: str) -> None:
        """An admitted connection is closed."""
        self._connections.give_back(_party(address))

    def admit_session(self, address: str) -> Denial | None:
        """Count an Engine.IO session, unless there are too many; None: it is in, `release_session` it."""
        return self._sessions.take(_party(address))

    def release_session(self, address: str) -> None:
        """An admitted session has ended."""
        self._sessions.give_back(_party(address))

    def admit_handshake(self, address: str, now: float) -> Denial | None:
        """Count one Engine.IO handshake, unless they come too fast; a refused one does not count.

        Args:
            now: seconds of a monotonic clock.
        """
        wait_s = self._handshakes.take(_party(address), now)
        return None if wait_s == 0 else Denial(Reason.ADDRESS_HANDSHAKES, max(1, math.ceil(wait_s)))

    @property
    def connections(self) -> int:
        """Admitted and not released."""
        return self._connections.taken

    @property
    def sessions(self) -> int:
        """Admitted and not released."""
        return self._sessions.taken

    @property
    def remembered(self) -> int:
        """Parties of which anything is kept in memory, once for each thing that is counted."""
        return sum(
            len(kept) for kept in (self._connections.by_party, self._sessions.by_party, self._handshakes.full_at)
        )


def _party(address: str) -> Party:
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        return parsed.ipv4_mapped or int(parsed) >> (128 - IPV6_PREFIX_BITS)
    return parsed


@define
class _Places:
    """A number of places, of which nobody may have more than a share."""

    places: int
    share: int
    none_left: Reason
    share_taken: Reason
    taken: int = 0
    by_party: dict[Party, int] = field(factory=dict)  # never 0

    def take(self, party: Party) -> Denial | None:
        theirs = self.by_party.get(party, 0)
        if theirs >= self.share:
            return Denial(self.share_taken)
        if self.taken >= self.places:
            return Denial(self.none_left)
        self.by_party[party] = theirs + 1
        self.taken += 1
        return None

    def give_back(self, party: Party) -> None:
        self.by_party[party] -= 1  # a KeyError: it was never taken
        self.taken -= 1
        if self.by_party[party] == 0:
            del self.by_party[party]


@define
class _Buckets:
    """A token bucket for each party, kept as the one number that says all: when it will be full again."""

    tokens_per_s: float
    size: int
    full_at: dict[Party, float] = field(factory=dict)  # in the order of their last attempts

    def take(self, party: Party, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        self._forget_full(now)
        missing_s = max(0.0, self.full_at.pop(party, now) - now)
        wait_s = missing_s - (self.size - 1) / self.tokens_per_s
        if wait_s > 1e-9:  # what adding up rounds is no reason to refuse
            self.full_at[party] = now + missing_s
            return wait_s
        self.full_at[party] = now + missing_s + 1 / self.tokens_per_s
        if len(self.full_at) > REMEMBERED_ADDRESSES:
            del self.full_at[next(iter(self.full_at))]
        return 0.0

    def _forget_full(self, now: float) -> None:
        """A full bucket is like none. Two for each that may be added, so that they become fewer."""
        for party in [party for party, _ in zip(self.full_at, range(2), strict=False)]:
            if self.full_at[party] <= now:
                del self.full_at[party]
