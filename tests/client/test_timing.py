"""Decode times: increasing, never after showing, and the file's own wherever those are such."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_trio.client.timing import decode_times


def shuffled_a_little(shown: list[int]) -> st.SearchStrategy[list[int]]:
    """In an order in which a codec might have them: none more than a few places away from its own."""
    places = st.lists(st.integers(0, 6), min_size=len(shown), max_size=len(shown))
    return places.map(lambda later: [shown[at] for at in sorted(range(len(shown)), key=lambda at: at + later[at])])


def test_decode_times_that_the_file_knows_are_kept() -> None:
    assert decode_times([0, 160, 80, 40, 120], [-80, -40, 0, 40, 80], 40) == [-80, -40, 0, 40, 80]
    assert decode_times([None, 5], [0, 5], 5) == [0, 5]


def test_decode_times_that_cannot_be_are_those_of_showing_moved_back() -> None:
    cases: list[list[int | None]] = [[0, 160, None, 40, 80], [None, None, 0, 40, 80], [0, 40, 80, 120, 160]]
    for guessed in cases:
        assert decode_times([0, 160, 80, 40, 120], guessed, 40) == [-80, -40, 0, 40, 80]
    assert decode_times([0, 40, 10_000, 5_000], [None] * 4, 40) == [-40, 0, 40, 5_000]  # with a hole


@given(
    st.lists(st.integers(0, 1_000), min_size=1, max_size=60).map(sorted).flatmap(shuffled_a_little),
    st.integers(1, 100),
)
def test_decode_times_increase_and_come_before_showing(shown: list[int], step: int) -> None:
    decoded = decode_times(shown, [None] * len(shown), step)
    assert all(before < after for before, after in pairwise(decoded))
    assert all(decode <= show for decode, show in zip(decoded, shown, strict=True))


def test_pictures_without_times_or_with_a_clock_that_goes_back_are_refused() -> None:
    with pytest.raises(ValueError, match="without a time"):
        decode_times([0, None], [0, None], 1)
    with pytest.raises(ValueError, match="goes back"):
        decode_times([*range(100, 200), *range(100)], [None] * 200, 1)
