"""When a failed request is tried again."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_trio.engines.retry import RetryPlan, parse_retry_after

PLAN = RetryPlan(first_s=0.2, factor=2.0, longest_s=2.0, jitter=0.5, useful_s=0.2)

seconds = st.floats(0, 1e6)
chances = st.floats(0, 1)


@pytest.mark.parametrize(
    ("failures", "longest", "shortest"),
    [(1, 0.2, 0.1), (2, 0.4, 0.2), (3, 0.8, 0.4), (5, 2.0, 1.0), (10_000, 2.0, 1.0)],
)
def test_the_wait_doubles_up_to_a_limit_and_half_of_it_is_chance(
    failures: int, longest: float, shortest: float
) -> None:
    assert PLAN.wait_s(failures, chance=0.0, retry_after_s=None, left_s=60) == pytest.approx(longest)
    assert PLAN.wait_s(failures, chance=1.0, retry_after_s=None, left_s=60) == pytest.approx(shortest)


def test_what_the_server_asked_for_is_the_least_that_is_waited() -> None:
    assert PLAN.wait_s(1, chance=0.5, retry_after_s=3.0, left_s=60) == 3.0
    assert PLAN.wait_s(5, chance=0.0, retry_after_s=0.1, left_s=60) == 2.0


def test_a_try_that_would_come_too_late_is_not_waited_for() -> None:
    assert PLAN.wait_s(1, chance=0.0, retry_after_s=3.0, left_s=3.2) == 3.0
    assert PLAN.wait_s(1, chance=0.0, retry_after_s=3.0, left_s=3.1) is None
    assert PLAN.wait_s(1, chance=0.0, retry_after_s=None, left_s=-1.0) is None


@given(st.integers(1, 10_000), chances, st.none() | seconds, st.floats(-1e6, 1e6))
def test_no_wait_leaves_less_time_than_a_try_needs_or_less_than_was_asked_for(
    failures: int, chance: float, retry_after_s: float | None, left_s: float
) -> None:
    wait = PLAN.wait_s(failures, chance=chance, retry_after_s=retry_after_s, left_s=left_s)
    if wait is not None:
        assert wait >= max(PLAN.first_s * (1 - PLAN.jitter), retry_after_s or 0)
        assert wait + PLAN.useful_s <= left_s


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),  # digits, but not the protocol's
        ("0", 0.0),
        (" 120 ", 120.0),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW + 30), 30.0),  # -0000
        (formatdate(NOW - 30, usegmt=True), 0.0),
        ("Fri, 31 Feb 2027 25:00:00 GMT", None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, now=NOW) == seconds


@given(st.text() | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ [+-]?\w+", fullmatch=True))
def test_whatever_a_server_says_is_a_wait_or_nothing(header: str) -> None:
    wait = parse_retry_after(header, now=NOW)
    assert wait is None or wait >= 0
