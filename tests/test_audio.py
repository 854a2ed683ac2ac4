"""Samples in, samples out: exact lengths, nothing shifted, nothing hostile let in."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from fractions import Fraction
from math import floor

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.dubbing import Audio
from sts_trio import audio
from sts_trio.audio import AudioError, Samples

RATE = 48_000


def tone(duration_ms: int, rate: int = RATE, hz: float = 440.0, channels: int = 1) -> Samples:
    frames = np.arange(audio.frame_count(duration_ms, rate)) / rate
    return audio.with_channels((0.3 * np.sin(2 * np.pi * hz * frames)).astype(np.float32), channels)


def sweep(duration_ms: int, rate: int = RATE, channels: int = 1) -> Samples:
    """A tone that rises all the time: it correlates with itself at one shift only."""
    t = np.arange(audio.frame_count(duration_ms, rate)) / rate
    return audio.with_channels((0.4 * np.sin(2 * np.pi * (100 + 500 * t) * t)).astype(np.float32), channels)


def shift_between(one: Samples, other: Samples) -> int:
    """By how many frames `other` is later than `one`."""
    size = 2 * len(one)
    spectrum = np.fft.rfft(other[:, 0], size) * np.conj(np.fft.rfft(one[:, 0], size))
    peak = int(np.argmax(np.fft.irfft(spectrum)))
    return peak if peak < len(one) else peak - size


def pitch_of(samples: Samples, rate: int) -> float:
    return int(np.argmax(np.abs(np.fft.rfft(samples)))) * rate / len(samples)


def encoded(samples: Samples, container: str, codec: str = "aac", rate: int = RATE, **muxer: str) -> bytes:
    """What another program would send: `samples` through libav with its defaults."""
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(file, "w", format=container, options=muxer) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        planes = np.ascontiguousarray(samples.T)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return file.getvalue()


def fragmented_mp4(samples: Samples) -> bytes:
    return encoded(samples, "mp4", movflags="empty_moov+default_base_moof+frag_keyframe")


def wav(samples: Samples, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def decode(data: bytes, format: str, duration_ms: int, rate: int = RATE, channels: int = 2) -> Samples:
    return audio.decode(Audio(format, rate, channels, duration_ms, data))


# ---------------------------------------------------------------------------------------------- length


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


# ---------------------------------------------------------------------------------------------- there and back


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


# ---------------------------------------------------------------------------------------------- as others encode


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


# ---------------------------------------------------------------------------------------------- not what it says


@pytest.mark.parametrize(("duration_ms", "tolerance_ms"), [(200, 500), (5_000, 500), (6_000, 600), (60_000, 6_000)])
def test_length_may_differ_by_half_a_second_or_a_tenth(duration_ms: int, tolerance_ms: int) -> None:
    def pcm(real_ms: int) -> bytes:
        return bytes(2 * audio.frame_count(real_ms, 8_000))

    for real_ms in {max(duration_ms - tolerance_ms, 1), duration_ms, duration_ms + tolerance_ms}:
        decoded = decode(pcm(real_ms), "pcm_s16le", duration_ms, 8_000, 1)
        assert len(decoded) == audio.frame_count(duration_ms, 8_000)
    for real_ms in {duration_ms - tolerance_ms - 1, duration_ms + tolerance_ms + 1}:
        if real_ms > 0:
            with pytest.raises(AudioError, match=f"declared {duration_ms} ms of audio, holds {real_ms} ms"):
                decode(pcm(real_ms), "pcm_s16le", duration_ms, 8_000, 1)


def test_a_fragment_of_no_duration_has_no_frames() -> None:
    for format in ("pcm_s16le", "wav", "m4a"):
        for data in (b"", b"x", bytes(10_000)):
            assert decode(data, format, 0).shape == (0, 2)


@pytest.mark.parametrize(
    ("data", "format", "reason"),
    [
        (b"", "pcm_s16le", "no audio"),
        (b"\0\0\0", "pcm_s16le", "no whole number"),
        (bytes(6), "pcm_s16le", "no whole number"),
        (b"", "wav", "not valid wav"),
        (b"", "m4a", "not valid m4a"),
        (bytes(5_000), "wav", "not valid wav"),
        (bytes(5_000), "m4a", "not valid m4a"),
        (b"\xff\xf1" + bytes(5_000), "m4a", "no audio"),
        (b"#EXTM3U\n#EXTINF:6,\nfile:///etc/hostname\n", "m4a", "not valid m4a"),
        (b"#EXTM3U\n#EXTINF:6,\nfile:///etc/hostname\n", "wav", "not valid wav"),
        (audio.encode(np.zeros(0, np.float32), RATE, "wav"), "wav", "no audio"),
        (wav(tone(100)), "m4a", "not valid m4a"),
        (encoded(tone(100), "mp4"), "wav", "not valid wav"),
        (encoded(tone(100), "mp4")[:900], "m4a", "m4a"),
        (encoded(tone(100), "mp4", codec="ac3"), "m4a", "m4a with ac3 audio"),
        (encoded(tone(100), "wav", codec="ac3"), "wav", "wav with ac3 audio"),
        (wav(np.full((4_800, 1), np.nan, np.float32), subtype="FLOAT"), "wav", "not numbers"),
        (wav(np.full((4_800, 1), np.inf, np.float32), subtype="FLOAT"), "wav", "not numbers"),
        (wav(tone(100), rate=2_000_000_000), "wav", "beyond what is taken"),
        (wav(tone(100), rate=1), "wav", "beyond what is taken"),
        (wav(np.zeros((100, 100), np.float32)), "wav", "beyond what is taken"),
        (b"", "flac", "unknown format"),
    ],
)  # fmt: skip
def test_refused(data: bytes, format: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AudioError, match=reason):
        decode(data, format, 100)
    assert capfd.readouterr() == ("", "")  # libav keeps its comments to itself


def test_decoding_stops_where_there_is_more_than_declared() -> None:
    long = encoded(np.zeros((60 * 8_000, 1), np.float32), "mp4", rate=8_000)
    tracemalloc.start()
    try:
        with pytest.raises(AudioError, match="much more audio than declared"):
            decode(long, "m4a", 1_000)
        assert tracemalloc.get_traced_memory()[1] < 500_000  # of 1.9 MB of samples
    finally:
        tracemalloc.stop()


def patched(mp4: bytes, box: bytes, offset: int, *values: int) -> bytes:
    at = mp4.index(box) + 4 + offset
    return mp4[:at] + struct.pack(f">{len(values)}I", *values) + mp4[at + 4 * len(values) :]


def test_mp4_tables_that_unfold_to_gigabytes_are_refused() -> None:
    plain, fragmented = encoded(tone(100), "mp4"), fragmented_mp4(tone(100))
    with pytest.raises(AudioError, match="declares 500000000 AAC frames"):
        decode(patched(plain, b"stsz", 4, 1, 500_000_000), "m4a", 100)
    with pytest.raises(AudioError, match="declares 4294967295 AAC frames"):
        decode(patched(fragmented, b"trun", 4, 0xFFFFFFFF), "m4a", 100)
    with pytest.raises(AudioError, match="single PCM frames"):
        decode(patched(plain, b"stts", 4, 1, 1, 1), "m4a", 100)


def test_an_edit_list_cannot_repeat_the_audio() -> None:
    plain = encoded(tone(100), "mp4")
    at = plain.index(b"elst") - 4
    edits = struct.pack(">I4sII", 16 + 100 * 12, b"elst", 0, 100) + struct.pack(">III", 100, 1_024, 0x10000) * 100
    longer = bytearray(plain[:at] + edits + plain[at + 28 :])
    for box in (b"moov", b"trak", b"edts"):
        size_at = plain.rindex(box, 0, at) - 4
        struct.pack_into(">I", longer, size_at, struct.unpack_from(">I", longer, size_at)[0] + len(edits) - 28)
    assert len(decode(bytes(longer), "m4a", 100)) == 4_800  # 10 s, were it obeyed


def test_an_mp4_with_a_compressed_header_is_refused() -> None:
    packed = zlib.compress(bytes(10_000_000))
    cmvd = struct.pack(">I4sI", 12 + len(packed), b"cmvd", 10_000_000) + packed
    cmov = struct.pack(">I4sI4s4s", 20 + len(cmvd), b"cmov", 12, b"dcom", b"zlib") + cmvd
    moov = struct.pack(">I4s", 8 + len(cmov), b"moov") + cmov
    with pytest.raises(AudioError, match="compressed header"):
        decode(struct.pack(">I4s4sI", 16, b"ftyp", b"M4A ", 0) + moov, "m4a", 100)


def test_what_looks_like_a_table_in_the_media_data_is_none() -> None:
    plain = encoded(tone(100), "mp4")
    assert b"Lavc" in plain[plain.index(b"mdat") :]  # the encoder signs its first frame
    assert np.array_equal(decode(plain.replace(b"Lavc", b"cmov"), "m4a", 100), decode(plain, "m4a", 100))


_VICTIMS = [
    ("wav", wav(tone(100))),
    ("m4a", audio.encode(tone(100), RATE, "m4a")),
    ("m4a", fragmented_mp4(tone(100))),
    ("m4a", encoded(tone(100), "adts")),
]


@pytest.mark.slow
@settings(max_examples=300, deadline=1_000)
@given(
    st.sampled_from(_VICTIMS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    st.floats(0, 1),
)
def test_broken_files_decode_or_are_refused(
    victim: tuple[str, bytes], edits: list[tuple[float, bytes]], kept: float
) -> None:
    format, data = victim
    for where, patch in edits:
        at = int(where * len(data))
        data = data[:at] + patch + data[at + len(patch) :]
    try:
        decoded = decode(data[: int(kept * len(data))] if kept < 0.3 else data, format, 100)
    except AudioError:
        return
    assert decoded.shape == (4_800, 2)
    assert np.abs(decoded).max() <= 1


# ---------------------------------------------------------------------------------------------- stretch


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
