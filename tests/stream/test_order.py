"""The order of results (contract, "Order, retries, resume"), as single rules and as a state machine."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.errors import ErrorCode, PayloadError
from sts_trio.stream.order import MAX_LISTED, MAX_RETRYABLE, ResultOrder, Turn


def admitted(*numbers: int) -> ResultOrder[int]:
    order: ResultOrder[int] = ResultOrder()
    for number in numbers:
        assert order.admit(f"f{number}", number) is Turn.IN_ORDER
    return order


def finish(order: ResultOrder[int], *numbers: int) -> list[int]:
    for number in numbers:
        order.finish(number, number)
    return order.pop_ready()


def test_results_leave_in_order_whatever_finished_first() -> None:
    order = admitted(0, 1, 2)
    assert finish(order, 2) == []
    assert finish(order, 0) == [0]
    assert finish(order, 1) == [1, 2]
    assert len(order._parked) == 0


def test_the_first_accepted_fragment_sets_the_start() -> None:
    order = admitted(7)
    assert finish(order, 7) == [7]


def test_a_number_that_comes_late_but_before_its_turn_takes_its_place() -> None:
    order = admitted(0, 2)
    assert finish(order, 0, 2) == [0]
    assert order.gap() == [1]
    order.admit("f1", 1)
    assert order.gap() == []
    assert finish(order, 1) == [1, 2]


def test_an_accepted_number_is_waited_for_and_is_no_gap() -> None:
    order = admitted(0, 1)
    assert finish(order, 1) == []
    assert order.gap() == []


def test_nothing_done_means_no_gap() -> None:
    order = admitted(0, 5)
    finish(order, 0)
    assert order.gap() == []


def test_a_gap_given_up_never_comes_back() -> None:
    order = admitted(0, 3, 4)
    assert finish(order, 0, 3, 4) == [0]
    assert order.skip_gap() == [1, 2]
    assert order.pop_ready() == [3, 4]
    with pytest.raises(PayloadError, match="2 has passed") as refusal:
        order.admit("f2", 2)
    assert refusal.value.code is ErrorCode.INVALID_SEQUENCE


def test_a_gap_in_front_of_what_is_in_progress_is_given_up_while_later_ones_are_done() -> None:
    order = admitted(0, 2, 3)
    assert finish(order, 0, 3) == [0]
    assert order.skip_gap() == [1]
    assert order.pop_ready() == []
    assert finish(order, 2) == [2, 3]


def test_a_number_in_use_is_refused() -> None:
    order = admitted(0, 1)
    with pytest.raises(PayloadError, match="used by fragment f1"):
        order.admit("other", 1)


def test_a_refused_number_holds_nobody_up() -> None:
    order = admitted(0, 2)
    order.pass_over("f1", 1)
    assert finish(order, 0, 2) == [0, 2]


def test_a_refused_fragment_sent_again_before_its_turn_takes_its_place() -> None:
    order = admitted(0, 2)
    order.pass_over("f1", 1)
    assert order.admit("f1", 1) is Turn.IN_ORDER
    assert finish(order, 0, 2) == [0]
    assert finish(order, 1) == [1, 2]


def test_a_refused_fragment_sent_again_after_its_turn_is_late() -> None:
    order = admitted(0, 2)
    order.pass_over("f1", 1)
    finish(order, 0, 2)
    assert order.admit("f1", 1) is Turn.LATE


def test_a_late_retry_is_for_the_same_fragment_and_once() -> None:
    order = admitted(0)
    finish(order, 0)
    order.allow_retry("f0", 0)
    with pytest.raises(PayloadError):
        order.admit("other", 0)
    assert order.admit("f0", 0) is Turn.AGAIN
    with pytest.raises(PayloadError):
        order.admit("f0", 0)


def test_a_refusal_changes_nothing_about_a_number_that_has_passed() -> None:
    order = admitted(0, 2)
    finish(order, 0, 2)
    order.skip_gap()
    order.pop_ready()
    order.pass_over("f1", 1)  # given up
    order.pass_over("f0", 0)  # done
    for number in (0, 1):
        with pytest.raises(PayloadError, match="has passed"):
            order.admit(f"f{number}", number)


def test_a_refusal_changes_nothing_about_a_number_in_use() -> None:
    order = admitted(0)
    order.pass_over("other", 0)
    finish(order, 0)
    with pytest.raises(PayloadError, match="has passed"):
        order.admit("other", 0)


def test_a_refusal_of_another_fragment_does_not_take_the_right_to_a_retry() -> None:
    order = admitted(0)
    finish(order, 0)
    order.allow_retry("f0", 0)
    order.pass_over("other", 0)
    assert order.admit("f0", 0) is Turn.AGAIN


def test_a_jump_by_a_billion_lists_no_billion_numbers() -> None:
    order = admitted(0, 10**9)
    finish(order, 0, 10**9)
    assert len(order.skip_gap()) == MAX_LISTED
    assert order.pop_ready() == [10**9]


def test_a_flood_of_refusals_is_bounded() -> None:
    order = admitted(0)
    for number in range(1, 3 * MAX_RETRYABLE):
        order.pass_over(f"f{number}", number)
    assert len(order._retryable) == MAX_RETRYABLE


def test_numbers_refused_longer_ago_than_is_remembered_hold_nobody_up() -> None:
    order = admitted(0)
    finish(order, 0)
    last = 3 * MAX_RETRYABLE
    for number in range(1, last):
        order.pass_over(f"f{number}", number)
    order.admit("last", last)
    assert finish(order, last) == [last]


class Orders(RuleBasedStateMachine):
    """Any sequence of sends, refusals, completions and give-ups: order holds, and nothing accepted is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.order: ResultOrder[int] = ResultOrder()
        self.running: set[int] = set()
        self.admitted: list[int] = []
        self.left: list[int] = []
        self.refused: set[int] = set()

    numbers = st.integers(0, 12)

    @rule(number=numbers)
    def send(self, number: int) -> None:
        try:
            turn = self.order.admit(f"f{number}", number)
        except PayloadError:
            return
        assert number not in self.admitted  # nothing here fails, so nothing that was taken may come again
        if turn is not Turn.IN_ORDER:
            assert number in self.refused
            assert turn is Turn.LATE
        else:
            self.running.add(number)
            self.admitted.append(number)

    @rule(number=numbers, fragment_id=st.sampled_from(["same", "other"]))
    def refuse(self, number: int, fragment_id: str) -> None:
        self.refused.add(number)
        self.order.pass_over(f"f{number}" if fragment_id == "same" else "other", number)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        self.running.discard(number)
        self.order.finish(number, number)
        self.left += self.order.pop_ready()

    @rule()
    def give_up(self) -> None:
        gap = self.order.gap()
        assert self.order.skip_gap() == gap
        self.left += self.order.pop_ready()

    @invariant()
    def in_order_and_once(self) -> None:
        assert self.left == sorted(set(self.left))

    @invariant()
    def accounted_for(self) -> None:
        assert set(self.left) <= set(self.admitted)
        assert len(self.order._parked) == len(self.admitted) - len(self.left) - len(self.running)

    def teardown(self) -> None:
        for number in sorted(self.running):
            self.order.finish(number, number)
        self.left += self.order.pop_ready()
        while self.order.skip_gap():
            self.left += self.order.pop_ready()
        assert self.left == sorted(self.admitted)


TestOrders = Orders.TestCase
TestOrders.settings = settings(max_examples=40, stateful_step_count=30)
