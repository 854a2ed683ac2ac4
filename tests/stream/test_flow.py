"""Backpressure levels, exactly as the contract's table says ("Flow control")."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_trio.stream.flow import FlowControl, Level, default_critical


def control(max_inflight: int = 3) -> FlowControl:
    return FlowControl(max_inflight, default_critical(max_inflight))


def walk(counts: list[int], max_inflight: int = 3) -> list[tuple[int, str]]:
    """The events that leave while in_flight takes these values: (in_flight, action)."""
    flow = control(max_inflight)
    return [(count, level.action) for count in counts if (level := flow.update(count)) is not None]


def test_up_to_max_inflight_is_normal() -> None:
    assert walk([1, 2, 3, 2, 1, 0]) == []


def test_rising_tells_each_level_once() -> None:
    assert walk([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == [(4, "slow_down"), (7, "pause")]


def test_falling_tells_only_recovery_below_max_inflight() -> None:
    assert walk([8, 7, 6, 5, 4, 3, 2, 1, 0]) == [(8, "pause"), (2, "none")]


def test_medium_stands_until_below_max_inflight() -> None:
    assert walk([4, 3, 4, 3, 4, 3, 2, 3, 4]) == [(4, "slow_down"), (2, "none"), (4, "slow_down")]


def test_high_does_not_flap_around_its_threshold() -> None:
    assert walk([7, 6, 7, 6, 5, 4, 7, 2]) == [(7, "pause"), (2, "none")]


def test_medium_becomes_high() -> None:
    assert walk([4, 3, 7]) == [(4, "slow_down"), (7, "pause")]


@pytest.mark.parametrize(
    ("level", "severity", "action", "threshold"),
    [
        (Level.NORMAL, "low", "none", None),
        (Level.MEDIUM, "medium", "slow_down", "medium"),
        (Level.HIGH, "high", "pause", "high"),
    ],
)
def test_what_a_worker_is_told(level: Level, severity: str, action: str, threshold: str | None) -> None:
    assert (level.severity, level.action, level.threshold_exceeded) == (severity, action, threshold)


def test_critical_refuses_what_would_exceed_it() -> None:
    flow = control(3)
    assert flow.admits(9)
    assert not flow.admits(10)


@given(st.integers(1, 10), st.lists(st.integers(0, 40), max_size=60))
def test_the_table_holds_at_every_moment(max_inflight: int, counts: list[int]) -> None:
    flow = control(max_inflight)
    for count in counts:
        before = flow.level
        changed = flow.update(count)
        assert (changed is None) == (flow.level is before)
        if count > 2 * max_inflight:
            assert flow.level is Level.HIGH
        elif count < max_inflight:
            assert flow.level is Level.NORMAL
        elif count > max_inflight:
            assert flow.level is (Level.HIGH if before is Level.HIGH else Level.MEDIUM)
        else:
            assert flow.level is before
