"""Backpressure: from a stream's in-flight count to what its worker is told (contract, "Flow control").

Pure: the count is handed in, the level change comes out. The table, with M = max_inflight:

==================  ===================  =================================================================
in_flight           level                told when the level changes
==================  ===================  =================================================================
> 2 x M             high                 ``high``, ``pause``
> M                 medium               ``medium``, ``slow_down``
< M                 normal               ``low``, ``none`` (recovery)
==================  ===================  =================================================================

Between M and a level's own threshold the last level stands, so a count that wavers around a threshold does not flap.
"""

from __future__ import annotations

from enum import Enum

from attrs import define, field


class Level(Enum):
    """How loaded a stream is, with what its worker is told on entering it."""

    NORMAL = ("low", "none", None)
    MEDIUM = ("medium", "slow_down", "medium")
    HIGH = ("high", "pause", "high")

    def __init__(self, severity: str, action: str, threshold_exceeded: str | None) -> None:
        self.severity = severity
        self.action = action
        self.threshold_exceeded = threshold_exceeded


@define
class FlowControl:
    """The backpressure state of one stream.

    Attributes:
        max_inflight: fragments processed at once (M above).
        critical: in-flight fragments beyond which the next one is refused.
        level: what the worker was told last; `NORMAL` at first.
    """

    max_inflight: int
    critical: int
    level: Level = field(default=Level.NORMAL, init=False)

    def admits(self, in_flight: int) -> bool:
        """Whether one more fragment may join `in_flight` others."""
        return in_flight < self.critical

    def update(self, in_flight: int) -> Level | None:
        """The new level, where it changed."""
        if in_flight > 2 * self.max_inflight:
            level = Level.HIGH
        elif in_flight > self.max_inflight and self.level is Level.NORMAL:
            level = Level.MEDIUM
        elif in_flight < self.max_inflight:
            level = Level.NORMAL
        else:
            level = self.level
        if level is self.level:
            return None
        self.level = level
        return level


def default_critical(max_inflight: int) -> int:
    """``BACKPRESSURE_CRITICAL`` where it is not set: M more than where a worker is told to pause."""
    return 3 * max_inflight + 1
