"""Where a programme is cut, and that nothing of it is lost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_trio.audio import frame_count
from sts_trio.client.cut import MAX_FRAGMENT_MS, REACH_MS, Slot, cut_at_pauses, cut_fixed, length_ms
from sts_trio.client.media import Pcm

RATE = 8_000

totals_ms = st.integers(1, 400_000)
fragments_ms = st.integers(100, MAX_FRAGMENT_MS)
rates_hz = st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000]) | st.integers(8_000, 96_000)


def noise_with_pauses(total_ms: int, *pauses_ms: tuple[int, int]) -> Pcm:
    samples = np.random.default_rng(0).normal(0, 3_000, (total_ms * RATE // 1000, 1)).astype(np.int16)
    for start, end in pauses_ms:
        samples[start * RATE // 1000 : end * RATE // 1000] //= 200
    return samples


def check_cover(slots: list[Slot], total_ms: int, fragment_ms: int, reach_ms: int) -> None:
    assert slots[0].start_ms == 0
    assert slots[-1].end_ms == total_ms
    for before, after in itertools.pairwise(slots):
        assert before.end_ms == after.start_ms
    for slot in slots:
        assert 1 <= slot.duration_ms <= min(fragment_ms + max(reach_ms, 500), MAX_FRAGMENT_MS)
    if len(slots) > 1:
        assert slots[-1].duration_ms >= min(500, fragment_ms // 2)


@given(totals_ms, fragments_ms)
def test_fixed_fragments_cover_the_programme(total_ms: int, fragment_ms: int) -> None:
    slots = cut_fixed(total_ms, fragment_ms)
    check_cover(slots, total_ms, fragment_ms, 0)
    # The last two share what is left; all others are exactly as long as asked for.
    assert {slot.duration_ms for slot in slots[:-2]} <= {fragment_ms}


@given(st.integers(1, 30_000), st.integers(100, 8_000), st.integers(0, 2**32 - 1))
def test_fragments_cut_at_pauses_cover_the_programme(total_ms: int, fragment_ms: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    samples = (random.normal(0, 3_000, (total_ms * 2, 1)) * random.integers(0, 2, (total_ms * 2, 1))).astype(np.int16)
    slots = cut_at_pauses(samples, 2_000, fragment_ms)
    check_cover(slots, total_ms, fragment_ms, REACH_MS)
    for slot in slots[:-1]:
        assert abs(slot.duration_ms - fragment_ms) <= REACH_MS


@given(st.integers(1, 2_000_000), rates_hz, fragments_ms)
def test_the_slots_hold_every_sample_once_at_any_rate(frames: int, rate_hz: int, fragment_ms: int) -> None:
    slots = cut_fixed(length_ms(frames, rate_hz), fragment_ms)
    places = [range(frames)[slot.frames(rate_hz)] for slot in slots]
    assert [frame for place in places for frame in (place.start, place.stop)][1:-1:2] == [
        place.start for place in places[1:]
    ]
    assert places[0].start == 0
    assert places[-1].stop == frames
    assert sum(len(place) for place in places) == frames
    for slot, place in zip(slots[:-1], places, strict=False):
        assert abs(len(place) - frame_count(slot.duration_ms, rate_hz)) <= 1


def test_fixed_cuts_are_where_live_workers_make_them() -> None:
    assert cut_fixed(14_000, 6_000) == [Slot(0, 6_000), Slot(6_000, 12_000), Slot(12_000, 14_000)]


def test_a_tiny_tail_joins_the_fragment_before_it() -> None:
    assert cut_fixed(12_300, 6_000) == [Slot(0, 6_000), Slot(6_000, 12_300)]


def test_a_tail_that_does_not_fit_before_gets_some_of_it() -> None:
    assert cut_fixed(60_001, 60_000) == [Slot(0, 59_501), Slot(59_501, 60_001)]


def test_cuts_are_made_in_pauses() -> None:
    samples = noise_with_pauses(20_000, (5_500, 5_900), (11_200, 11_600))
    slots = cut_at_pauses(samples, RATE, 6_000)
    assert [slot.end_ms for slot in slots] == [
        pytest.approx(5_700, abs=100),
        pytest.approx(11_400, abs=100),
        pytest.approx(17_400, abs=REACH_MS),
        20_000,
    ]


def test_a_pause_wins_over_a_short_closure_that_is_as_quiet() -> None:
    samples = noise_with_pauses(10_000, (5_100, 5_140), (6_500, 6_800))
    assert cut_at_pauses(samples, RATE, 6_000)[0].end_ms == pytest.approx(6_650, abs=100)


def test_a_pause_out_of_reach_is_left_alone() -> None:
    samples = noise_with_pauses(10_000, (4_000, 4_800))
    assert 5_000 <= cut_at_pauses(samples, RATE, 6_000)[0].end_ms <= 7_000


def test_in_silence_the_cut_is_at_the_fragment_length() -> None:
    assert [slot.end_ms for slot in cut_at_pauses(np.zeros((RATE * 14, 2), np.int16), RATE, 6_000)] == [
        6_000,
        12_000,
        14_000,
    ]


@pytest.mark.parametrize("fragment_ms", [99, MAX_FRAGMENT_MS + 1])
def test_a_fragment_length_the_wire_does_not_carry(fragment_ms: int) -> None:
    with pytest.raises(ValueError, match="100 to 60000"):
        cut_fixed(10_000, fragment_ms)


def test_nothing_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="nothing"):
        cut_fixed(0, 6_000)
