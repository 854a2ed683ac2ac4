"""Lengths, rates, channels and speeds: exact, and the argument left as it was."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_trio import audio
from sts_trio.audio import AudioError

from .media import RATE, pitch_of, tone


@given(st.integers(0, 60_000), st.integers(8_000, 96_000))
def test_a_duration_has_the_nearest_number_of_frames(duration_ms: int, rate: int) -> None:
    assert audio.frame_count(duration_ms, rate) == floor(Fraction(duration_ms * rate, 1_000) + Fraction(1, 2))


def test_half_a_frame_counts_as_one() -> None:
    assert audio.frame_count(5, 44_100) == 221  # 220.5
    assert audio.frame_count(15, 44_100) == 662  # 661.5
    assert audio.frame_count(6_000, RATE) == 288_000


def test_fit_pads_with_silence() -> None:
    fitted = audio.fit(tone(10), 1_000)
    assert fitted.shape == (1_000, 1)
    assert np.array_equal(fitted[:480], tone(10))
    assert not fitted[480:].any()


def test_fit_fades_out_what_it_cuts() -> None:
    loud = np.ones(2_000, np.float32)
    fitted = audio.fit(loud, 1_000, fade_frames=100)
    assert np.all(fitted[:900] == 1)
    assert np.all(np.diff(fitted[900:]) < 0)
    assert fitted[-1] == 0
    assert np.all(loud == 1)  # never in place


def test_trim_silence_end_keeps_the_decay() -> None:
    speech = np.concatenate([tone(100, channels=2), np.full((RATE, 2), 0.001, np.float32)])
    assert len(audio.trim_silence_end(speech, RATE)) == pytest.approx(audio.frame_count(110, RATE), abs=5)
    assert len(audio.trim_silence_end(speech[:, 0], RATE, threshold=0.0005)) == len(speech)
    assert len(audio.trim_silence_end(np.zeros(500, np.float32), RATE)) == 0
    assert len(audio.trim_silence_end(np.zeros((0, 2), np.float32), RATE)) == 0


@settings(max_examples=30)
@given(st.integers(0, 3_000), st.integers(8_000, 96_000), st.integers(8_000, 96_000), st.sampled_from([None, 1, 2]))
def test_resampling_keeps_the_duration(frames: int, from_hz: int, to_hz: int, channels: int | None) -> None:
    shape = (frames,) if channels is None else (frames, channels)
    resampled = audio.resample(np.zeros(shape, np.float32), from_hz, to_hz)
    assert resampled.shape == (floor(Fraction(frames * to_hz, from_hz) + Fraction(1, 2)), *shape[1:])
    assert resampled.dtype == np.float32


def test_resampling_keeps_the_pitch() -> None:
    assert pitch_of(audio.resample(tone(1_000)[:, 0], RATE, 16_000), 16_000) == pytest.approx(440)


def test_channels_are_averaged_and_repeated() -> None:
    left_only = np.stack([np.ones(10), np.zeros(10)], axis=1).astype(np.float32)
    assert np.all(audio.to_mono(left_only) == 0.5)
    assert audio.to_mono(left_only).shape == (10,)
    assert np.all(audio.with_channels(np.ones(10, np.float32), 2) == 1)
    assert np.array_equal(audio.with_channels(left_only, 2), left_only)
    assert audio.with_channels(left_only, 1).shape == (10, 1)


@pytest.mark.slow
@pytest.mark.parametrize("speed", [0.8, 1.0, 1.337, 2.0])
def test_stretching_changes_the_length_and_not_the_pitch(speed: float) -> None:
    stretched = audio.stretch(tone(1_000, 24_000)[:, 0], 24_000, speed)
    assert stretched.shape == (floor(24_000 / speed + 0.5),)
    assert stretched.dtype == np.float32
    assert pitch_of(stretched, 24_000) == pytest.approx(440, abs=3)


@pytest.mark.parametrize("frames", [0, 1, 2, 10])
def test_a_handful_of_samples_can_be_stretched(frames: int) -> None:
    stretched = audio.stretch(np.full(frames, 0.1, np.float32), 24_000, 2.0)
    assert stretched.shape == (floor(frames / 2 + 0.5),)


def test_loud_samples_are_limited_before_stretching() -> None:
    loud = 4 * tone(100)[:, 0]
    assert np.abs(audio.stretch(loud, RATE, 1.0)).max() == 1
    assert np.abs(audio.stretch(loud, RATE, 1.5)).max() <= 1
    assert np.abs(loud).max() > 1  # never in place


def test_what_cannot_be_stretched() -> None:
    with pytest.raises(AudioError, match="not numbers"):
        audio.stretch(np.array([np.nan], np.float32), RATE, 1.5)
    with pytest.raises(ValueError, match="mono"):
        audio.stretch(tone(10, channels=2), RATE, 1.5)
    for speed in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="speed must be"):
            audio.stretch(tone(10)[:, 0], RATE, speed)


def test_a_missing_rubberband_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    audio.check_rubberband()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AudioError, match="apt install rubberband-cli"):
        audio.check_rubberband()
    with pytest.raises(AudioError, match="apt install rubberband-cli"):
        audio.stretch(tone(10)[:, 0], RATE, 1.5)


def test_stretching_without_room_for_its_files_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(AudioError, match="temporary files"):
        audio.stretch(tone(10)[:, 0], RATE, 1.5)


def test_a_rubberband_that_writes_nothing_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = tmp_path / "rubberband"
    idle.write_text("#!/bin/sh\n")
    idle.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(AudioError, match="temporary files"):
        audio.stretch(tone(10)[:, 0], RATE, 1.5)
