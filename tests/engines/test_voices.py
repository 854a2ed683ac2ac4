"""`VOICES_FILE`: what it may say, and that each mistake is named with its file, voice and field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sts_trio.engines.base import EngineUnavailable
from sts_trio.engines.voices import REFERENCE_RATE_HZ, FileVoice, read_reference, read_voices


def write(folder: Path, content: Any) -> Path:
    file = folder / "voices.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def record(path: Path, *, rate_hz: int = 24_000, seconds: float = 3.0, channels: int = 1, level: float = 0.2) -> Path:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    tone = (level * np.sin(2 * np.pi * 220 * time)).astype(np.float32)
    soundfile.write(path, np.repeat(tone[:, np.newaxis], channels, axis=1), rate_hz, subtype="FLOAT", format="WAV")
    return path


def read(file: Path) -> tuple[FileVoice, ...]:
    return read_voices(file, languages=["de", "es", "zh"], speakers=["Luis Moray", "Ana Florence"])


def test_a_voice_is_a_speaker_of_the_checkpoint_or_a_recording(tmp_path: Path) -> None:
    record(tmp_path / "anna.wav")
    content = {
        "carlos": {"language": "es-MX", "speaker": "Luis Moray", "description": "the news"},
        "anna": {"language": "de", "reference": "anna.wav"},
        "li": {"language": "zh-Hant-TW", "speaker": "Ana Florence", "description": ""},
    }

    carlos, anna, li = read(write(tmp_path, content))

    assert carlos == FileVoice("carlos", "es-MX", "Luis Moray", None, "the news")
    assert anna == FileVoice("anna", "de", None, tmp_path / "anna.wav", "")
    assert li.language == "zh-Hant-TW"


SPEAKER = {"language": "es", "speaker": "Luis Moray"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "must be an object"),
        ("{}", "at least one voice"),
        ('{"a": {}, "a": {}}', "'a' is there twice"),
        ('{"a": {"language": "es", "language": "de"}}', "'language' is there twice"),
        ({"": SPEAKER}, "voice '': id: must be printable"),
        ({"a\n": SPEAKER}, "id: must be printable"),
        ({"default": SPEAKER}, "voice 'default': id: default is no name"),
        ({"a": "Luis Moray"}, "voice 'a' must be an object with language, speaker, reference, description"),
        ({"a": {**SPEAKER, "lang": "es"}}, "voice 'a': lang: is unknown; there are language,"),
        ({"a": {**SPEAKER, "language": 1}}, "voice 'a': language: must be a text"),
        ({"a": {**SPEAKER, "description": None}}, "voice 'a': description: must be a text"),
        ({"a": {**SPEAKER, "language": ""}}, "voice 'a': language: must be a text"),
        ({"a": {"speaker": "Luis Moray"}}, "voice 'a': language: is missing"),
        (
            {"a": {**SPEAKER, "language": "tlh"}},
            "voice 'a': language: 'tlh' is none that .* speaks [(]de, es, zh",
        ),
        ({"a": {**SPEAKER, "language": "es mx"}}, "voice 'a': language: 'es mx' is none"),
        ({"a": {"language": "es"}}, "voice 'a': reference: give one of speaker and reference"),
        ({"a": {**SPEAKER, "reference": "a.wav"}}, "voice 'a': speaker: give one of speaker and reference"),
        (
            {"a": {**SPEAKER, "speaker": "Luis"}},
            "speaker: the checkpoint has no 'Luis'; it has Ana Florence, Luis Moray",
        ),
        ({"a": {"language": "es", "reference": "gone.wav"}}, "voice 'a': reference: .*gone.wav does not exist"),
    ],
)
def test_a_mistake_is_named_with_its_file_voice_and_field(tmp_path: Path, content: Any, message: str) -> None:
    file = write(tmp_path, content)

    with pytest.raises(EngineUnavailable, match=message) as refused:
        read(file)
    assert str(refused.value).startswith(f"VOICES_FILE={file}")


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"VOICES_FILE=.*none\.json cannot be read: .*No such file"):
        read(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(EngineUnavailable, match="cannot be read"):
        read(tmp_path / "binary")


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        ({"rate_hz": 8_000}, "a.wav has 8000 Hz; record it with at least 16000 Hz"),
        ({"seconds": 0.5}, "a.wav is 0.5 s long; it must be from 1 to 30 s"),
        ({"seconds": 31.0}, "a.wav is 31.0 s long"),
        ({"level": 0.001}, "a.wav is silent"),
        ({"level": float("nan")}, "a.wav has samples that are no numbers"),
    ],
)
def test_no_voice_is_learnt_from_a_bad_recording(tmp_path: Path, recording: Any, message: str) -> None:
    record(tmp_path / "a.wav", **recording)
    file = write(tmp_path, {"a": {"language": "es", "reference": "a.wav"}})

    with pytest.raises(EngineUnavailable, match=f"voices.json: voice 'a': reference: .*{message}"):
        read(file)


def test_a_recording_that_is_no_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF of something else")
    file = write(tmp_path, {"a": {"language": "es", "reference": "a.wav"}})

    with pytest.raises(EngineUnavailable, match=r"voice 'a': reference: .*a\.wav cannot be read as audio"):
        read(file)


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 48_000])
def test_a_recording_comes_as_the_model_wants_it(tmp_path: Path, rate_hz: int) -> None:
    record(tmp_path / "a.wav", rate_hz=rate_hz, channels=2)
    file = write(tmp_path, {"a": {"language": "es", "reference": str(tmp_path / "a.wav")}})

    samples = read_reference(file, read(file)[0])

    assert samples.shape == (3 * REFERENCE_RATE_HZ,)
    assert samples.dtype == np.float32
    assert np.abs(samples).max() == pytest.approx(0.2, rel=0.05)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "voices.json")
    with pytest.raises(EngineUnavailable, match="cannot be read: it is no file"):
        read(tmp_path / "voices.json")


def test_a_path_that_cannot_be_is_the_fault_of_its_voice(tmp_path: Path) -> None:
    file = write(tmp_path, {"a": {"language": "es", "reference": "a" * 5_000}})
    with pytest.raises(EngineUnavailable, match=r"voice 'a': reference: .* cannot be read as audio: .*name too long"):
        read(file)
