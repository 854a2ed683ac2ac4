"""The contract's "Duration": exactly the slot, within 0.8..2.0, and an honest name for what did not fit."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sts_trio.stream.duration import DURATION_VARIANCE_HIGH, MAX_SPEED, MIN_SPEED, NOT_WORTH_SLOWING, SlotFitter

slots = st.integers(1, 60_000)
durations = st.floats(0.01, 200_000)
ranges = st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0))
ROUNDING = 1e-9


@pytest.fixture
def fitter() -> SlotFitter:
    return SlotFitter()


@pytest.mark.parametrize(
    ("speech_ms", "speed"),
    [
        (9_000.0, 1.5),
        (12_000.0, 2.0),  # the fastest there is
        (12_001.0, 2.0),
        (6_000.0, 1.0),
        (6_001.0, 6_001 / 6_000),
        (5_880.0, 1.0),  # 98 % of the slot: left alone
        (5_879.0, 5_879 / 6_000),
        (4_800.0, 0.8),  # the slowest there is
        (1_000.0, 0.8),
        (0.0, 1.0),
    ],
)
def test_speed_fills_a_slot_of_six_seconds(fitter: SlotFitter, speech_ms: float, speed: float) -> None:
    assert fitter.plan(speech_ms, 6_000, (0.5, 3.0)).speed == pytest.approx(speed, rel=ROUNDING)


def test_the_engine_is_asked_for_what_it_can_do(fitter: SlotFitter) -> None:
    assert fitter.plan(9_000, 6_000, (0.7, 1.8)).engine_rate == 1.5
    assert fitter.plan(9_000, 6_000, (0.9, 1.2)).engine_rate == 1.2
    assert fitter.plan(3_000, 6_000, (0.9, 1.2)).engine_rate == 0.9
    assert fitter.plan(9_000, 6_000, (1.0, 1.0)).engine_rate == 1.0


def test_rubber_band_does_what_the_engine_could_not(fitter: SlotFitter) -> None:
    assert fitter.remaining(spoken_ms=7_500, slot_ms=6_000, natural_ms=9_000) == 1.25
    assert fitter.remaining(spoken_ms=9_000, slot_ms=6_000, natural_ms=9_000) == 1.5  # it knows one rate only


def test_nothing_remains_where_the_engine_got_close(fitter: SlotFitter) -> None:
    assert fitter.remaining(spoken_ms=5_950, slot_ms=6_000, natural_ms=9_000) == 1.0
    assert fitter.remaining(spoken_ms=3_740, slot_ms=6_000, natural_ms=3_000) == 1.0  # 0.802 instead of 0.8: no matter


def test_what_an_engine_did_beyond_the_limits_is_taken_back(fitter: SlotFitter) -> None:
    assert fitter.remaining(spoken_ms=4_000, slot_ms=6_000, natural_ms=3_000) == pytest.approx(0.8 / 0.75)
    assert fitter.remaining(spoken_ms=5_000, slot_ms=6_000, natural_ms=15_000) == pytest.approx(2 / 3)


@given(durations, st.integers(0, 60_000), ranges)
def test_a_plan_never_leaves_the_limits(speech_ms: float, slot_ms: int, engine_range: tuple[float, float]) -> None:
    plan = SlotFitter().plan(speech_ms, slot_ms, engine_range)
    assert MIN_SPEED <= plan.speed <= MAX_SPEED
    assert engine_range[0] <= plan.engine_rate <= engine_range[1]
    if plan.speed == 1.0:
        assert plan.engine_rate == 1.0


@given(durations, st.integers(0, 60_000), st.floats(0.3, 3.0))
def test_all_that_was_done_stays_within_the_limits(natural_ms: float, slot_ms: int, engine_did: float) -> None:
    spoken_ms = natural_ms / engine_did
    final_ms = spoken_ms / SlotFitter().remaining(spoken_ms, slot_ms, natural_ms)
    assert MIN_SPEED * (1 - ROUNDING) <= natural_ms / final_ms <= MAX_SPEED * (1 + ROUNDING)


@given(st.floats(0.001, MAX_SPEED), slots, ranges, st.floats(0.9, 1.1))
@example(2.0, 6_000, (1.0, 1.0), 1.0)
def test_speech_up_to_twice_its_slot_fits(
    share: float, slot_ms: int, engine_range: tuple[float, float], inaccuracy: float
) -> None:
    natural_ms = slot_ms * share
    fitter = SlotFitter()
    rate = fitter.plan(natural_ms, slot_ms, engine_range).engine_rate
    spoken_ms = natural_ms if rate == 1.0 else natural_ms / (rate * inaccuracy)
    final_ms = spoken_ms / fitter.remaining(spoken_ms, slot_ms, natural_ms)
    assert final_ms <= slot_ms * (1 + ROUNDING)
    assert fitter.judge(final_ms, slot_ms).status == "success"


@given(durations, slots, ranges)
def test_what_can_be_called_nothing_but_a_failure_is_known_before_it_is_tried(
    speech_ms: float, slot_ms: int, engine_range: tuple[float, float]
) -> None:
    fitter = SlotFitter()
    at_best = fitter.at_best(speech_ms, slot_ms)
    spoken_ms = speech_ms / fitter.plan(speech_ms, slot_ms, engine_range).engine_rate
    final_ms = spoken_ms / fitter.remaining(spoken_ms, slot_ms, speech_ms)
    if abs(speech_ms / 2 - slot_ms * 1.2) > 1e-6 and abs(speech_ms / 2 - slot_ms * 1.1) > 1e-6:
        assert at_best.status == fitter.judge(final_ms, slot_ms).status


@given(slots, st.floats(MIN_SPEED, 1.0))
def test_speech_that_can_fill_its_slot_does(slot_ms: int, share: float) -> None:
    fitter = SlotFitter()
    natural_ms = slot_ms * share
    final_ms = natural_ms / fitter.remaining(natural_ms, slot_ms, natural_ms)
    assert NOT_WORTH_SLOWING * slot_ms * (1 - ROUNDING) <= final_ms <= slot_ms * (1 + ROUNDING)


@pytest.mark.parametrize(
    ("final_ms", "status", "variance", "warning"),
    [
        (0.0, "success", 0.0, None),
        (3_000.0, "success", 0.0, None),  # padded
        (6_000.0, "success", 0.0, None),
        (6_600.0, "success", 10.0, None),  # trimmed
        (6_600.1, "partial", 10.0017, DURATION_VARIANCE_HIGH),
        (7_200.0, "partial", 20.0, DURATION_VARIANCE_HIGH),
        (7_200.1, "failed", 20.0017, DURATION_VARIANCE_HIGH),
        (60_000.0, "failed", 900.0, DURATION_VARIANCE_HIGH),
    ],
)
def test_verdicts_for_a_slot_of_six_seconds(
    fitter: SlotFitter, final_ms: float, status: str, variance: float, warning: str | None
) -> None:
    verdict = fitter.judge(final_ms, 6_000)
    assert (verdict.status, verdict.warning) == (status, warning)
    assert verdict.variance_percent == pytest.approx(variance, abs=1e-4)


@given(st.integers(1, 6_000))
def test_the_boundaries_are_exact_for_any_slot(tenth_ms: int) -> None:
    judge, slot_ms = SlotFitter().judge, 10 * tenth_ms
    assert judge(slot_ms + tenth_ms, slot_ms).status == "success"
    assert judge(slot_ms + tenth_ms + 0.01, slot_ms).status == "partial"
    assert judge(slot_ms + 2 * tenth_ms, slot_ms).status == "partial"
    assert judge(slot_ms + 2 * tenth_ms + 0.01, slot_ms).status == "failed"


@given(st.integers(0, 60_000), durations, durations)
def test_longer_speech_is_never_judged_better(slot_ms: int, one_ms: float, other_ms: float) -> None:
    grades = ["success", "partial", "failed"]
    shorter = SlotFitter().judge(min(one_ms, other_ms), slot_ms)
    longer = SlotFitter().judge(max(one_ms, other_ms), slot_ms)
    assert grades.index(shorter.status) <= grades.index(longer.status)
    assert shorter.variance_percent <= longer.variance_percent


def test_a_slot_of_nothing_holds_nothing(fitter: SlotFitter) -> None:
    assert fitter.judge(0, 0).status == "success"
    assert fitter.judge(1, 0).status == "failed"
    assert fitter.judge(1, 0).variance_percent == 100.0
    assert fitter.plan(500, 0, (0.5, 3.0)).speed == MAX_SPEED
    assert fitter.plan(0, 0, (0.5, 3.0)).speed == 1.0
    assert fitter.remaining(250, 0, 500) == 1.0  # already spoken at the fastest speed
