"""Whether something grows, by samples of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sts_trio.testing.trend import Trend, slope

HOURS = np.linspace(0, 0.5, 600)


def noise(deviation: float) -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(0, deviation, len(HOURS))


def test_the_slope_is_within_two_errors_of_the_true_one() -> None:
    growth, error = slope(HOURS, 100 + 20 * HOURS + noise(1.0))
    assert abs(growth - 20) < 2 * error < 2


def test_samples_that_resemble_their_neighbours_say_less() -> None:
    _, error = slope(HOURS, noise(1.0))
    _, wider = slope(HOURS, np.convolve(noise(1.0), np.ones(20), "same") / np.sqrt(20))
    assert wider > 3 * error


@pytest.mark.parametrize(
    ("growth", "error", "trend"),
    [
        (0, 1, Trend.FLAT),
        (-70, 13, Trend.FLAT),
        (4, 1, Trend.FLAT),
        (0, 13, Trend.UNKNOWN),
        (7, 1, Trend.UNKNOWN),
        (250, 133, Trend.UNKNOWN),  # any growth at all may hide in such an error
        (9, 1, Trend.GROWS),
        (660, 211, Trend.GROWS),
    ],
)
def test_it_is_flat_only_where_the_samples_can_tell(growth: float, error: float, trend: Trend) -> None:
    assert Trend.of(growth, error, most=6) is trend
