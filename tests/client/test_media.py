"""Media files in and out, with real files of the kinds people have."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sts_trio.client.media import (
    Media,
    MediaError,
    Pcm,
    check_output,
    read_media,
    replacing,
    scratch,
    write_media,
)


def sweep(frames: int, rate_hz: int, channels: int = 1) -> Pcm:
    """A tone that rises, so that a shift in time shows."""
    t = np.arange(frames) / rate_hz
    tone = (np.sin(2 * np.pi * (200 + 100 * t) * t) * 8_000).astype(np.int16)
    return np.repeat(tone[:, np.newaxis], channels, axis=1)


def write_sound(path: Path, samples: Pcm, rate_hz: int) -> Path:
    write_media(path, samples, Media(path, samples, rate_hz))
    return path


def write_film(
    path: Path, *, sound_begins_s: float = 0.0, seconds: int = 2, codec: str = "libx264", sound_first: bool = False
) -> Path:
    """25 pictures a second, a tone beside them, from a moment on."""
    with av.open(str(path), "w") as out:
        pictures = out.add_stream(codec, rate=25)
        assert isinstance(pictures, av.VideoStream)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        sound = out.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48_000, layout="stereo")
        assert isinstance(sound, av.AudioStream)
        film = []
        for number in range(25 * seconds):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
            picture.pts = number
            film += pictures.encode(picture)
        film += pictures.encode(None)
        samples = sweep(48_000 * seconds, 48_000, 2)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
        frame.pts = round(sound_begins_s * 48_000)
        tone = [*sound.encode(frame), *sound.encode(None)]
        out.start_encoding()
        for packet in tone + film if sound_first else film + tone:
            out.mux_one(packet)
    return path


def picture_times(path: Path) -> list[float]:
    """By the file's clock, in seconds."""
    with av.open(str(path)) as container:
        return sorted(
            float(packet.pts * packet.time_base)
            for packet in container.demux(video=0)
            if packet.size and packet.pts is not None
        )


def sound_begins(path: Path) -> float:
    """When the first loud sample is heard, by the file's clock, in seconds."""
    media = read_media(path)
    return media.begins_s + int(np.argmax(np.abs(media.samples[:, 0]) > 300)) / media.rate_hz


# ---------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("ending", [".wav", ".flac"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_wav_and_flac_keep_every_sample(tmp_path: Path, ending: str, channels: int, rate_hz: int) -> None:
    samples = sweep(rate_hz // 4 + 7, rate_hz, channels)
    media = read_media(write_sound(tmp_path / f"a{ending}", samples, rate_hz))
    assert media.rate_hz == rate_hz
    np.testing.assert_array_equal(media.samples, samples)


@pytest.mark.parametrize("ending", [".m4a", ".mp3", ".ogg", ".opus", ".mka", ".aac", ".webm", ".ts"])
def test_encoded_kinds_sound_the_same(tmp_path: Path, ending: str) -> None:
    samples = sweep(48_000, 48_000, 2)
    media = read_media(write_sound(tmp_path / f"a{ending}", samples, 48_000))
    assert media.rate_hz == 48_000
    assert media.samples.shape[1] == 2
    assert abs(len(media.samples) - 48_000) <= 4_096  # AAC without an edit list keeps its priming and filling
    both = min(len(media.samples), 48_000) - 2_048
    heard = media.samples[:, 0].astype(float)
    aligned = max(float(np.corrcoef(heard[by : by + both], samples[:both, 0])[0, 1]) for by in (0, 1_024, 1_105, 2_048))
    assert aligned > 0.95


@pytest.mark.parametrize("rate_hz", [4_000, 192_000])
def test_rates_the_wire_does_not_carry_become_48_khz(tmp_path: Path, rate_hz: int) -> None:
    media = read_media(write_sound(tmp_path / "a.wav", sweep(rate_hz, rate_hz), rate_hz))
    assert media.rate_hz == 48_000
    assert abs(len(media.samples) - 48_000) <= 48


def test_more_than_two_channels_are_mixed_to_two(tmp_path: Path) -> None:
    path = tmp_path / "surround.wav"
    with av.open(str(path), "w") as out:
        track = out.add_stream("pcm_s16le", rate=16_000, layout="5.1")
        frame = av.AudioFrame.from_ndarray(sweep(16_000, 16_000, 6).reshape(1, -1), format="s16", layout="5.1")
        frame.sample_rate = 16_000
        out.mux(track.encode(frame))
        out.mux(track.encode(None))
    assert read_media(path).samples.shape == (16_000, 2)


def write_pieces(path: Path, *begins_s: int, pictures: bool = False) -> Path:
    """A second of a constant at each of these moments; beside it a picture now and then."""
    with av.open(str(path), "w") as out:
        track = out.add_stream("pcm_s16le", rate=8_000, layout="mono")
        film = out.add_stream("libx264", rate=1) if pictures else None
        if film is not None:
            film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
        for at in begins_s:
            if film is not None:
                picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                picture.pts, picture.time_base = at, Fraction(1)
                out.mux(film.encode(picture))
            frame = av.AudioFrame.from_ndarray(np.full((1, 8_000), 1_000, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8_000, at * 8_000, Fraction(1, 8_000)
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
        if film is not None:
            out.mux(film.encode(None))
    return path


def pieces(media: Media) -> list[int]:
    """In which seconds there is sound."""
    seconds = media.samples[:, 0].reshape(-1, 8_000)
    assert set(np.unique(seconds)) <= {0, 1_000}
    return [int(number) for number in np.flatnonzero((seconds == 1_000).all(axis=1))]


def test_a_hole_in_the_timestamps_is_silence(tmp_path: Path) -> None:
    assert pieces(read_media(write_pieces(tmp_path / "hole.mka", 0, 3, 5))) == [0, 3, 5]


@pytest.mark.parametrize("jump_s", [20, 400_000])
def test_sound_alone_goes_on_where_its_clock_jumped_and_later_holes_are_holes(tmp_path: Path, jump_s: int) -> None:
    path = write_pieces(tmp_path / "jump.mka", 0, jump_s, jump_s + 2, jump_s + 4)
    assert pieces(read_media(path)) == [0, 1, 3, 5]


def test_sound_beside_pictures_stays_beside_them(tmp_path: Path) -> None:
    media = read_media(write_pieces(tmp_path / "film.mkv", 0, 20, 22, 1_000, pictures=True))
    assert media.has_video
    assert pieces(media) == [0, 20, 22, 1_000]


def test_sound_that_cannot_stay_beside_its_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"film\.mkv: there is a hole of 7199 s in its sound"):
        read_media(write_pieces(tmp_path / "film.mkv", 0, 7_200, pictures=True))


def test_damaged_packets_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "damaged.mka"
    with av.open(str(path), "w") as out:
        track = out.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sweep(48_000, 48_000).reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
        for number, packet in enumerate([*track.encode(frame), *track.encode(None)]):
            if number % 10 == 5:
                garbage = av.Packet(b"\xff" * 50)
                garbage.pts, garbage.dts, garbage.time_base = packet.pts, packet.dts, packet.time_base
                garbage.stream = track
                packet = garbage
            out.mux(packet)
    media = read_media(path)
    assert media.damaged_packets == 5
    assert abs(len(media.samples) - 48_000) <= 2_048  # their places are kept


# ---------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("source", ["film.mp4", "film.mkv", "film.ts"])
@pytest.mark.parametrize("output", ["dub.mp4", "dub.mkv", "dub.ts", "dub.mov"])
@pytest.mark.parametrize("sound_begins_s", [0.0, 0.5])
def test_a_film_keeps_its_pictures_and_the_sound_its_moment(
    tmp_path: Path, source: str, output: str, sound_begins_s: float
) -> None:
    film = write_film(tmp_path / source, sound_begins_s=sound_begins_s)
    media = read_media(film)
    assert media.has_video
    write_media(tmp_path / output, media.samples, media)
    assert len(picture_times(tmp_path / output)) == 50
    shift = picture_times(tmp_path / output)[0] - picture_times(film)[0]
    assert sound_begins(tmp_path / output) - shift == pytest.approx(sound_begins(film), abs=0.03)


def test_only_the_sound_where_the_output_shows_no_pictures(tmp_path: Path) -> None:
    media = read_media(write_film(tmp_path / "film.mp4"))
    write_media(tmp_path / "dub.wav", media.samples, media)
    again = read_media(tmp_path / "dub.wav")
    assert not again.has_video
    np.testing.assert_array_equal(again.samples, media.samples)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["dub.mp4", "dub.mkv", "dub.ts"])
def test_a_film_whose_sound_lies_before_its_pictures(tmp_path: Path, output: str) -> None:
    """libav looks at so few of these pictures that it concludes impossible decode times."""
    film = write_film(tmp_path / "film.mkv", seconds=10, sound_first=True)
    with av.open(str(film)) as container:
        guessed = [packet.dts for packet in container.demux(video=0) if packet.size]
    known = [time for time in guessed if time is not None]
    assert len(known) < len(guessed) or sorted(known) != known
    media = read_media(film)
    write_media(tmp_path / output, media.samples, media)
    shift = picture_times(tmp_path / output)[0] - picture_times(film)[0]
    shown = [time + shift for time in picture_times(film)]
    assert picture_times(tmp_path / output) == pytest.approx(shown, abs=0.002)
    assert sound_begins(tmp_path / output) - shift == pytest.approx(sound_begins(film), abs=0.03)
    with av.open(str(tmp_path / output)) as container:  # none is before the start, where players would not show it
        assert len(list(container.decode(video=0))) == 250


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "codec", "outputs"),
    [
        ("film.mp4", "libx264", "mp4 m4v mov mkv ts"),
        ("film.webm", "libvpx", "mkv webm"),
        ("film.mkv", "libsvtav1", "mp4 m4v mkv webm"),
    ],
)
def test_which_kinds_can_hold_the_pictures_is_known_before_the_work(
    tmp_path: Path, source: str, codec: str, outputs: str
) -> None:
    film = write_film(tmp_path / source, seconds=1, codec=codec)
    media = read_media(film)
    fitting = outputs.split()
    for ending in ["mp4", "m4v", "mov", "mkv", "ts", "webm"]:
        output = tmp_path / f"dub.{ending}"
        if ending not in fitting:
            with pytest.raises(MediaError, match=r"dub\..*cannot hold .*film\..*; use \.mkv"):
                check_output(output, film)
            continue
        check_output(output, film)
        write_media(output, media.samples, media)
        with av.open(str(output)) as written:
            assert len([packet for packet in written.demux(video=0) if packet.size]) == 25
        assert read_media(output).has_video
    check_output(tmp_path / "dub.wav", film)


def test_pictures_that_fit_into_no_kind_leave_their_sound(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.asf", seconds=1, codec="wmv2")
    check_output(tmp_path / "dub.m4a", film)
    with pytest.raises(MediaError, match=r"wmv2 pictures .*; use \.m4a"):
        check_output(tmp_path / "dub.mkv", film)


def test_pictures_that_do_not_fit_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    media = read_media(write_film(tmp_path / "film.mp4"))
    with pytest.raises(MediaError, match=r"dub\.webm"):
        write_media(tmp_path / "dub.webm", media.samples, media)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


# ---------------------------------------------------------------------------------------------- what is refused


def test_files_that_hold_no_sound(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not a sound" * 100)
    (tmp_path / "empty.mp3").write_bytes(b"")
    with av.open(str(tmp_path / "silent.mp4"), "w") as out:
        pictures = out.add_stream("libx264", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        out.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        out.mux(pictures.encode(None))
    unknown = struct.pack("<HHIIHH", 0x1234, 1, 8_000, 16_000, 2, 16)  # a codec number that nobody has
    body = b"WAVEfmt " + struct.pack("<I", len(unknown)) + unknown + b"data" + struct.pack("<I", 1_600) + bytes(1_600)
    (tmp_path / "odd.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    for name, why in [
        ("text.wav", "not a media file"),
        ("odd.wav", "cannot be decoded"),
        ("empty.mp3", "not a media file"),
        ("silent.mp4", "no sound"),
        ("none.wav", "No such file"),
    ]:
        with pytest.raises(MediaError, match=rf"{name}: .*{why}"):
            read_media(tmp_path / name)


def test_outputs_that_cannot_be_written_are_known_before_the_work(tmp_path: Path) -> None:
    source = write_sound(tmp_path / "a.wav", sweep(100, 8_000), 8_000)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to(source)
    check_output(tmp_path / "new.wav", source)
    with pytest.raises(MediaError, match=r"missing\.wav: No such file"):
        check_output(source, tmp_path / "missing.wav")
    for name, why in [
        ("a.wav", "the input"),
        ("link.wav", "the input"),
        ("folder.wav", "a folder"),
        ("missing/b.wav", "no such folder"),
        ("b.txt", r"must end in one of \.wav"),
        ("b", "must end"),
    ]:
        with pytest.raises(MediaError, match=why):
            check_output(tmp_path / name, source)


def test_an_unfinished_file_never_takes_the_place_of_a_finished_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("finished")
    with pytest.raises(TypeError), replacing(path) as unfinished:
        unfinished.write_text(b"not a text")  # type: ignore[arg-type]
    assert path.read_text() == "finished"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    with replacing(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "new"


def test_scratch_is_silence_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    samples = scratch(1_000, 2)
    assert samples.shape == (1_000, 2)
    assert not samples.any()
    samples[10:20] = 5
    assert samples.sum() == 100
    assert list(tmp_path.iterdir()) == []
