"""Engines by their configured names. An engine's module is imported when it is asked for, and its libraries with it."""

from __future__ import annotations

from ..config import Settings
from .base import AsrEngine, EngineUnavailable, TranslationEngine, TtsEngine
from .catalogue import MODELS, WHISPER_FILES, XTTS_FILES, find_model, is_path


def build_asr(settings: Settings) -> AsrEngine:
    """The engine that `ASR_MODEL` names.

    Raises:
        EngineUnavailable: there is none of that name, or it cannot run here; the message says what would help.
    """
    name = settings.asr_model
    if name == "pocketsphinx":
        from .pocketsphinx import PocketsphinxEngine

        return PocketsphinxEngine()
    if (name.startswith("faster-whisper-") and name in MODELS) or is_path(name):
        from .whisper import WhisperEngine

        folder = find_model("ASR_MODEL", name, settings.models_dir, WHISPER_FILES)
        return WhisperEngine(
            folder=folder,
            name=folder.name,
            device=settings.asr_device,
            compute_type=settings.asr_compute_type,
            slots=settings.asr_slots,
            max_batch=settings.asr_max_batch,
        )
    raise _unknown("ASR_MODEL", name, "pocketsphinx", "faster-whisper-")


def build_translation(settings: Settings) -> TranslationEngine:
    """What `TRANSLATION_PROVIDER` names: one engine, or several of which the next is asked where one fails."""
    providers = [_build_provider(name, settings) for name in settings.translation_providers]
    if len(providers) == 1:
        return providers[0]
    from .failover import FailoverTranslation

    return FailoverTranslation(tuple(providers))


def _build_provider(name: str, settings: Settings) -> TranslationEngine:
    if name == "apertium":
        from .apertium import ApertiumEngine

        return ApertiumEngine()
    if name == "deepl":
        from .deepl import DeepLEngine

        if settings.deepl_api_key is None:
            raise EngineUnavailable("TRANSLATION_PROVIDER=deepl needs DEEPL_API_KEY, the key of a DeepL API account")
        return DeepLEngine(
            api_key=settings.deepl_api_key,
            server_url=settings.deepl_server_url,
            formality=settings.deepl_formality,
            glossaries=settings.deepl_glossaries,
        )
    raise _unknown("TRANSLATION_PROVIDER", name, "apertium", "deepl")


def build_tts(settings: Settings) -> TtsEngine:
    """The engine that `TTS_MODEL` names; see `build_asr`."""
    name = settings.tts_model
    if name == "espeak-ng":
        from .espeak import EspeakEngine

        return EspeakEngine()
    if name == "coqui-xtts-v2" or is_path(name):
        from .xtts import XttsEngine

        folder = find_model("TTS_MODEL", name, settings.models_dir, XTTS_FILES)
        return XttsEngine(
            folder=folder,
            name=folder.name,
            device=settings.tts_device,
            voices_file=settings.voices_file,
        )
    raise _unknown("TTS_MODEL", name, "espeak-ng", "coqui-xtts-v2")


def _unknown(variable: str, name: str, embedded: str, production: str) -> EngineUnavailable:
    """`production` is a name, or how the names of downloadable models begin."""
    names = [model for model in MODELS if model.startswith(production)] or [production]
    path = "" if variable == "TRANSLATION_PROVIDER" else ", or the path of a folder"
    return EngineUnavailable(f"{variable}={name} is unknown; there are {embedded}, {', '.join(names)}{path}")
