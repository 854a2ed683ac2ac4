"""Log lines are bounded, for each party on its own, and what was left out is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sts_trio.observe.throttle import Throttle


def test_so_many_lines_a_second_are_written_and_the_others_counted() -> None:
    throttle = Throttle(2)
    assert [throttle.allow("a", now) for now in (0.0, 0.1, 0.2, 0.9)] == [0, 0, None, None]
    assert throttle.allow("a", 1.0) == 2
    assert throttle.allow("a", 1.1) == 0
    assert throttle.allow("a", 1.2) is None


def test_one_party_does_not_silence_another() -> None:
    throttle = Throttle(1)
    assert throttle.allow("a", 0.0) == 0
    assert throttle.allow("a", 0.0) is None
    assert throttle.allow("b", 0.0) == 0


def test_who_is_gone_is_forgotten() -> None:
    throttle = Throttle(1)
    throttle.allow("a", 0.0)
    throttle.forget("a")
    throttle.forget("never seen")
    assert throttle.allow("a", 0.0) == 0


@given(st.lists(st.floats(0, 0.4), max_size=60), st.integers(1, 5))
def test_every_line_is_written_or_counted(pauses: list[float], lines_per_s: int) -> None:
    throttle, now, written, told = Throttle(lines_per_s), 0.0, 0, 0
    for pause in pauses:
        now += pause
        left_out = throttle.allow("a", now)
        written += left_out is not None
        told += left_out or 0
    left_out = throttle.allow("a", now + 1)
    assert left_out is not None
    assert written + told + left_out == len(pauses)
    assert written <= lines_per_s * (now + 1)
