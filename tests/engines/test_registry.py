"""Engines by name: what the settings name is built, and what cannot be says what would help."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import pytest

from sts_trio.config import Settings
from sts_trio.engines import apertium
from sts_trio.engines.base import EngineUnavailable
from sts_trio.engines.registry import build_asr, build_translation, build_tts

from .conftest import need

EMBEDDED = Settings.load({}, profile="embedded")


@pytest.mark.slow
def test_the_embedded_profile_names_engines_that_are_there() -> None:
    need(importlib.util.find_spec("pocketsphinx"), "pip install 'sts-trio[embedded]'")
    need(shutil.which("espeak-ng"), "apt install espeak-ng")
    need(list(apertium.MODES.glob("*.mode")), "apt install apertium apertium-eng-spa")

    assert build_asr(EMBEDDED).name == "pocketsphinx"
    assert build_translation(EMBEDDED).name == "apertium"
    assert build_tts(EMBEDDED).name == "espeak-ng"


@pytest.mark.parametrize(
    ("setting", "name", "embedded"),
    [
        ("ASR_MODEL", "faster-whisper-base", "pocketsphinx"),
        ("ASR_MODEL", "faster-whisper-large-v3", "pocketsphinx"),
        ("TRANSLATION_PROVIDER", "deepl", "apertium"),
        ("TTS_MODEL", "coqui-xtts-v2", "espeak-ng"),
    ],
)
def test_a_production_engine_that_is_not_built_yet_points_to_the_embedded_one(
    setting: str, name: str, embedded: str
) -> None:
    settings = Settings.load({setting: name}, profile="embedded")
    build = {"ASR_MODEL": build_asr, "TRANSLATION_PROVIDER": build_translation, "TTS_MODEL": build_tts}[setting]

    with pytest.raises(EngineUnavailable) as refused:
        build(settings)
    message = str(refused.value)
    assert f"{setting}={name} is not built into this version yet" in message
    assert f"{setting}={embedded}" in message
    assert "--profile embedded" in message


@pytest.mark.parametrize(
    ("setting", "known"),
    [("ASR_MODEL", "pocketsphinx"), ("TRANSLATION_PROVIDER", "apertium"), ("TTS_MODEL", "espeak-ng")],
)
def test_an_unknown_name_is_answered_with_the_known_ones(setting: str, known: str) -> None:
    settings = Settings.load({setting: "parrot"}, profile="embedded")
    build = {"ASR_MODEL": build_asr, "TRANSLATION_PROVIDER": build_translation, "TTS_MODEL": build_tts}[setting]

    with pytest.raises(EngineUnavailable, match=f"{setting}=parrot is unknown; this version has {known}"):
        build(settings)


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    heavy = ("pocketsphinx", "trio_parallel", "sts_trio.engines.pocketsphinx", "sts_trio.engines.apertium")
    code = f"import sys, sts_trio.engines.registry; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
