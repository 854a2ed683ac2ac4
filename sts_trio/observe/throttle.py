"""So many log lines a second for each of many parties, and how many there were beyond."""

from __future__ import annotations

from attrs import define, field


@define
class _Window:
    since: float
    lines: int = 0
    left_out: int = 0


@define
class Throttle:
    """Says which lines to write. No clock and no I/O; `forget` whoever is gone.

    Args:
        lines_per_s: that each party may write.
    """

    lines_per_s: int
    _windows: dict[str, _Window] = field(factory=dict, init=False)

    def allow(self, party: str, now: float) -> int | None:
        """None: leave this line out; else how many were left out before it."""
        window = self._windows.setdefault(party, _Window(now))
        left_out = 0
        if now >= window.since + 1:
            left_out = window.left_out
            self._windows[party] = window = _Window(now)
        window.lines += 1
        if window.lines > self.lines_per_s:
            window.left_out += 1
            return None
        return left_out

    def forget(self, party: str) -> None:
        """`party` is gone."""
        self._windows.pop(party, None)
