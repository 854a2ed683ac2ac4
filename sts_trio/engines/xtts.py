"""Speech synthesis with Coqui's XTTS v2: 17 languages, the speakers of the checkpoint and voices from recordings.

Each instance has a model of its own, called in a thread of its pool. The same text in the same voice gives the same
samples, whatever was spoken before it or is spoken beside it. Speed is changed between the two steps of the model
(`xtts_model`): a request that brings back the take of the first one costs the vocoder alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from attrs import define, field

from protocol.errors import ErrorCode

from ..offload import available_cores, check_cancelled
from .base import EngineFailure, EngineUnavailable, Instance, Offload, Speech, SpeechRequest, Take, Voice
from .catalogue import CPML, XTTS_SPEAKERS, how_to_repair
from .gpu import is_out_of_memory, raise_if_lost, release_memory
from .languages import language_code
from .voices import DEFAULT, FileVoice, read_reference, read_voices, voice_unusable
from .xtts_audio import join, trim
from .xtts_library import (
    OUT_OF_MEMORY_REMEDY,
    PACKAGES,
    Latents,
    brief,
    can_be_read,
    check_vocabulary,
    import_library,
    load_model,
    pick_device,
    read_configuration,
    read_speakers,
)
from .xtts_model import Prompt, XttsModel
from .xtts_text import has_words, speakable, split_text

log = structlog.get_logger(__name__)

RATE_RANGE: Final = (0.85, 1.25)
"""The vocoder has learnt latents at the pace of people, who differ by about as much. Beyond it sounds get blurred or
swallowed, and Rubber Band, which works on the sound, is the better tool."""

MOST_SPOKEN: Final = 280
"""Characters of a piece after numbers became words: the model stops after 28 s, and slow speech is 10 characters/s."""

WORK_BYTES: Final = 2**30
"""Beside the weights: 0.3 GB of attention cache, the vocoder's 0.5 GB for 28 s, and what the allocator leaves over."""

_FAILURES: Final = (RuntimeError, ValueError, LookupError, ArithmeticError, AssertionError, TypeError)
"""What torch, coqui-tts and num2words raise over a text."""


@define(eq=False)
class XttsEngine:
    """`TtsEngine` on a checkpoint in `folder`. Building one imports torch and coqui-tts, which takes seconds.

    Args:
        name: as `TTS_MODEL` has it.
        device: ``auto``, ``cpu`` or ``cuda``.
        voices_file: see `voices`; None: the speakers of the checkpoint are the voices.
    """

    folder: Path
    name: str
    device: str
    voices_file: Path | None
    max_batch: int = field(default=1, init=False)
    rate_range: tuple[float, float] = field(default=RATE_RANGE, init=False)
    gpu_memory_bytes: int = field(default=0, init=False)
    _languages: Sequence[str] = field(init=False)
    _speakers: Mapping[str, Latents] = field(init=False, repr=False)
    _file_voices: Mapping[str, FileVoice] = field(init=False, repr=False)
    _open: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        import_library()
        self.device = pick_device(self.device)
        if self.device == "cuda":
            self.gpu_memory_bytes = (self.folder / "model.pth").stat().st_size + WORK_BYTES
        checkpoint = read_configuration(self.folder)
        self._languages = [language for language in checkpoint.languages if can_be_read(language)]
        if not self._languages:
            raise EngineUnavailable(
                f"{self.folder / 'config.json'} has none of the languages that can be read here: pip install "
                f"{' '.join(PACKAGES.values())} for some, or {how_to_repair(self.folder)}"
            )
        check_vocabulary(self.folder)
        self._speakers = read_speakers(self.folder, checkpoint)
        file_voices: Sequence[FileVoice] = ()
        if self.voices_file is not None:
            file_voices = read_voices(self.voices_file, languages=self._languages, speakers=self._speakers)
        elif not self._speakers:
            raise EngineUnavailable(
                f"TTS_MODEL={self.name} has no voices: there is no {self.folder / XTTS_SPEAKERS} "
                f"({how_to_repair(self.folder)}), and VOICES_FILE is not set"
            )
        self._file_voices = {voice.id: voice for voice in file_voices}

    def supports(self, language: str) -> bool:
        """Whether the checkpoint knows the language, of whatever region, and its letters can be read here."""
        return language_code(language) in self._languages

    def has_voice(self, voice: str, language: str) -> bool:
        """``default``, and the voices of `VOICES_FILE` for their language, or else all speakers of the checkpoint."""
        return self.supports(language) and self._find_voice(voice, language) is not None

    def voices(self) -> Sequence[Voice]:
        """``default`` first, then those of the file or of the checkpoint, in their order."""
        languages = tuple(self._languages)
        default = Voice(DEFAULT, languages, "the first voice of each language")
        if self.voices_file is None:
            return [default, *(Voice(name, languages, "speaker of the checkpoint") for name in self._speakers)]
        return [default, *(Voice(it.id, (it.language,), it.description) for it in self._file_voices.values())]

    def _find_voice(self, voice: str, language: str) -> str | FileVoice | None:
        """What speaks when `voice` is asked for: a speaker of the checkpoint, or a voice of the file."""
        if voice != DEFAULT:
            if self.voices_file is None:
                return voice if voice in self._speakers else None
            found = self._file_voices.get(voice)
            return found if found and language_code(found.language) == language_code(language) else None
        voices = list(self._file_voices.values())
        native = (it for it in voices if language_code(it.language) == language_code(language))
        candidates: Iterable[str | FileVoice] = chain(native, self._speakers, voices)
        return next(iter(candidates), None)

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[SpeechRequest, Speech]]:
        """Load a model, learn the voices of the file, and speak once; leaving the context frees the GPU's memory."""
        if not self._open:
            log.info("tts_weights_licence", model=self.name, licence=CPML)
            if self.device == "cpu":
                log.warning(
                    "tts_without_gpu", model=self.name, hint="XTTS on a CPU takes several times as long as speech"
                )
        self._open += 1
        try:
            synthesizer = await offload(Synthesizer.load, self)
            try:

                async def speak(batch: Sequence[SpeechRequest], /) -> Sequence[Speech | EngineFailure]:
                    return [await offload(synthesizer.answer, request) for request in batch]

                yield speak
            finally:
                synthesizer.close()
        finally:
            self._open -= 1

    def threads(self) -> int:
        """The CPU's cores, shared among the open instances; a call sets them, for torch keeps them by thread."""
        return max(available_cores() // max(self._open, 1), 1)


@define(eq=False)
class Synthesizer:
    """A loaded model with the voices of its engine; blocking, one call at a time."""

    _engine: XttsEngine
    _model: XttsModel
    _learnt: Mapping[str, Latents]
    """Voices from recordings, by their id."""

    @classmethod
    def load(cls, engine: XttsEngine) -> Synthesizer:
        """
        Raises:
            EngineUnavailable: the checkpoint is damaged, a recording gone, or it cannot speak.
        """
        _set_threads(engine)
        model = XttsModel(load_model(engine.folder, engine.device), engine.device)
        learnt = {}
        for voice in engine._file_voices.values():
            if voice.reference is not None and engine.voices_file is not None:
                learnt[voice.id] = _learn(model, engine.voices_file, voice)
        synthesizer = cls(engine, model, learnt)
        if "ja" in engine._languages:
            model.read("1", "ja")  # it opens a dictionary, and keeps all others from reading meanwhile
        language = "en" if "en" in engine._languages else engine._languages[0]
        ready = synthesizer.answer(SpeechRequest("1, 2, 3.", language, DEFAULT))
        if isinstance(ready, EngineFailure):
            remedy = f": {OUT_OF_MEMORY_REMEDY}" if ready.code is ErrorCode.GPU_OOM else ""
            raise EngineUnavailable(f"{engine.folder} is loaded and cannot speak: the warm-up failed: {ready}{remedy}")
        return synthesizer

    def close(self) -> None:
        """Give up the model, and its memory on the GPU."""
        del self._model
        release_memory()

    def answer(self, request: SpeechRequest) -> Speech | EngineFailure:
        """Speak; what goes wrong is the request's own and leaves nothing behind.

        Raises:
            EngineLost: the GPU is of no use any more.
        """
        _set_threads(self._engine)
        try:
            return self._speak(request)
        except EngineFailure as refusal:
            return refusal
        except _FAILURES as error:
            raise_if_lost(error)
            out_of_memory = is_out_of_memory(error)
            message = f"speech synthesis failed: {type(error).__name__}: {error}"
            log.warning("tts_failed", model=self._engine.name, reason=message, exc_info=not out_of_memory)
        if out_of_memory:
            release_memory()  # outside the handler, whose traceback held the tensors
            return EngineFailure(ErrorCode.GPU_OOM, message)
        return EngineFailure(ErrorCode.TTS_SYNTHESIS_FAILED, message)

    def _speak(self, request: SpeechRequest) -> Speech:
        engine, language = self._engine, language_code(request.language)
        if not engine.supports(language):
            raise EngineFailure(ErrorCode.UNSUPPORTED_LANGUAGE, f"{engine.name} does not speak {request.language}")
        voice = engine._find_voice(request.voice, language)
        if voice is None:
            raise EngineFailure(
                ErrorCode.INVALID_VOICE_PROFILE, f"{engine.name} has no voice {request.voice} for {request.language}"
            )
        latents = self._latents(voice)
        prompts = self._read(request.text, language)
        if request.take is None:
            # The name of the voice and not of the request: default sounds as the voice that it is.
            seed = f"{voice if isinstance(voice, str) else voice.id}\0{language}\0{request.text}"
            parts: Sequence[Take] = [
                self._perform(prompt, latents, f"{seed}\0{index}") for index, (prompt, _) in enumerate(prompts)
            ]
        else:
            parts = _parts(request.take, self._model.channels)
            if len(parts) != len(prompts):
                raise EngineFailure(ErrorCode.TTS_SYNTHESIS_FAILED, "the take of a request is not of its text")
        slowest, fastest = engine.rate_range
        rate = min(max(request.rate, slowest), fastest)
        rate_hz = self._model.sample_rate_hz
        sounds = [trim(self._model.sound(part, latents, rate), rate_hz) for part in parts]
        samples = join(sounds, [pause_ms / rate for _, pause_ms in prompts], rate_hz)
        if not len(samples):
            raise EngineFailure(ErrorCode.TTS_SYNTHESIS_FAILED, "the model said nothing")
        return Speech(samples, rate_hz, _one_take(parts))

    def _latents(self, voice: str | FileVoice) -> Latents:
        if isinstance(voice, str):
            return self._engine._speakers[voice]
        return self._learnt[voice.id] if voice.speaker is None else self._engine._speakers[voice.speaker]

    def _read(self, text: str, language: str) -> Sequence[tuple[Prompt, int]]:
        """The pieces of a text, with the pause in ms after each.

        Raises:
            EngineFailure: `INVALID_TEXT`: there is nothing in it that can be spoken.
        """

        @cache  # a piece that fits is read to see that it does
        def read(text: str) -> Prompt:
            return self._model.read(text, language)

        def fits(text: str) -> bool:
            check_cancelled()
            if len(text) > self._model.most_characters(language):
                return False
            prompt = read(text)
            return len(prompt.spoken) <= MOST_SPOKEN and len(prompt.tokens) < self._model.most_tokens

        text = speakable(text, language)
        pieces = split_text(text, fits) if has_words(text) else ()
        prompts = [(read(piece.text), piece.pause_ms) for piece in pieces]
        readable = [(prompt, pause_ms) for prompt, pause_ms in prompts if prompt.readable]
        if not readable:
            raise EngineFailure(ErrorCode.INVALID_TEXT, f"nothing in the text can be spoken in {language}")
        return readable

    def _perform(self, prompt: Prompt, voice: Latents, seed: str) -> Take:
        take, ended = self._model.perform(prompt, voice, seed)
        if not ended:
            # It is for the duration rule to say whether that is still of use.
            log.warning("tts_cut_short", model=self._engine.name, characters=len(prompt.spoken), codes=len(take))
        return take


def _learn(model: XttsModel, file: Path, voice: FileVoice) -> Latents:
    """
    Raises:
        EngineUnavailable: the voice cannot be learnt.
    """
    recording = read_reference(file, voice)
    try:
        return model.learn(recording)
    except Exception as error:  # whatever the libraries raise over a sound: it ends the start, and names its file
        remedy = f": {OUT_OF_MEMORY_REMEDY}" if is_out_of_memory(error) else ""
        why = f"{voice.reference} cannot be learnt ({brief(error)}){remedy}"
        raise voice_unusable(file, voice.id, "reference", why) from error


def _set_threads(engine: XttsEngine) -> None:
    import torch

    if engine.device == "cpu":
        torch.set_num_threads(engine.threads())


def _one_take(parts: Sequence[Take]) -> Take:
    """The latents of all pieces, with a row of zeros between two: no latent is that, after the model's layer norm."""
    border = np.zeros((1, parts[0].shape[1]), np.float32)
    rows = [row for part in parts for row in (part, border)]
    return np.concatenate(rows[:-1])


def _parts(take: Take, channels: int) -> Sequence[Take]:
    """The pieces of `_one_take`; none where it cannot be one."""
    if take.ndim != 2 or take.shape[1] != channels:
        return []
    borders = np.flatnonzero(~take.any(axis=1))
    starts, ends = [0, *(borders + 1)], [*borders, len(take)]
    parts: Sequence[Take] = [take[start:end] for start, end in zip(starts, ends, strict=True)]
    return parts if all(map(len, parts)) else []
