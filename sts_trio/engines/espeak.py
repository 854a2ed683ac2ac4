"""Speech synthesis with espeak-ng: over a hundred languages, no key, no download.

One process per request: the library is under the GPL and keeps global state. Text goes in by stdin and voices come from
a list, so no request can become an option or a path.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

import numpy as np
import trio
from attrs import field, frozen

from protocol.errors import ErrorCode

from .base import EngineFailure, EngineUnavailable, Instance, Offload, Samples, Speech, SpeechRequest, Voice
from .languages import language_code

PROFILES: Final = MappingProxyType({"default": "", "male": "m3", "female": "f2"})
"""Voice profiles, as the variant of a language's voice that speaks them."""

RATE_RANGE: Final = (0.65, 1.6)
"""114 to 291 words a minute: still understandable."""

LIST_TIMEOUT_S: Final = 10.0

SILENCE: Final = 0.003
"""Amplitude below which the ends of speech are cut off (-50 dBFS)."""

_NATURAL_WORDS_PER_MINUTE: Final = 175
_HEADER_BYTES: Final = 44
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@frozen
class EspeakEngine:
    """`TtsEngine` on the espeak-ng command.

    Building one runs ``espeak-ng --voices`` twice, which blocks for some 30 ms.
    """

    name: str = "espeak-ng"
    max_batch: int = 1
    gpu_memory_bytes: int = 0
    rate_range: tuple[float, float] = RATE_RANGE
    _program: str = field(init=False, repr=False)
    _voices: Mapping[str, str] = field(init=False, repr=False)
    _profiles: Mapping[str, str] = field(init=False, repr=False)

    @_program.default
    def _find(self) -> str:
        program = shutil.which("espeak-ng")
        if program is None:
            raise EngineUnavailable(f"TTS_MODEL={self.name} needs the command espeak-ng: apt install espeak-ng")
        return program

    @_voices.default
    def _installed_voices(self) -> Mapping[str, str]:
        voices = read_voices(self._list("--voices"))
        if not voices:
            raise EngineUnavailable("espeak-ng has no voices: apt install --reinstall espeak-ng-data")
        return voices

    @_profiles.default
    def _installed_profiles(self) -> Mapping[str, str]:
        installed = {"", *re.findall(r"!v/(\S+)", self._list("--voices=variant"))}
        return {name: variant for name, variant in PROFILES.items() if variant in installed}

    def _list(self, option: str) -> str:
        try:
            done = subprocess.run(
                [self._program, option],
                capture_output=True,
                check=True,
                timeout=LIST_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineUnavailable(f"espeak-ng cannot list its voices: {error}") from error
        return done.stdout.decode(errors="replace")

    def supports(self, language: str) -> bool:
        """Whether there is a voice for the language, of whatever region."""
        return self._voice(language) is not None

    def has_voice(self, voice: str, language: str) -> bool:
        """``default``, ``male`` and ``female`` exist for each language it supports."""
        return voice in self._profiles and self.supports(language)

    def voices(self) -> Sequence[Voice]:
        """The profiles, each for every language that is installed."""
        languages = tuple(sorted({language_code(tag) for tag in self._voices}))
        return [Voice(name, languages, f"espeak-ng's {variant or 'own'}") for name, variant in self._profiles.items()]

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[SpeechRequest, Speech]]:
        """An instance; there is nothing to load."""

        async def speak(batch: Sequence[SpeechRequest], /) -> Sequence[Speech | EngineFailure]:
            return [await self._speak(request) for request in batch]

        yield speak

    def _voice(self, tag: str) -> str | None:
        """The voice made for this very tag (``pt-br``), or the language's first."""
        return self._voices.get(tag.replace("_", "-").lower()) or self._voices.get(language_code(tag))

    async def _speak(self, request: SpeechRequest) -> Speech | EngineFailure:
        voice, variant = self._voice(request.language), self._profiles.get(request.voice)
        if voice is None:
            return EngineFailure(ErrorCode.UNSUPPORTED_LANGUAGE, f"{self.name} does not speak {request.language}")
        if variant is None:
            return EngineFailure(ErrorCode.INVALID_VOICE_PROFILE, f"{self.name} has no voice {request.voice}")
        text = speakable(request.text)
        if not any(character.isalnum() for character in text):
            return EngineFailure(ErrorCode.INVALID_TEXT, "nothing in the text can be spoken")
        command = [
            self._program,
            *("-v", f"{voice}+{variant}" if variant else voice),
            *("-s", str(words_per_minute(request.rate))),
            *("-b", "1"),  # the text is UTF-8
            "-z",  # no pause at the end
            "--stdin",  # all of it at once, not line by line
            "--stdout",
        ]
        try:
            done = await trio.run_process(
                command,
                stdin=text.encode(errors="replace"),
                capture_stdout=True,
                capture_stderr=True,
                deliver_cancel=_kill,
                start_new_session=True,  # Ctrl-C does not reach it
            )
        except (OSError, subprocess.CalledProcessError) as error:
            was_killed = isinstance(error, subprocess.CalledProcessError) and error.returncode < 0  # by a signal
            code = ErrorCode.TEMPORARY_UNAVAILABLE if was_killed else ErrorCode.TTS_SYNTHESIS_FAILED
            return EngineFailure(code, f"speech synthesis failed: {error}")
        return _speech(done.stdout)


async def _kill(process: trio.Process) -> None:
    process.kill()


def read_voices(listing: str) -> Mapping[str, str]:
    """The voice for each language tag, from the table that ``espeak-ng --voices`` prints.

    A line gives a priority (lower is better), a tag, and in brackets more tags that it serves, with their priorities:
    `` 2  en-gb  --/M  English_(Great_Britain)  gmw/en  (en 2)``.

    Returns:
        tags in lower case, as listed and as their shortest language code, to the name for ``-v``.
    """
    best: dict[str, tuple[int, str]] = {}

    def offer(tag: str, priority: int, voice: str) -> None:
        for key in (tag, language_code(tag) if "-" not in tag else tag):
            if key not in best or priority < best[key][0]:
                best[key] = (priority, voice)

    for line in listing.splitlines()[1:]:
        columns = line.split(maxsplit=5)
        if len(columns) < 5 or not columns[0].isdigit():
            continue
        voice = columns[1]
        offer(voice.lower(), 0, voice)
        for tag, priority in re.findall(r"\((\S+) (\d+)\)", columns[5] if len(columns) > 5 else ""):
            offer(tag.lower(), int(priority), voice)
    return {tag: voice for tag, (_, voice) in best.items()}


def speakable(text: str) -> str:
    """`text` without what espeak-ng takes for commands: control characters, and phonemes in double brackets."""
    return _CONTROL.sub(" ", text).replace("[[", "[ [").strip()


def words_per_minute(rate: float) -> int:
    """espeak-ng's speed for a rate relative to its natural one.

    Durations follow the speed to 2 % below the natural one. Above it pauses and short sounds shrink less than the rest:
    at 300 words a minute speech is 5 % too long on average of eleven voices (0 to 11 %), hence the exponent.
    """
    slowest, fastest = RATE_RANGE
    rate = min(max(rate, slowest), fastest)
    return round(_NATURAL_WORDS_PER_MINUTE * (rate**1.08 if rate > 1 else rate))


def _speech(wav: bytes) -> Speech | EngineFailure:
    """The samples of what espeak-ng writes: a 44-byte header with a length that is not true, then the samples."""
    integers = np.frombuffer(wav[_HEADER_BYTES : len(wav) // 2 * 2], "<i2")
    samples: Samples = np.divide(integers, 32_768, dtype=np.float32)
    loud = np.flatnonzero(np.abs(samples) > SILENCE)
    if not len(loud):
        return EngineFailure(ErrorCode.INVALID_TEXT, "nothing in the text can be spoken")
    return Speech(samples[loud[0] : loud[-1] + 1], int.from_bytes(wav[24:28], "little"))
