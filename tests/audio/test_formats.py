"""Encoded and decoded: nothing is lost, added or shifted, whoever encoded it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from sts_trio import audio
from sts_trio.audio import Samples

from .media import RATE, decode, encoded, fragmented_mp4, pitch_of, shift_between, sweep, tone, wav


@pytest.mark.parametrize("format", ["pcm_s16le", "wav", "m4a"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000, 50_000, 96_000])
@pytest.mark.parametrize("duration_ms", [1, 21, 333])
def test_what_is_encoded_decodes_to_the_frame(format: str, rate: int, duration_ms: int) -> None:
    for channels in (1, 2):
        samples = sweep(duration_ms, rate, channels)
        decoded = decode(audio.encode(samples, rate, format), format, duration_ms, rate, channels)
        assert decoded.shape == (audio.frame_count(duration_ms, rate), channels)
        assert decoded.dtype == np.float32


@given(st.binary(min_size=4, max_size=400).map(lambda data: data[: len(data) // 4 * 4]))
def test_pcm_is_the_same_to_the_bit(data: bytes) -> None:
    rate, duration_ms = 8_000, len(data) // 4 * 1_000 // 8_000
    samples = decode(data, "pcm_s16le", duration_ms, rate)
    assert audio.encode(samples, rate, "pcm_s16le") == data[: 4 * len(samples)]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_m4a_begins_where_the_audio_does(rate: int) -> None:
    original = sweep(6_000, rate, channels=2)
    decoded = decode(audio.encode(original, rate, "m4a"), "m4a", 6_000, rate)
    assert shift_between(original, decoded) == 0
    error = np.square(decoded - original).mean() / np.square(original).mean()
    assert error < 0.001  # 30 dB


def test_other_programs_find_the_exact_length_in_an_m4a() -> None:
    with av.open(io.BytesIO(audio.encode(sweep(1_234)[:59_001], RATE, "m4a"))) as file:
        stream = file.streams.audio[0]
        assert stream.codec_context.name == "aac"
        assert stream.duration == 59_001
        assert stream.start_time == 0


def test_samples_beyond_one_are_limited() -> None:
    data = audio.encode(np.array([-3, -1, 0, 1, 3], np.float32), RATE, "pcm_s16le")
    assert struct.unpack("<5h", data) == (-32_768, -32_768, 0, 32_767, 32_767)


def test_nothing_encodes_to_nothing() -> None:
    silence = np.zeros((0, 2), np.float32)
    assert audio.encode(silence, RATE, "pcm_s16le") == b""
    assert audio.encode(silence, RATE, "m4a") == b""
    header = audio.encode(silence, RATE, "wav")
    assert soundfile.info(io.BytesIO(header)).frames == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers_are_not_encoded(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        audio.encode(np.array([0, value], np.float32), RATE, "wav")


@pytest.mark.parametrize(
    "write",
    [
        lambda samples: encoded(samples, "mp4"),
        lambda samples: encoded(samples, "ipod"),
        fragmented_mp4,
        lambda samples: encoded(samples, "mp4", movflags="frag_keyframe+delay_moov"),
        lambda samples: encoded(samples, "adts"),
    ],
    ids=["mp4", "m4a", "fragmented", "fragmented with edit list", "ADTS"],
)
def test_the_priming_of_an_encoder_is_taken_off(write: Callable[[Samples], bytes]) -> None:
    original = sweep(1_000, channels=2)
    decoded = decode(write(original), "m4a", 1_000)
    assert len(decoded) == RATE
    assert shift_between(original, decoded) == 0


def test_an_m4a_that_says_where_it_begins_is_cut_at_the_end() -> None:
    original = sweep(1_050, channels=2)
    assert shift_between(original[:RATE], decode(encoded(original, "mp4"), "m4a", 1_000)) == 0


def test_two_frames_of_priming_are_taken_off_too() -> None:
    original = sweep(1_000, channels=2)
    primed = np.concatenate([np.zeros((1_024, 2), np.float32), original])  # the encoder adds one of its own
    assert shift_between(original, decode(encoded(primed, "adts"), "m4a", 1_000)) == 0


def test_loud_floats_are_limited() -> None:
    assert np.abs(decode(wav(5 * tone(100), subtype="FLOAT"), "wav", 100)).max() == 1


def test_what_a_container_says_of_itself_wins() -> None:
    for data, format in (
        (wav(tone(500, 22_050), 22_050), "wav"),
        (encoded(tone(500, 22_050), "mp4", rate=22_050), "m4a"),
    ):
        decoded = decode(data, format, 500)  # declared as 48 kHz stereo
        assert decoded.shape == (24_000, 2)
        assert pitch_of(decoded[:, 1], RATE) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_wav_of_other_widths(subtype: str) -> None:
    decoded = decode(wav(tone(100), subtype=subtype), "wav", 100, channels=1)
    assert np.abs(decoded - tone(100)).max() < 0.02


def test_surround_is_mixed_to_stereo() -> None:
    center_only = np.zeros((4_800, 6), np.float32)
    center_only[:, 2] = tone(100)[:, 0]
    decoded = decode(wav(center_only), "wav", 100)
    assert np.abs(decoded[:, 0]).max() > 0.05
    assert np.array_equal(decoded[:, 0], decoded[:, 1])
