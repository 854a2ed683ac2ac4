"""The circuit breaker: whatever happens in whatever order, a service that is down is asked by one at a time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sts_trio.engines.breaker import Breaker, BreakerRule, Permit

RULE = BreakerRule(failures=3, first_open_s=2.0, longest_open_s=10.0)


def admitted(breaker: Breaker[str], now: float) -> Permit:
    permit = breaker.admit(now)
    assert permit is not None
    return permit


def opened(now: float = 0.0) -> Breaker[str]:
    """One that has opened at `now`."""
    breaker: Breaker[str] = Breaker(RULE)
    for _ in range(RULE.failures):
        breaker.failed(admitted(breaker, now), now, "down")
    assert not breaker.closed
    return breaker


def test_it_opens_after_so_many_failures_in_a_row_and_says_so_once() -> None:
    breaker: Breaker[str] = Breaker(RULE)
    assert [breaker.failed(admitted(breaker, 0.0), 0.0, cause) for cause in ("a", "b", "c")] == [False, False, True]
    assert breaker.cause == "c"
    assert breaker.admit(0.0) is None
    assert breaker.admit(1.99) is None
    assert breaker.remaining_s(0.5) == 1.5


def test_a_success_in_between_starts_the_count_again() -> None:
    breaker: Breaker[str] = Breaker(RULE)
    for outcome in "ff-ff-ff":
        permit = admitted(breaker, 0.0)
        if outcome == "f":
            assert not breaker.failed(permit, 0.0, "down")
        else:
            assert not breaker.succeeded(permit)
    assert breaker.closed


def test_when_its_time_is_over_one_probe_is_let_through_and_closes_it() -> None:
    breaker = opened()
    probe = admitted(breaker, 2.0)
    assert breaker.admit(2.0) is None
    assert breaker.admit(100.0) is None
    assert breaker.succeeded(probe)
    assert breaker.closed
    admitted(breaker, 2.0)
    admitted(breaker, 2.0)


def test_each_failed_probe_doubles_the_time_up_to_a_limit_and_a_success_forgets_it() -> None:
    breaker, now = opened(), 0.0
    for open_s in (2.0, 4.0, 8.0, 10.0, 10.0):
        assert breaker.remaining_s(now) == open_s
        now += open_s
        assert breaker.failed(admitted(breaker, now), now, "still down")
    now += 10.0
    assert breaker.succeeded(admitted(breaker, now))
    for _ in range(RULE.failures):
        breaker.failed(admitted(breaker, now), now, "down again")
    assert breaker.remaining_s(now) == 2.0


@pytest.mark.parametrize(("asked", "open_s"), [(0.5, 2.0), (5.0, 5.0), (3_600.0, 10.0)])
def test_who_asks_to_be_left_alone_is_at_once_and_within_reason(asked: float, open_s: float) -> None:
    breaker: Breaker[str] = Breaker(RULE)
    assert breaker.failed(admitted(breaker, 0.0), 0.0, "quota", stay_away_s=asked)
    assert breaker.remaining_s(0.0) == open_s


def test_parts_of_failures_add_up_and_a_success_forgets_them() -> None:
    breaker: Breaker[str] = Breaker(RULE)
    for _ in range(2):
        for _ in range(29):
            assert not breaker.failed(admitted(breaker, 0.0), 0.0, "slow", weight=0.1)
        assert not breaker.succeeded(admitted(breaker, 0.0))
    for _ in range(29):
        breaker.failed(admitted(breaker, 0.0), 0.0, "slow", weight=0.1)
    assert breaker.failed(admitted(breaker, 0.0), 0.0, "slow", weight=0.1)


def test_a_probe_that_failed_in_part_makes_room_for_another_and_together_they_fail() -> None:
    breaker = opened()
    assert not breaker.failed(admitted(breaker, 2.0), 2.0, "slow", weight=0.6)
    assert breaker.failed(admitted(breaker, 2.5), 2.5, "slow", weight=0.6)
    assert breaker.remaining_s(2.5) == 4.0


def test_a_probe_that_is_withdrawn_makes_room_for_another() -> None:
    breaker = opened()
    breaker.withdrawn(admitted(breaker, 2.0))
    assert not breaker.closed
    assert breaker.succeeded(admitted(breaker, 2.0))


def test_what_began_before_the_last_change_counts_for_nothing() -> None:
    breaker: Breaker[str] = Breaker(RULE)
    early = [admitted(breaker, 0.0) for _ in range(4)]
    for _ in range(RULE.failures):
        breaker.failed(admitted(breaker, 0.0), 0.0, "down")

    assert not breaker.succeeded(early[0])  # it was answered before it went down
    assert not breaker.failed(early[1], 1.0, "down", stay_away_s=9.0)
    breaker.withdrawn(early[2])
    assert breaker.remaining_s(0.0) == 2.0

    assert breaker.succeeded(admitted(breaker, 2.0))
    assert not breaker.failed(early[3], 2.0, "down", stay_away_s=9.0)
    assert breaker.closed


class Callers(RuleBasedStateMachine):
    """Callers who come, succeed, fail and leave in any order, beside the plainest account of what they may do."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker: Breaker[str] = Breaker(RULE)
        self.now = 0.0
        self.out: list[Permit] = []
        self.current: list[Permit] = []  # of those, who came after the last change
        self.probe: Permit | None = None
        self.in_a_row = 0.0

    @rule(seconds=st.floats(0, 15))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def somebody_calls(self) -> None:
        was_closed, remaining = self.breaker.closed, self.breaker.remaining_s(self.now)
        permit = self.breaker.admit(self.now)
        assert (permit is not None) == (was_closed or (not remaining and self.probe is None))
        if permit is not None:
            self.out.append(permit)
            self.current.append(permit)
            if not was_closed:
                self.probe = permit

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(),
        stay_away_s=st.sampled_from([0.0, 0.0, 0.0, 5.0, 100.0]),
        weight=st.sampled_from([1.0, 1.0, 0.5, 0.25, 0.0]),
    )
    def somebody_fails(self, data: st.DataObject, stay_away_s: float, weight: float) -> None:
        permit = self._leaves(data)
        counts = permit in self.current
        was_closed = self.breaker.closed
        self.in_a_row += weight if counts else 0.0
        enough = RULE.failures if was_closed else 1
        opens = counts and (self.in_a_row >= enough or stay_away_s > 0)
        assert self.breaker.failed(permit, self.now, "down", stay_away_s=stay_away_s, weight=weight) == opens
        if permit is self.probe:
            self.probe = None
        if opens:
            self._changed()
            assert RULE.first_open_s <= self.breaker.remaining_s(self.now) + 1e-6
        else:
            assert self.breaker.closed == was_closed

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def somebody_succeeds(self, data: st.DataObject) -> None:
        permit = self._leaves(data)
        closes = permit is self.probe
        if permit in self.current:
            self.in_a_row = 0.0
        assert self.breaker.succeeded(permit) == closes
        if closes:
            assert self.breaker.closed
            self._changed()

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def somebody_leaves(self, data: st.DataObject) -> None:
        permit = self._leaves(data)
        was_closed = self.breaker.closed
        self.breaker.withdrawn(permit)
        assert self.breaker.closed == was_closed
        if permit is self.probe:
            self.probe = None

    @invariant()
    def it_never_stays_open_for_ever(self) -> None:
        assert self.breaker.remaining_s(self.now) <= RULE.longest_open_s + 1e-6

    def _leaves(self, data: st.DataObject) -> Permit:
        return self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))

    def _changed(self) -> None:
        self.current, self.probe, self.in_a_row = [], None, 0.0


TestCallers = Callers.TestCase
TestCallers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
