"""Whose turn it is at a pool."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_trio.engines.fairness import FairQueue


def test_streams_take_turns_however_many_requests_one_has() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(4):
        queue.push("greedy", number, f"greedy{number}")
    queue.push("modest", 99, "modest0")
    assert [queue.pop() for _ in range(5)] == ["greedy0", "modest0", "greedy1", "greedy2", "greedy3"]


def test_the_earliest_deadline_of_a_stream_goes_first() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("s", 3.0, "later")
    queue.push("s", 1.0, "sooner")
    queue.push("s", 1.0, "as soon, but asked after")
    assert [queue.pop() for _ in range(3)] == ["sooner", "as soon, but asked after", "later"]


def test_what_was_discarded_never_comes() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("s", 1.0, "gone")
    queue.push("s", 2.0, "stays")
    queue.discard("s", "gone")
    queue.discard("s", "never there")
    queue.discard("nobody", "never there")
    assert queue.pop() == "stays"
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.pop()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1))
def test_no_stream_waits_longer_than_one_round(pushes: list[tuple[str, int]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number, (stream, deadline) in enumerate(pushes):
        queue.push(stream, deadline, (stream, number))
    popped = [queue.pop() for _ in pushes]
    assert sorted(popped) == sorted((stream, number) for number, (stream, _) in enumerate(pushes))
    for stream in {stream for stream, _ in pushes}:
        turns = [index for index, (who, _) in enumerate(popped) if who == stream]
        assert turns[0] <= 2
        assert all(after - before <= 3 for before, after in pairwise(turns))
