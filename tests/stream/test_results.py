"""Results are kept until acknowledged, and never beyond the stream's byte budget."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from protocol.dubbing import Audio, FragmentProcessed, StageTimings
from sts_trio.stream.results import OVERHEAD_BYTES, ResultBuffer, weight_bytes


def result(number: int, audio_bytes: int = 0) -> FragmentProcessed:
    audio = Audio("wav", 8_000, 1, 100, b"x" * audio_bytes)
    return FragmentProcessed(f"f{number}", "s", number, "success", 1, StageTimings(), audio)


def numbers(buffer: ResultBuffer) -> list[int]:
    return [kept.sequence_number for kept in buffer.unacknowledged()]


def test_what_is_acknowledged_is_forgotten() -> None:
    buffer = ResultBuffer(10**6)
    for number in range(3):
        buffer.keep(result(number))
    buffer.forget("f1")
    buffer.forget("never seen")
    assert numbers(buffer) == [0, 2]
    assert buffer.get("f1") is None


def test_the_oldest_go_first_beyond_the_budget() -> None:
    buffer = ResultBuffer(3 * (OVERHEAD_BYTES + 100))
    for number in range(5):
        buffer.keep(result(number, 100))
    assert numbers(buffer) == [2, 3, 4]


def test_a_result_larger_than_the_budget_is_not_kept() -> None:
    buffer = ResultBuffer(OVERHEAD_BYTES)
    buffer.keep(result(0, 1))
    assert numbers(buffer) == []
    assert buffer.used_bytes == 0


def test_metadata_has_weight() -> None:
    kept = evolve(result(0), metadata={"notes": "x" * 1_000})
    assert weight_bytes(kept) > weight_bytes(result(0)) + 1_000


def test_a_retry_replaces_the_first_result() -> None:
    buffer = ResultBuffer(10**6)
    buffer.keep(result(0))
    buffer.keep(result(0, 5))
    assert buffer.used_bytes == OVERHEAD_BYTES + 5


def test_a_worker_that_resumes_says_what_it_has() -> None:
    buffer = ResultBuffer(10**6)
    for number in range(4):
        buffer.keep(result(number))
    buffer.forget_before(2)
    assert numbers(buffer) == [2, 3]


@given(st.integers(0, 20_000), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9_000), st.booleans())))
def test_the_account_is_exact_and_within_the_budget(budget: int, steps: list[tuple[int, int, bool]]) -> None:
    buffer = ResultBuffer(budget)
    for number, size, acknowledge in steps:
        if acknowledge:
            buffer.forget(f"f{number}")
        else:
            buffer.keep(result(number, size))
        assert buffer.used_bytes == sum(map(weight_bytes, buffer.unacknowledged())) <= budget


def test_what_replaces_a_result_stands_in_its_place_and_is_weighed() -> None:
    buffer = ResultBuffer(3 * (OVERHEAD_BYTES + 100))
    for number in range(3):
        buffer.keep(result(number, 100))
    buffer.replace(result(1))
    assert numbers(buffer) == [0, 1, 2]
    assert buffer.used_bytes == sum(map(weight_bytes, buffer.unacknowledged()))
    buffer.replace(result(1, 101))
    assert numbers(buffer) == [1, 2]
