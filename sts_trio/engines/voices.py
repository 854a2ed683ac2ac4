"""`VOICES_FILE`: the voices that an operator gives names to.

A JSON object: each voice's id, and what it is::

    {
      "anna": {"language": "de", "reference": "anna.wav", "description": "evening news"},
      "carlos": {"language": "es-MX", "speaker": "Luis Moray"}
    }

`reference` is the path of a recording, relative to the file; `speaker` is one that the checkpoint knows. A voice has
exactly one of the two. What is wrong is said at start, with the file, the voice and the field.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
from attrs import frozen

from .. import audio
from .base import EngineUnavailable, Samples
from .languages import language_code

DEFAULT: Final = "default"
"""The voice of who asks for none; an engine finds one for each language, so no file may define it."""

REFERENCE_RATE_HZ: Final = 22_050
"""What a model that learns a voice from a recording is given."""

MIN_REFERENCE_RATE_HZ: Final = 16_000
"""What the speaker encoder of XTTS hears. A telephone's 8 kHz lack half of that, and the voice would sound like one."""

REFERENCE_S: Final = (1.0, 30.0)
"""Shorter says too little of a voice; of a longer one XTTS takes no notice, so it is probably not the file meant."""

MIN_REFERENCE_PEAK: Final = 0.01
"""-40 dBFS: where nothing is louder nobody speaks."""

_FIELDS: Final = ("language", "speaker", "reference", "description")
_TAG: Final = re.compile(r"[a-z]{2,3}(?:[-_][a-z0-9]{1,8})*", re.IGNORECASE)


@frozen
class FileVoice:
    """A voice of the file: `speaker` is one of the checkpoint, or `reference` the path of a recording.

    Attributes:
        language: BCP 47 tag of what it speaks.
    """

    id: str
    language: str
    speaker: str | None
    reference: Path | None
    description: str


def read_voices(file: Path, *, languages: Collection[str], speakers: Collection[str]) -> tuple[FileVoice, ...]:
    """The voices in `file`, in its order; each recording is read, too, to see that it can be.

    Args:
        languages: that the model speaks, as `language_code` gives them.
        speakers: that the checkpoint knows.

    Raises:
        EngineUnavailable: something is wrong; the message names the file, the voice and the field.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise OSError("it is no file")
        content = json.loads(file.read_text("utf-8"), object_pairs_hook=_without_repetition)
    except (OSError, ValueError, RecursionError) as error:
        raise EngineUnavailable(f"VOICES_FILE={file} cannot be read: {error}") from error
    if not isinstance(content, dict) or not content:
        raise EngineUnavailable(f"VOICES_FILE={file} must be an object of at least one voice, by its id")
    voices = tuple(_voice(file, id_, entry, languages, speakers) for id_, entry in content.items())
    for voice in voices:
        if voice.reference is not None:
            read_reference(file, voice)
    return voices


def read_reference(file: Path, voice: FileVoice) -> Samples:
    """The recording of `voice`: mono, at `REFERENCE_RATE_HZ`.

    Raises:
        EngineUnavailable: it is not there, or no voice can be learnt from it.
    """
    path = voice.reference
    assert path is not None

    def refusal(why: str) -> EngineUnavailable:
        return voice_unusable(file, voice.id, "reference", f"{path} {why}")

    try:
        if not path.is_file():
            raise refusal("does not exist")
        about = soundfile.info(str(path))
        if about.samplerate < MIN_REFERENCE_RATE_HZ:
            raise refusal(f"has {about.samplerate} Hz; record it with at least {MIN_REFERENCE_RATE_HZ} Hz")
        shortest_s, longest_s = REFERENCE_S
        if not shortest_s <= about.duration <= longest_s:
            raise refusal(f"is {about.duration:.1f} s long; it must be from {shortest_s:g} to {longest_s:g} s")
        samples, rate_hz = soundfile.read(str(path), dtype="float32")
    except (OSError, soundfile.SoundFileError) as error:
        raise refusal(f"cannot be read as audio: {error}") from error
    if not np.isfinite(samples).all():
        raise refusal("has samples that are no numbers")
    mono = audio.to_mono(samples)
    if not np.abs(mono).max(initial=0) >= MIN_REFERENCE_PEAK:
        raise refusal("is silent")
    return audio.resample(mono, rate_hz, REFERENCE_RATE_HZ)


def voice_unusable(file: Path, voice: str, field: str, why: str) -> EngineUnavailable:
    """What is wrong with a voice of `file`, by its id and field."""
    return EngineUnavailable(f"VOICES_FILE={file}: voice {voice!r}: {field}: {why}")


def _voice(file: Path, id_: str, entry: Any, languages: Collection[str], speakers: Collection[str]) -> FileVoice:
    def refusal(field: str, why: str) -> EngineUnavailable:
        return voice_unusable(file, id_, field, why)

    if not id_.strip() or not id_.isprintable():
        raise refusal("id", "must be printable and not empty")
    if id_ == DEFAULT:
        raise refusal("id", f"{DEFAULT} is no name of a voice: it is the first one of each language")
    if not isinstance(entry, dict):
        raise EngineUnavailable(f"VOICES_FILE={file}: voice {id_!r} must be an object with {', '.join(_FIELDS)}")
    for field, value in entry.items():
        if field not in _FIELDS:
            raise refusal(field, f"is unknown; there are {', '.join(_FIELDS)}")
        if not isinstance(value, str) or (not value.strip() and field != "description"):
            raise refusal(field, "must be a text that is not empty")
    language, speaker, reference = entry.get("language"), entry.get("speaker"), entry.get("reference")
    if language is None:
        raise refusal("language", "is missing")
    if not _TAG.fullmatch(language) or language_code(language) not in languages:
        raise refusal("language", f"{language!r} is none that the model speaks ({', '.join(sorted(languages))})")
    if (speaker is None) == (reference is None):
        raise refusal("speaker" if speaker else "reference", "give one of speaker and reference")
    if speaker is not None and speaker not in speakers:
        known = textwrap.shorten(", ".join(sorted(speakers)), 400, placeholder=" ...") or "no speakers"
        raise refusal("speaker", f"the checkpoint has no {speaker!r}; it has {known}")
    path = None if reference is None else file.parent / os.path.expanduser(reference)
    return FileVoice(id_, language, speaker, path, entry.get("description", ""))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a name that is there twice the library would keep the last and say nothing."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return content
