"""Whether something grows, by samples of it: a slope, how far to believe it, and what that says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = Sequence[float] | NDArray[np.float64]


def slope(hours: Values, values: Values) -> tuple[float, float]:
    """Least squares: how much `values` grow in an hour, and the standard error of that.

    The error is widened for samples that resemble their neighbours (first-order autocorrelation).
    """
    x, y = np.array(hours) - np.mean(hours), np.array(values) - np.mean(values)
    growth = float((x * y).sum() / (x * x).sum())
    rest = y - growth * x
    alike = float(np.clip((rest[1:] * rest[:-1]).sum() / max((rest * rest).sum(), 1e-9), 0, 0.99))
    independent = max(3.0, len(x) * (1 - alike) / (1 + alike))
    return growth, math.sqrt(float((rest * rest).sum()) / (independent - 2) / float((x * x).sum()))


class Trend(Enum):
    """What a slope and its error say."""

    FLAT = "flat"
    GROWS = "grows"
    UNKNOWN = "too noisy to tell"

    @classmethod
    def of(cls, growth: float, error: float, most: float) -> Trend:
        """Whether `growth` is over `most`, give or take two standard errors."""
        if growth - 2 * error > most:
            return cls.GROWS
        return cls.FLAT if growth + 2 * error <= most else cls.UNKNOWN
