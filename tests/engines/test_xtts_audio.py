"""The edges of what XTTS speaks: silence, hiss and clicks are no part of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_trio.engines.base import Samples
from sts_trio.engines.xtts_audio import join, trim

RATE_HZ = 24_000


def tone(ms: int, level: float = 0.5) -> Samples:
    time = np.arange(ms * RATE_HZ // 1_000) / RATE_HZ
    return (level * np.sin(2 * np.pi * 300 * time)).astype(np.float32)


def row(*parts: Samples) -> Samples:
    return np.concatenate(parts)


def length_ms(samples: Samples) -> float:
    return len(samples) * 1_000 / RATE_HZ


def test_silence_around_speech_is_cut_off() -> None:
    assert length_ms(trim(row(tone(500, 0), tone(800), tone(300, 0)), RATE_HZ)) == pytest.approx(800, abs=30)


def test_hiss_far_below_the_speech_is_silence() -> None:
    hiss = np.random.default_rng(1).normal(0, 0.001, RATE_HZ).astype(np.float32)
    assert length_ms(trim(row(hiss, tone(800), hiss), RATE_HZ)) == pytest.approx(800, abs=30)


def test_a_click_far_from_the_speech_is_cut_off() -> None:
    samples = row(tone(20), tone(400, 0), tone(800), tone(400, 0), tone(20))
    assert length_ms(trim(samples, RATE_HZ)) == pytest.approx(800, abs=30)


def test_a_plosive_or_a_word_after_a_pause_stays() -> None:
    plosive = row(tone(800), tone(120, 0), tone(20))
    assert length_ms(trim(plosive, RATE_HZ)) == pytest.approx(940, abs=30)
    word = row(tone(200), tone(600, 0), tone(800))
    assert length_ms(trim(word, RATE_HZ)) == pytest.approx(1_600, abs=30)


def test_the_only_sound_is_speech_however_short() -> None:
    assert length_ms(trim(row(tone(300, 0), tone(20), tone(300, 0)), RATE_HZ)) == pytest.approx(20, abs=30)


def test_where_there_is_no_sound_there_is_nothing() -> None:
    assert len(trim(tone(500, 0), RATE_HZ)) == 0
    assert len(trim(tone(500, 0.0005), RATE_HZ)) == 0
    assert len(trim(np.zeros(0, np.float32), RATE_HZ)) == 0


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from([0.0, 0.0005, 0.01, 0.3, 0.9])), max_size=8))
def test_the_loudest_is_kept_and_nothing_gets_louder(parts: list[tuple[int, float]]) -> None:
    samples = row(np.zeros(1, np.float32), *(tone(ms, level) for ms, level in parts))

    trimmed = trim(samples, RATE_HZ)

    assert len(trimmed) <= len(samples)
    assert np.abs(trimmed).max(initial=0) <= np.abs(samples).max()
    assert trimmed.dtype == np.float32
    heard = [level for ms, level in parts if ms >= 50]
    if heard and max(heard) > 0.005 and max(heard) == max(level for ms, level in parts if ms):
        assert np.abs(trimmed).max() > 0.9 * max(heard)
    again = trim(trimmed, RATE_HZ)
    assert len(again) <= len(trimmed)


def test_a_cut_end_does_not_click() -> None:
    trimmed = trim(np.full(RATE_HZ, 0.5, np.float32), RATE_HZ)
    assert trimmed[0] == trimmed[-1] == 0
    assert trimmed[len(trimmed) // 2] == 0.5


def test_pieces_are_joined_with_their_pauses() -> None:
    joined = join([tone(100), tone(200), tone(300)], [250, 100, 500], RATE_HZ)
    assert length_ms(joined) == 100 + 250 + 200 + 100 + 300
    assert not joined[RATE_HZ // 10 : RATE_HZ * 35 // 100].any()


def test_a_piece_without_a_sound_has_no_pause() -> None:
    nothing = np.zeros(0, np.float32)
    assert length_ms(join([tone(100), nothing], [250, 0], RATE_HZ)) == 100
    assert length_ms(join([nothing, tone(100)], [250, 0], RATE_HZ)) == 100
    assert length_ms(join([tone(100), nothing, tone(300)], [250, 100, 0], RATE_HZ)) == 100 + 250 + 300
    assert len(join([nothing, nothing], [250, 0], RATE_HZ)) == 0
