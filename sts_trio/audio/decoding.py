"""Encoded audio to samples.

What comes from outside is hostile until decoded. The demuxer is chosen by us and never guessed by libav (guessing
reaches playlists, which open other files); decoding stops when there is clearly more than was declared; and MP4 tables
that would make libav allocate gigabytes for a file of kilobytes are refused before it sees them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

import av
import numpy as np
from attrs import frozen

from protocol.dubbing import Audio

from .samples import AudioError, Samples, cut_or_pad, frame_count, half_up, resample, with_channels

_MAX_CHANNELS: Final = 8  # 7.1
_RATES_HZ: Final = range(4_000, 384_001)  # of a container: below telephony, above any recorder

_AAC_FRAME: Final = 1_024
_MAX_PRIMING_FRAMES: Final = 2  # libavcodec adds one AAC frame, others two and a little

_PACKETS: Final = {"max_size": "65536", "probesize": "65536"}
"""Large packets and short probing: a sixth of the time for wav, which libav else searches for hidden surround sound."""

_MAX_MP4_SAMPLES: Final = 100_000  # a minute of AAC at 96 kHz has 5,625

av.logging.set_level(None)  # what libav thinks of a worker's data is told once, by AudioError


def decode(audio: Audio) -> Samples:
    """`audio` as samples at its declared rate and channels, exactly as long as it declares: ``(frames, channels)``.

    What a wav or m4a says of its own rate and channels wins over what was declared (workers have been seen to declare
    48 kHz stereo whatever they send): it is resampled and mixed to that. More than two channels are mixed to stereo
    first. Up to 500 ms or 10 % of difference in length, whichever is more, is cut off or padded with silence.
    A duration of 0 ms is 0 frames, whatever the data.

    Raises:
        AudioError: it cannot be decoded, or is not what it says it is.
    """
    frames = frame_count(audio.duration_ms, audio.sample_rate_hz)
    if frames == 0:
        return np.zeros((0, audio.channels), np.float32)
    if audio.format == "pcm_s16le":
        decoded = _decode_pcm(audio.data, audio.sample_rate_hz, audio.channels)
    elif audio.format in ("wav", "m4a"):
        longest_ms = audio.duration_ms + _tolerance_ms(audio.duration_ms)
        decoded = _decode_container(audio.data, audio.format, longest_ms)
    else:
        raise AudioError(f"unknown format {audio.format!r}")

    surplus = len(decoded.samples) - frame_count(audio.duration_ms, decoded.sample_rate_hz)
    if not len(decoded.samples):
        raise AudioError("no audio in it")
    if abs(surplus) * 1_000 > _tolerance_ms(audio.duration_ms) * decoded.sample_rate_hz:
        real_ms = half_up(len(decoded.samples) * 1_000, decoded.sample_rate_hz)
        raise AudioError(f"declared {audio.duration_ms} ms of audio, holds {real_ms} ms")
    samples = decoded.samples
    if decoded.may_be_primed:
        # An AAC encoder begins with whole frames of nothing and fills up its last frame. Where the container does not
        # say where the audio begins, whole frames too many are therefore taken from the beginning, not from the end.
        samples = samples[_AAC_FRAME * min(max(surplus, 0) // _AAC_FRAME, _MAX_PRIMING_FRAMES) :]
    if not np.isfinite(samples).all():
        raise AudioError("samples that are not numbers")
    samples = cut_or_pad(samples, frame_count(audio.duration_ms, decoded.sample_rate_hz))
    samples = with_channels(samples, audio.channels)
    samples = cut_or_pad(resample(samples, decoded.sample_rate_hz, audio.sample_rate_hz), frames)
    return np.clip(samples, -1, 1, out=samples)


@frozen
class _Decoded:
    samples: Samples  # (frames, channels)
    sample_rate_hz: int
    may_be_primed: bool = False


def _decode_pcm(data: bytes, sample_rate_hz: int, channels: int) -> _Decoded:
    if len(data) % (2 * channels):
        raise AudioError(f"{len(data)} bytes are no whole number of {channels}-channel 16-bit frames")
    integers = np.frombuffer(data, "<i2").reshape(-1, channels)
    return _Decoded(integers.astype(np.float32) / np.float32(32_768), sample_rate_hz)


def _decode_container(data: bytes, format: str, longest_ms: int) -> _Decoded:
    if format == "wav":
        demuxer, codec = "wav", "pcm_"
    elif len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:  # ADTS sync word (ISO/IEC 14496-3, 1.A.2.2)
        demuxer, codec = "aac", "aac"
    else:
        demuxer, codec = "mov", "aac"
        _check_mp4_tables(data)
    try:
        with av.open(
            io.BytesIO(data),
            "r",
            format=demuxer,
            metadata_errors="ignore",
            # A video beside the audio is not decoded to probe it, and edit lists say where audio begins but cannot
            # repeat parts of it.
            options={"codec_whitelist": "aac", "advanced_editlist": "0"} | _PACKETS,
        ) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise AudioError(f"no audio in this {format}")
            if stream.codec_context is None or not stream.codec_context.codec.name.startswith(codec):
                name = stream.codec_context.codec.name if stream.codec_context else "unknown"
                raise AudioError(f"{format} with {name} audio")
            return _decode_stream(container, stream, longest_ms)
    except av.error.FFmpegError as error:
        raise AudioError(f"not valid {format}: {error.strerror}") from None


def _decode_stream(container: av.container.InputContainer, stream: av.AudioStream, longest_ms: int) -> _Decoded:
    planes: list[Samples] = []
    rate = channels = frames = 0
    begins_at: int | None = None
    convert: av.AudioResampler | None = None
    for packet in container.demux(stream):
        if begins_at is None and packet.size:
            begins_at = packet.pts or 0
        for frame in packet.decode():
            if convert is None:
                rate, channels = frame.sample_rate, frame.layout.nb_channels
                if rate not in _RATES_HZ or not 1 <= channels <= _MAX_CHANNELS:
                    raise AudioError(f"{channels} channels at {rate} Hz are beyond what is taken")
                convert = av.AudioResampler(format="fltp", layout="stereo" if channels > 2 else None)
            elif (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                raise AudioError("rate or channels change halfway")
            frames += frame.samples
            if frames * 1_000 > longest_ms * rate + _AAC_FRAME * _MAX_PRIMING_FRAMES * 1_000:
                raise AudioError("holds much more audio than declared")
            planes.extend(part.to_ndarray().astype(np.float32, copy=False) for part in convert.resample(frame))
    if not planes:
        raise AudioError("no audio in it")
    samples = np.ascontiguousarray(np.concatenate(planes, axis=1).T)
    # Where there is an edit list, packets before the beginning have negative times and libav drops what they hold.
    aac = stream.codec_context.codec.name.startswith("aac")
    return _Decoded(samples, rate, may_be_primed=aac and begins_at is not None and begins_at >= 0)


def _check_mp4_tables(data: bytes) -> None:
    """Refuse an MP4 whose tables unfold to far more than their bytes.

    libav builds an index entry for each sample that `stsz`, `stz2` or `trun` declares; where all share one size, 2**32
    of them take four bytes. An `stts` with single PCM frames as samples makes it build the index from `stsc` counts
    instead, which are as cheap, and `cmov` is a compressed header. libav accepts these boxes nearly anywhere, so they
    are looked for anywhere outside of the media data.
    """
    samples = 0
    for start, end in _mp4_headers(data):
        if data.find(b"cmov", start, end) >= 0:
            raise AudioError("m4a with a compressed header")
        for box in (b"stsz", b"stz2"):
            for at in _occurrences(data, box, start, end):
                samples += _uint32(data, at + 12)
        for at in _occurrences(data, b"trun", start, end) if b"tfhd" in data else ():  # "trun": "trunk" in a title
            samples += _uint32(data, at + 8)
        for at in _occurrences(data, b"stts", start, end):
            entries, duration = _uint32(data, at + 8), _uint32(data, at + 16)
            if entries == 1 and (duration == 1 or duration >= 2**31):  # some versions read the latter as 1
                raise AudioError("m4a that declares single PCM frames instead of AAC")
    if samples > _MAX_MP4_SAMPLES:
        raise AudioError(f"m4a that declares {samples} AAC frames")


def _occurrences(data: bytes, box: bytes, start: int, end: int) -> Iterator[int]:
    at = data.find(box, start, end)
    while at >= 0:
        yield at
        at = data.find(box, at + 4, end)


def _uint32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _mp4_headers(data: bytes) -> Iterator[tuple[int, int]]:
    """The stretches of an MP4 that are not media data: all top-level boxes but `mdat` (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at < len(data):
        size, kind = _uint32(data, at), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: up to the end; else it is broken, and all that follows is taken for a header
            size = len(data) - at
            kind = kind if data[at : at + 4] == b"\0\0\0\0" else b""
        if kind != b"mdat":
            yield at, min(at + size, len(data))
        at += size


def _tolerance_ms(duration_ms: int) -> int:
    return max(500, duration_ms // 10)
