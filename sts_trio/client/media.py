"""Media files in and out: any file PyAV reads to samples, and samples back to a file of the wanted kind.

Blocking; nothing here runs while a connection is open. A programme may be hours long, so samples are 16-bit arrays over
temporary files (`scratch`) that the operating system pages in and out.

Files appear under their names only when they are complete (`replacing`): whoever finds one can use it.
"""

from __future__ import annotations

import heapq
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from .timing import decode_times

Pcm: TypeAlias = npt.NDArray[np.int16]
"""16-bit samples, shape ``(frames, channels)``."""

_VideoPacket: TypeAlias = "av.Packet[av.VideoStream]"
_Timed: TypeAlias = tuple[float, "av.Packet[Any]"]

RATES_HZ: Final = range(8_000, 96_001)
"""What the wire carries (contract, `sample_rate_hz`)."""

_OTHER_RATE_HZ: Final = 48_000  # for sources at rates the wire does not carry
_GAP_S: Final = 0.05  # a hole in the timestamps that is longer is a hole in the programme; containers round to less
_LONGEST_GAP_S: Final = 10.0  # beyond that the clock was changed, not the programme interrupted ...
_LONGEST_GAP_BESIDE_PICTURES_S: Final = 3_600.0  # ... but pictures follow the clock, and sound must stay beside them
_ENCODE_FRAMES: Final = 4_096

_SOUND: Final = {
    ".wav": ("wav", "pcm_s16le"),
    ".flac": ("flac", "flac"),
    ".m4a": ("ipod", "aac"),
    ".mp3": ("mp3", "libmp3lame"),
    ".aac": ("adts", "aac"),
    ".ogg": ("ogg", "libopus"),
    ".opus": ("opus", "libopus"),
    ".mka": ("matroska", "aac"),
}
_PICTURES: Final = {
    ".mp4": ("mp4", "aac"),
    ".m4v": ("mp4", "aac"),
    ".mov": ("mov", "aac"),
    ".mkv": ("matroska", "aac"),
    ".ts": ("mpegts", "aac"),
    ".webm": ("webm", "libopus"),
}
_KINDS: Final = _SOUND | _PICTURES
"""File name ending -> libav's container and the encoder for its sound."""


class MediaError(Exception):
    """A file that cannot be read or written; the message names it."""


@frozen
class Media:
    """A programme's sound.

    Attributes:
        samples: one or two channels at `rate_hz`; more are mixed to two.
        rate_hz: the file's own rate where the wire carries it, else 48 kHz.
        begins_s: when, by the clock of the pictures, the first sample is heard, in seconds; 0 if there are none.
        has_video: whether there are moving pictures (a cover is none).
        damaged_packets: left out because they could not be decoded.
    """

    path: Path
    samples: Pcm = field(eq=False, repr=False)
    rate_hz: int
    begins_s: float = 0.0
    has_video: bool = False
    damaged_packets: int = 0


def scratch(frames: int, channels: int) -> Pcm:
    """Silence over a temporary file that is gone with the array."""
    with tempfile.TemporaryFile(prefix="sts-trio-") as file:
        return np.memmap(file, np.int16, "w+", shape=(frames, channels))


def read_media(path: Path) -> Media:
    """The sound of a media file: its default audio track, with holes in its timestamps filled by silence.

    Sound alone that jumps by more than 10 s goes on without a hole. Beside pictures holes of up to an hour are filled.

    Raises:
        MediaError: there is no such file, it is no media file, there is no sound in it, or it cannot stay beside the
            file's pictures.
    """
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            track = container.streams.best("audio")
            if not isinstance(track, av.AudioStream):
                raise MediaError(f"{path}: there is no sound in it")
            if track.codec_context is None:
                raise MediaError(f"{path}: its sound is of a kind that cannot be decoded")
            has_video = _pictures(container) is not None
            samples, rate_hz, begins, damaged = _decode(container, track, has_video)
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: {_reason(error)}") from None
    if not len(samples):
        raise MediaError(f"{path}: there is no sound in it")
    return Media(path, samples, rate_hz, begins if has_video else 0.0, has_video, damaged)


def _reason(error: av.error.FFmpegError) -> str:
    return "not a media file" if isinstance(error, av.error.InvalidDataError) else error.strerror or str(error)


def _pictures(container: av.container.InputContainer) -> av.VideoStream | None:
    moving = (s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
    return next(moving, None)


def _decode(
    container: av.container.InputContainer, track: av.AudioStream, has_video: bool
) -> tuple[Pcm, int, float, int]:
    """Samples, their rate, the time of the first one in seconds, and the number of packets left out."""
    layout = "mono" if track.codec_context.channels == 1 else "stereo"
    rate_hz = track.codec_context.sample_rate
    rate_hz = rate_hz if rate_hz in RATES_HZ else _OTHER_RATE_HZ
    convert = setup = begins = None
    clock_s = 0.0  # when, by the present clock, the first sample would have been
    frames = damaged = 0
    with tempfile.TemporaryFile(prefix="sts-trio-") as file:

        def write(converted: list[av.AudioFrame]) -> int:
            for part in converted:
                file.write(part.to_ndarray().tobytes())
            return sum(part.samples for part in converted)

        for packet in container.demux(track):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:  # each decoder has its own ways to say that it cannot read this
                damaged += 1
                continue
            for frame in decoded:
                if begins is None:
                    begins = clock_s = frame.time or 0.0
                if setup != (setup := (frame.format.name, frame.layout.name, frame.sample_rate)):
                    frames += write(convert.resample(None)) if convert else 0  # the programme changed its format
                    convert = av.AudioResampler(format="s16", layout=layout, rate=rate_hz)
                assert convert is not None
                gap_s = 0.0 if frame.time is None else frame.time - clock_s - frames / rate_hz
                if abs(gap_s) > _LONGEST_GAP_S and not has_video:
                    clock_s += gap_s
                elif gap_s > _LONGEST_GAP_BESIDE_PICTURES_S:
                    raise MediaError(f"{container.name}: there is a hole of {gap_s:.0f} s in its sound")
                elif gap_s > _GAP_S:
                    missing = round(gap_s * rate_hz)
                    file.seek(missing * 2 * len(convert.layout.channels), os.SEEK_CUR)  # zeros that take no room
                    frames += missing
                frames += write(convert.resample(frame))
        frames += write(convert.resample(None)) if convert else 0
        file.truncate()
        channels = 1 if layout == "mono" else 2
        samples = np.memmap(file, np.int16, "r", shape=(frames, channels)) if frames else np.zeros((0, channels), "i2")
    return samples, rate_hz, begins or 0.0, damaged


# ---------------------------------------------------------------------------------------------- output


def check_output(path: Path, source: Path) -> None:
    """Find out before the work, not after it, that there is nothing to work on, or its result cannot be written.

    Raises:
        MediaError: there is no `source`, no such kind of file, no such folder, it is `source` itself, or it cannot
            hold `source`'s pictures.
    """
    if not source.exists():
        raise MediaError(f"{source}: No such file or directory")
    if path.suffix.lower() not in _KINDS:
        raise MediaError(f"{path}: its name must end in one of {' '.join(_KINDS)}")
    if path.is_dir():
        raise MediaError(f"{path}: is a folder")
    if _same(path, source):
        raise MediaError(f"{path}: is the input, which is never overwritten")
    if not path.parent.is_dir():
        raise MediaError(f"{path.parent}: no such folder")
    if not os.access(path.parent, os.W_OK):
        raise MediaError(f"{path.parent}: cannot be written to")
    if path.suffix.lower() in _PICTURES:
        _check_pictures(path, source)


def _check_pictures(path: Path, source: Path) -> None:
    """Write the first picture and read it again: some kinds take what nobody can read from them."""
    try:
        with av.open(str(source), metadata_errors="ignore") as original:
            pictures = _pictures(original)
            first = next((packet for packet in original.demux(pictures) if packet.size), None) if pictures else None
            if pictures is None or first is None:
                return
            codec = _codec(pictures)
            first.pts = first.dts = 0
            fits = codec is None or _readable(path, pictures, first) == codec
    except av.error.FFmpegError:  # whoever reads it will say so
        return
    if not fits:
        ending = path.suffix.lower()
        remedy = "use .mkv" if ending != ".mkv" else "use .m4a for the sound alone"
        raise MediaError(f"{path}: {ending} cannot hold the {codec} pictures of {source}; {remedy}")


def _readable(path: Path, pictures: av.VideoStream, first: _VideoPacket) -> str | None:
    """What a file of `path`'s kind says these pictures are; None if it cannot hold them."""
    kind, encoder = _KINDS[path.suffix.lower()]
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=kind) as out:
            first.stream = out.add_stream_from_template(pictures, opaque=True)
            out.add_stream(encoder, rate=_OTHER_RATE_HZ, layout="mono")
            out.mux(first)
        file.seek(0)
        with av.open(file, "r", format=kind) as written:
            again = _pictures(written)
            return None if again is None else _codec(again)
    except (av.error.FFmpegError, ValueError):
        return None


def _codec(pictures: av.VideoStream) -> str | None:
    """None where there is no decoder for it."""
    context: av.VideoCodecContext | None = pictures.codec_context
    return None if context is None else context.codec.canonical_name


def _same(path: Path, source: Path) -> bool:
    try:
        return path.samefile(source)
    except OSError:  # one of them is not there, or not to be reached: reading or writing it will say so
        return False


def write_media(path: Path, samples: Pcm, source: Media) -> None:
    """Write `samples` in the place of `source`'s sound, as the kind of file that `path`'s ending names.

    wav and flac hold exactly `samples`; other kinds are encoded. A kind that shows pictures gets the source's too,
    copied as they are.

    Raises:
        MediaError: this kind of file cannot hold the source's pictures, or it cannot be written.
    """
    kind, encoder = _KINDS[path.suffix.lower()]
    options = {"rf64": "auto"} if kind == "wav" else {}  # a wav may have more than 4 GiB
    try:
        with replacing(path) as unfinished, av.open(str(unfinished), "w", format=kind, options=options) as out:
            if source.has_video and path.suffix.lower() in _PICTURES:
                with av.open(str(source.path), metadata_errors="ignore") as original:
                    _write_both(out, encoder, samples, source, original)
            else:
                for _, packet in _encoded(_sound_track(out, encoder, samples, source.rate_hz), samples, source.rate_hz):
                    out.mux(packet)
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes `path`'s place once it is complete and is removed if it is not."""
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_both(
    out: av.container.OutputContainer,
    encoder: str,
    samples: Pcm,
    source: Media,
    original: av.container.InputContainer,
) -> None:
    """Pictures and sound, interleaved by time as players want them."""
    pictures = _pictures(original)
    assert pictures is not None, "checked when it was read"
    copied = out.add_stream_from_template(pictures, opaque=True)  # else it asks for an encoder, as if it needed one
    track = _sound_track(out, encoder, samples, source.rate_hz)
    timing = _read_timing(original.name)
    start_s = min(timing.begins_s, source.begins_s)
    film = _copied(original.demux(pictures), copied, timing, start_s)
    sound = _encoded(track, samples, source.rate_hz, source.begins_s - start_s)
    for _, packet in heapq.merge(film, sound, key=lambda timed: timed[0]):
        out.mux(packet)


@frozen
class _Timing:
    begins_s: float  # when the first picture is shown, which libav's start_time is not in every file
    decoded: list[int]  # when each is decoded, in the stream's time base


def _read_timing(path: str) -> _Timing:
    with av.open(path, metadata_errors="ignore") as original:
        pictures = _pictures(original)
        assert pictures is not None, "checked when it was read"
        assert pictures.time_base is not None, "every stream in a file has one"
        step = max(1, round(1 / (pictures.average_rate or 25) / pictures.time_base))
        first: int | None = None
        shown, decoded = [], []
        for packet in original.demux(pictures):
            if not packet.size:  # the mark at the end of the file
                continue
            shown.append(packet.pts)
            decoded.append(packet.dts)
            if packet.pts is not None and not packet.is_discard:  # by an edit list, for one
                first = packet.pts if first is None else min(first, packet.pts)
        times = decode_times(shown, decoded, step)
    begins = times[0] if first is None and times else first
    return _Timing(float((begins or 0) * pictures.time_base), times)


def _copied(
    packets: Iterator[_VideoPacket], copied: av.VideoStream, timing: _Timing, start_s: float
) -> Iterator[_Timed]:
    """The source's picture packets with their times in seconds from `start_s` of its clock."""
    for packet, decoded in zip((packet for packet in packets if packet.size), timing.decoded, strict=True):
        shift = round(start_s / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = decoded - shift
        time_s = float(packet.dts * packet.time_base)
        packet.stream = copied
        yield time_s, packet


def _sound_track(out: av.container.OutputContainer, encoder: str, samples: Pcm, rate_hz: int) -> av.AudioStream:
    rates = av.codec.Codec(encoder, "w").audio_rates
    if rates and rate_hz not in rates:
        rate_hz = min((rate for rate in rates if rate > rate_hz), default=max(rates))
    track = out.add_stream(encoder, rate=rate_hz, layout=_layout(samples))
    assert isinstance(track, av.AudioStream)
    return track


def _encoded(track: av.AudioStream, samples: Pcm, rate_hz: int, begins_s: float = 0.0) -> Iterator[_Timed]:
    """Encoded packets of `samples` with their times in seconds, where the first sample is at `begins_s`."""
    offset = round(begins_s * rate_hz)
    for at in range(0, len(samples), _ENCODE_FRAMES):
        piece = np.ascontiguousarray(samples[at : at + _ENCODE_FRAMES])
        frame = av.AudioFrame.from_ndarray(piece.reshape(1, -1), format="s16", layout=_layout(samples))
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, offset + at, Fraction(1, rate_hz)
        for packet in track.encode(frame):
            yield begins_s + at / rate_hz, packet
    for packet in track.encode(None):
        yield begins_s + len(samples) / rate_hz, packet


def _layout(samples: Pcm) -> str:
    return "mono" if samples.shape[1] == 1 else "stereo"
