"""Fitting speech into its slot: which speed, who changes it, and what to call the result.

The rule (contract, "Duration"): the dubbed fragment lasts exactly as long as the original. Speech that is too long is
sped up by at most `MAX_SPEED`, speech that is short is slowed down to at least `MIN_SPEED` and padded with silence. The
engine changes its speaking rate first, because that sounds best; Rubber Band does what the engine could not. What is
still too long is cut: within `TRIMMED` of the slot that is a success, within `CLIPPED` a partial one, beyond it a
failure.

Speeds are relative to the voice's natural rate: 2.0 says the same in half the time. Durations are ms.
"""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

MAX_SPEED: Final = 2.0
MIN_SPEED: Final = 0.8

TRIMMED: Final = 10.0
CLIPPED: Final = 20.0
"""Percent of the slot by which speech may still be too long for `success` and for `partial`."""

NOT_WORTH_SLOWING: Final = 0.98
"""Speech that fits is not slowed down by less than this: a second synthesis would only buy a little less silence."""

DURATION_VARIANCE_HIGH: Final = "duration_variance_high"


@frozen
class Plan:
    """How to speak.

    Attributes:
        speed: the speed wanted in all, `MIN_SPEED`..`MAX_SPEED`.
        engine_rate: the part of it to ask the engine for; 1.0 means that the natural speech can be used as it is.
    """

    speed: float
    engine_rate: float


@frozen
class Verdict:
    """What became of the speech.

    Attributes:
        variance_percent: by how much of the slot the speech was too long before it was cut; 0.0 where it fits, for
            padding makes up the rest.
        warning: ``duration_variance_high`` where something that was said may be missing.
    """

    status: Literal["success", "partial", "failed"]
    variance_percent: float
    warning: str | None = None


class SlotFitter:
    """The fitting rule of one stream: speak, `at_best`, `plan`, speak again, `remaining`, stretch, `judge`."""

    def at_best(self, speech_ms: float, slot_ms: int) -> Verdict:
        """What speech of `speech_ms` at its natural rate can be called at the fastest speed there is."""
        return self.judge(speech_ms / MAX_SPEED, slot_ms)

    def plan(self, speech_ms: float, slot_ms: int, engine_range: tuple[float, float]) -> Plan:
        """Which speed takes speech of `speech_ms` at its natural rate into a slot of `slot_ms`.

        Args:
            engine_range: slowest and fastest rate the engine can be asked for.
        """
        speed = _speed(speech_ms, slot_ms, MIN_SPEED, MAX_SPEED)
        slowest, fastest = engine_range
        return Plan(speed, min(max(speed, slowest), fastest))

    def remaining(self, spoken_ms: float, slot_ms: int, natural_ms: float) -> float:
        """What Rubber Band must still do to speech of `spoken_ms`, whatever rate the engine really kept to.

        The speed in all stays within `MIN_SPEED`..`MAX_SPEED`: what an engine did beyond that is taken back. Within it,
        speech always fits afterwards that is at most `MAX_SPEED` times as long as its slot by nature.

        Returns:
            the speed to stretch by; 1.0 where nothing is left to do.
        """
        if spoken_ms <= 0 or natural_ms <= 0:
            return 1.0
        done = natural_ms / spoken_ms
        return _speed(spoken_ms, slot_ms, MIN_SPEED / done, MAX_SPEED / done)

    def judge(self, final_speech_ms: float, slot_ms: int) -> Verdict:
        """What to call a slot of `slot_ms` that holds speech of `final_speech_ms`.

        A slot of 0 ms holds no speech: any is a failure of 100 %.
        """
        excess_ms = max(final_speech_ms - slot_ms, 0.0)
        variance = excess_ms * 100 / slot_ms if slot_ms > 0 else (100.0 if excess_ms else 0.0)
        if variance <= TRIMMED:
            return Verdict("success", variance)
        if variance <= CLIPPED:
            return Verdict("partial", variance, DURATION_VARIANCE_HIGH)
        return Verdict("failed", variance, DURATION_VARIANCE_HIGH)


def _speed(speech_ms: float, slot_ms: int, low: float, high: float) -> float:
    """The speed from `low` to `high` that brings `speech_ms` closest to `slot_ms`; 1.0 where that is close enough."""
    if speech_ms <= 0:
        return 1.0
    wanted = speech_ms / slot_ms if slot_ms > 0 else high
    speed = min(max(wanted, low), high)
    return 1.0 if NOT_WORTH_SLOWING <= speed <= 1.0 <= high else speed
