"""Where a programme is cut into fragments. Pure: samples in, borders out.

The rule: fragments cover the programme from its first sample to its last without gap or overlap, and every border is a
whole millisecond, because that is what the wire counts in (contract, `duration_ms`). A border at `b` ms is sample
``frame_count(b, rate)`` of the source, and of the dubbed programme too: each dubbed fragment is laid between its own
two borders, so that rounding at rates like 44.1 kHz never adds up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from attrs import frozen

from ..audio import frame_count

MAX_FRAGMENT_MS: Final = 60_000
"""The longest fragment the wire carries (contract, `audio.duration_ms`)."""

REACH_MS: Final = 1_000
"""How far either side of the fragment length a pause is looked for."""

_SHORTEST_TAIL_MS: Final = 500  # a last fragment shorter than this holds no word: its audio joins the one before
_WINDOW_MS: Final = 25  # one energy measurement; short enough for the closure of a plosive to show
_STEP_MS: Final = 10
_PAUSE_MS: Final = 300  # a moment is as quiet as this much around it: pauses win over the closures inside words
_AS_QUIET_DB: Final = 3.0
_SILENCE_DB: Final = -60.0  # quieter than this is all the same


@frozen
class Slot:
    """One fragment's place in the programme: ms from its start, `end_ms` not included."""

    start_ms: int
    end_ms: int

    @property
    def duration_ms(self) -> int:
        return self.end_ms - self.start_ms

    def frames(self, rate_hz: int) -> slice:
        """The sample frames between the borders; the last slot may reach past a source's end by less than 1 ms."""
        return slice(frame_count(self.start_ms, rate_hz), frame_count(self.end_ms, rate_hz))


def length_ms(frames: int, rate_hz: int) -> int:
    """The whole milliseconds that hold `frames` sample frames."""
    return -(-frames * 1000 // rate_hz)


def cut_fixed(total_ms: int, fragment_ms: int) -> list[Slot]:
    """Cut every `fragment_ms`, as live workers do; a tiny tail joins the fragment before it."""
    return _cut(total_ms, fragment_ms, 0, lambda low, high: high)


def cut_at_pauses(samples: npt.NDArray[Any], rate_hz: int, fragment_ms: int) -> list[Slot]:
    """Cut at the quietest moment within a second either side of `fragment_ms` after the cut before.

    Args:
        samples: int16, shape ``(frames, channels)``; only the seconds around a cut are read.
    """
    total_ms = length_ms(len(samples), rate_hz)
    return _cut(total_ms, fragment_ms, REACH_MS, lambda low, high: _quietest(samples, rate_hz, low, high))


def _cut(total_ms: int, fragment_ms: int, reach_ms: int, choose: Callable[[int, int], int]) -> list[Slot]:
    """Cut at ``choose(earliest, latest)`` until what is left fits one fragment, leaving no tail that is too short."""
    if total_ms < 1:
        raise ValueError("there is nothing to cut")
    if not 100 <= fragment_ms <= MAX_FRAGMENT_MS:
        raise ValueError(f"a fragment is 100 to {MAX_FRAGMENT_MS} ms long, not {fragment_ms}")
    tail_ms = min(_SHORTEST_TAIL_MS, fragment_ms // 2)
    longest_last_ms = min(fragment_ms + max(reach_ms, tail_ms), MAX_FRAGMENT_MS)
    slots: list[Slot] = []
    start = 0
    while (left := total_ms - start) > longest_last_ms:
        latest = min(fragment_ms + reach_ms, MAX_FRAGMENT_MS, left - tail_ms)
        earliest = min(latest, max(fragment_ms - reach_ms, fragment_ms // 2))
        end = choose(start + earliest, start + latest)
        slots.append(Slot(start, end))
        start = end
    return [*slots, Slot(start, total_ms)]


def _quietest(samples: npt.NDArray[Any], rate_hz: int, low_ms: int, high_ms: int) -> int:
    """The moment from `low_ms` to `high_ms` with the lowest mean level around it.

    Noise makes some moment of a pause the quietest by chance: of all that are about as quiet it is the middle of the
    longest stretch, as far from the words on both sides as can be.
    """
    moments = np.arange(low_ms, high_ms + 1, _STEP_MS)
    centres = np.arange(low_ms - _PAUSE_MS // 2, high_ms + _PAUSE_MS // 2 + 1, _STEP_MS)
    around = np.lib.stride_tricks.sliding_window_view(_levels(samples, rate_hz, centres), _PAUSE_MS // _STEP_MS + 1)
    means = around.mean(axis=1)[: len(moments)]
    quiet = np.flatnonzero(means <= means.min() + _AS_QUIET_DB)
    stretches = np.split(quiet, np.flatnonzero(np.diff(quiet) > 1) + 1)
    longest = max(stretches, key=len)
    return int(moments[longest[len(longest) // 2]])


def _levels(samples: npt.NDArray[Any], rate_hz: int, centres_ms: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The level in dBFS of the window around each moment; beyond the programme's ends there is silence."""
    first = int(centres_ms[0] - _WINDOW_MS) * rate_hz // 1000
    last = int(centres_ms[-1] + _WINDOW_MS) * rate_hz // 1000 + 1
    piece = np.zeros(last - first)
    inside = samples[max(first, 0) : max(last, 0)]
    piece[max(-first, 0) :][: len(inside)] = (inside.astype(np.float64) / 2**15).mean(axis=1)
    energy = np.concatenate(([0.0], np.cumsum(piece**2)))
    width = max(1, _WINDOW_MS * rate_hz // 1000)
    starts = centres_ms * rate_hz // 1000 - width // 2 - first
    levels: npt.NDArray[np.float64] = 10 * np.log10((energy[starts + width] - energy[starts]) / width + 1e-12)
    return np.maximum(levels, _SILENCE_DB)
