"""What is not the audio it says it is, is refused by reason and costs little."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_trio import audio
from sts_trio.audio import AudioError

from .media import RATE, decode, encoded, fragmented_mp4, tone, wav


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
    compact = patched(plain, b"stsz", 0, 0, 4, 500_000_000).replace(b"stsz", b"stz2")  # half a byte for each
    with pytest.raises(AudioError, match="declares 500000000 AAC frames"):
        decode(compact, "m4a", 100)
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
@settings(max_examples=300)
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
