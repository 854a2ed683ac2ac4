"""Engines by their configured names. An engine's module is imported when it is asked for, and its libraries with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from ..config import Settings
from .base import AsrEngine, EngineUnavailable, TranslationEngine, TtsEngine

E = TypeVar("E")


def build_asr(settings: Settings) -> AsrEngine:
    """The engine that `ASR_MODEL` names.

    Raises:
        EngineUnavailable: there is none of that name, or it cannot run here; the message says what would help.
    """

    def pocketsphinx() -> AsrEngine:
        from .pocketsphinx import PocketsphinxEngine

        return PocketsphinxEngine()

    return _build("ASR_MODEL", settings.asr_model, {"pocketsphinx": pocketsphinx}, planned="faster-whisper-")


def build_translation(settings: Settings) -> TranslationEngine:
    """The engine that `TRANSLATION_PROVIDER` names; see `build_asr`."""

    def apertium() -> TranslationEngine:
        from .apertium import ApertiumEngine

        return ApertiumEngine()

    return _build("TRANSLATION_PROVIDER", settings.translation_provider, {"apertium": apertium}, planned="deepl")


def build_tts(settings: Settings) -> TtsEngine:
    """The engine that `TTS_MODEL` names; see `build_asr`."""

    def espeak() -> TtsEngine:
        from .espeak import EspeakEngine

        return EspeakEngine()

    return _build("TTS_MODEL", settings.tts_model, {"espeak-ng": espeak}, planned="coqui-xtts-v2")


def _build(variable: str, name: str, engines: Mapping[str, Callable[[], E]], *, planned: str) -> E:
    """`planned` is how the names of production engines begin that this version does not have yet."""
    if name in engines:
        return engines[name]()
    known = ", ".join(engines)
    if name.startswith(planned):
        raise EngineUnavailable(
            f"{variable}={name} is not built into this version yet. Set {variable}={known}, or start with "
            "--profile embedded for engines that need no key, download or GPU"
        )
    raise EngineUnavailable(f"{variable}={name} is unknown; this version has {known}")
