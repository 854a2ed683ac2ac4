"""What becomes of fragments, without a server: each one ends once, in the hands of whoever takes results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode
from sts_trio.client.fragments import (
    LONGEST_DELAY_S,
    MAX_ATTEMPTS,
    MAX_ATTEMPTS_IN_OUTAGES,
    MAX_REFUSALS,
    Fragments,
    backoff_s,
)

from .fake_server import dubbed, failed, fragment, refused


@pytest.fixture
def two() -> Fragments:
    """Fragments 0 and 1, both with the server."""
    fragments = Fragments()
    for number in (0, 1):
        fragments.add(fragment(number), 0.0)
    send_all(fragments, 0.0)
    return fragments


def send_all(fragments: Fragments, now: float) -> list[int]:
    """Send what is due now; returns the sequence numbers."""
    sent = []
    while (due := fragments.next_due(now)) is not None and due[0] <= now:
        due[1].due = None
        sent.append(due[1].data.sequence_number)
    return sent


def test_a_fragment_counts_until_its_result_is_applied(two: Fragments) -> None:
    assert (len(two), two.first_number, two.server_has_some) == (2, 0, True)
    assert two.on_result(dubbed(fragment(0)), 1.0)
    assert (len(two), two.first_number) == (2, 1)
    assert two.take() == dubbed(fragment(0))
    assert (len(two), list(two.acks)) == (2, [])
    two.apply_taken()
    assert (len(two), list(two.acks)) == (1, ["f0"])
    assert two.take() is None


@pytest.mark.parametrize(
    ("code", "attempts"),
    [
        (ErrorCode.TIMEOUT, MAX_ATTEMPTS),
        (ErrorCode.INTERNAL_ERROR, MAX_ATTEMPTS),
        (ErrorCode.NETWORK_ERROR, MAX_ATTEMPTS_IN_OUTAGES),
        (ErrorCode.TEMPORARY_UNAVAILABLE, MAX_ATTEMPTS_IN_OUTAGES),
    ],
)
def test_what_may_pass_is_due_again_later_and_not_for_ever(two: Fragments, code: ErrorCode, attempts: int) -> None:
    for attempt in range(1, attempts):
        two.on_result(failed(fragment(0), code), 10.0 * attempt)
        assert two.take() is None
        due = two.next_due(10.0 * attempt)
        assert due is not None
        assert 0 < due[0] - 10.0 * attempt <= LONGEST_DELAY_S
        two.on_result(failed(fragment(0), code), 10.0 * attempt)  # said twice: no attempt of its own
        assert send_all(two, 10.0 * attempt + LONGEST_DELAY_S) == [0]
    two.on_result(failed(fragment(0), code), 10.0 * attempts)
    assert (result := two.take()) is not None
    assert result.status == "failed"


def test_a_refusal_waits_at_least_as_long_as_the_server_asks(two: Fragments) -> None:
    error = refused(ErrorCode.BACKPRESSURE_EXCEEDED, "f1")
    for _ in range(MAX_REFUSALS):
        two.on_refusal(error, 5.0, 20.0)
        assert (due := two.next_due(5.0)) is not None
        assert due[0] == 25.0
        send_all(two, 25.0)
    two.on_refusal(error, 5.0, 20.0)
    assert (result := two.take()) is not None
    assert (result.sequence_number, result.status) == (1, "failed")
    two.on_refusal(error, 5.0, 20.0)  # of what has its result: nothing
    assert len(two) == 2


@pytest.mark.parametrize(("new_session", "sent"), [(False, [1]), (True, [0, 1])])
def test_after_a_reconnection_what_the_server_had_is_sent_again(
    two: Fragments, new_session: bool, sent: list[int]
) -> None:
    """A new session also gets at once what was to be tried again later: it starts with the number it gets first."""
    two.on_result(failed(fragment(0), ErrorCode.TIMEOUT), 1.0)
    two.reconnected(1.0, new_session=new_session)
    assert send_all(two, 1.0) == sent


def test_a_result_that_comes_again_is_acknowledged_again_once_it_was_applied(two: Fragments) -> None:
    again = dubbed(fragment(0))
    two.on_result(again, 1.0)
    assert not two.on_result(again, 1.0)
    two.take()
    assert not two.on_result(again, 1.0)
    assert list(two.acks) == []
    two.apply_taken()
    assert not two.on_result(again, 1.0)
    assert list(two.acks) == ["f0", "f0"]


EVENTS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["success", "again", "for now", "for good", "lost"])))


@given(EVENTS)
def test_every_fragment_ends_once_whatever_happens(events: list[tuple[int, str]]) -> None:
    fragments = Fragments()
    for number in range(4):
        fragments.add(fragment(number), 0.0)
    now = 0.0
    for number, event in events:
        now += 1.0
        send_all(fragments, now)
        match event:
            case "success":
                fragments.on_result(dubbed(fragment(number)), now)
            case "again":
                fragments.on_result(failed(fragment(number), ErrorCode.TIMEOUT), now)
            case "for now":
                fragments.on_refusal(refused(ErrorCode.STREAM_PAUSED, f"f{number}"), now, 0.0)
            case "for good":
                fragments.on_refusal(refused(ErrorCode.FRAGMENT_TOO_LARGE, f"f{number}"), now, 0.0)
            case "lost":
                fragments.reconnected(now, new_session=number == 0)
    send_all(fragments, now + LONGEST_DELAY_S)
    for number in range(4):
        fragments.on_result(dubbed(fragment(number)), now)
    results = []
    while (result := fragments.take()) is not None:
        results.append(result.sequence_number)
        fragments.apply_taken()
    assert sorted(results) == [0, 1, 2, 3]
    assert len(fragments) == 0
    assert set(fragments.acks) == {"f0", "f1", "f2", "f3"}


def test_delays_double_up_to_the_longest() -> None:
    for failures in range(10):
        longest = min(LONGEST_DELAY_S, 0.5 * 2**failures)
        assert longest / 2 <= backoff_s(failures) <= longest
