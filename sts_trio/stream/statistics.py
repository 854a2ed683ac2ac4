"""Counts and times over a stream's life. Bounded: nothing here grows with it."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from attrs import define, field

from protocol.dubbing import Statistics

from .assets import Fragment

RECENT_TIMES: Final = 1_000
"""Processing times kept for the 95th percentile: the last hour and a half of a live stream."""

CURRENT_TIMES: Final = 10
"""Of these, the ones that say how long a fragment takes at present: the last minute."""


@define
class StreamStatistics:
    """What a stream's first results were like; retries do not count again."""

    counts: dict[str, int] = field(factory=lambda: {"success": 0, "partial": 0, "failed": 0})
    total_duration_ms: int = 0
    _total_ms: int = 0
    _current_ms: deque[int] = field(factory=lambda: deque(maxlen=CURRENT_TIMES))
    _recent_ms: deque[int] = field(factory=lambda: deque(maxlen=RECENT_TIMES))

    def add(self, fragment: Fragment) -> None:
        """Count a finished fragment."""
        self.counts[fragment.status] += 1
        self.total_duration_ms += fragment.slot_ms
        self._total_ms += fragment.processing_time_ms
        self._recent_ms.append(fragment.processing_time_ms)
        self._current_ms.append(fragment.busy_ms)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def typical_ms(self) -> int:
        """What processing a fragment takes at present; 0 where none is finished."""
        return round(sum(self._current_ms) / len(self._current_ms)) if self._current_ms else 0

    def summary(self) -> Statistics:
        ordered = sorted(self._recent_ms)
        return Statistics(
            success_count=self.counts["success"],
            partial_count=self.counts["partial"],
            failed_count=self.counts["failed"],
            avg_processing_time_ms=round(self._total_ms / self.total) if self.total else 0,
            p95_processing_time_ms=ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else 0,
        )
