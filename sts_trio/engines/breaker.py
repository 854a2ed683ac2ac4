"""A circuit breaker: who keeps failing is left alone for a while, and asked once before everybody asks again.

Pure: time comes in as an argument. The states (M. Nygard, "Release It!", "Circuit Breaker"):

=========  ===================================  ====================================================================
state      who is let through                   what changes it
=========  ===================================  ====================================================================
closed     everybody                            `failures` in a row, or one that says how long to stay away -> open
open       nobody                               its time is over -> half-open
half-open  one, the probe, at a time            the probe succeeds -> closed; it fails -> open, twice as long
=========  ===================================  ====================================================================

A call that had little time and got no answer says little: it is a part of a failure, and several add up.

A result counts only in the state in which its permit was given: what began before the last change says nothing about
what came after.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from attrs import define, field, frozen

Cause = TypeVar("Cause")


@frozen
class BreakerRule:
    """When it opens, and for how long.

    Attributes:
        failures: in a row, that open it.
        first_open_s: how long it stays open at first; each failed probe doubles it.
        longest_open_s: up to this. Being asked to stay away for longer is honoured up to this, too.
    """

    failures: int = 5
    first_open_s: float = 2.0
    longest_open_s: float = 30.0


@frozen(eq=False)
class Permit:
    """Leave to make one call. It is handed back with the result, or as withdrawn where there is none."""

    state: int


@define(eq=False)
class Breaker(Generic[Cause]):
    """The state of one service, shared by all who call it.

    Attributes:
        cause: what the failure was that opened it last; None where it never was open.
    """

    rule: BreakerRule = field(factory=BreakerRule)
    cause: Cause | None = field(default=None, init=False)
    _state: int = field(default=0, init=False)
    """Counts the changes: a permit of an earlier state is out of date."""
    _failures: float = field(default=0.0, init=False)
    _openings: int = field(default=0, init=False)
    """In a row: 0 while closed."""
    _open_until: float = field(default=0.0, init=False)
    _probe: Permit | None = field(default=None, init=False)

    @property
    def closed(self) -> bool:
        return not self._openings

    def remaining_s(self, now: float) -> float:
        """How long nobody will be let through; 0 where somebody may be."""
        return 0.0 if self.closed else max(0.0, self._open_until - now)

    def admit(self, now: float) -> Permit | None:
        """Leave to make a call now; None where there is none."""
        permit = Permit(self._state)
        if not self.closed:
            if now < self._open_until or self._probe is not None:
                return None
            self._probe = permit
        return permit

    def succeeded(self, permit: Permit) -> bool:
        """The call was answered. Returns whether that closed it."""
        if permit.state != self._state:
            return False
        self._failures = 0.0
        if self.closed:
            return False
        self._openings = 0
        self._change()
        return True

    def failed(
        self, permit: Permit, now: float, cause: Cause, *, stay_away_s: float = 0.0, weight: float = 1.0
    ) -> bool:
        """The call failed for a reason that will hit the next one, too. Returns whether that opened it.

        Args:
            stay_away_s: opens it at once and for at least this long.
            weight: which part of a failure it is, 0..1.
        """
        if permit.state != self._state:
            return False
        self._failures += weight
        enough = self.rule.failures if self.closed else 1
        if self._failures < enough - 1e-9 and not stay_away_s:  # parts do not add up to the last bit
            self.withdrawn(permit)
            return False
        backoff = self.rule.first_open_s * 2.0 ** min(self._openings, 64)
        self._open_until = now + min(max(backoff, stay_away_s), self.rule.longest_open_s)
        self._openings += 1
        self.cause = cause
        self._change()
        return True

    def withdrawn(self, permit: Permit) -> None:
        """The call ended without saying anything about the service: another may be the probe."""
        if permit is self._probe:
            self._probe = None

    def _change(self) -> None:
        self._state += 1
        self._failures = 0.0
        self._probe = None
