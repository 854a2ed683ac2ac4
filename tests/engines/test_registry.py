"""Engines by name: what the settings name is built, and what cannot be says what would help."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sts_trio.config import Settings
from sts_trio.engines import apertium
from sts_trio.engines.base import EngineUnavailable
from sts_trio.engines.registry import build_asr, build_translation, build_tts

from .conftest import need

EMBEDDED = Settings.load({}, profile="embedded")
BUILD = {"ASR_MODEL": build_asr, "TRANSLATION_PROVIDER": build_translation, "TTS_MODEL": build_tts}


@pytest.mark.slow
def test_the_embedded_profile_names_engines_that_are_there() -> None:
    need(importlib.util.find_spec("pocketsphinx"), "pip install 'sts-trio[embedded]'")
    need(shutil.which("espeak-ng"), "apt install espeak-ng")
    need(list(apertium.MODES.glob("*.mode")), "apt install apertium apertium-eng-spa")

    assert build_asr(EMBEDDED).name == "pocketsphinx"
    assert build_translation(EMBEDDED).name == "apertium"
    assert build_tts(EMBEDDED).name == "espeak-ng"


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        ("ASR_MODEL", "pocketsphinx, faster-whisper-tiny, faster-whisper-tiny.en,"),
        ("TRANSLATION_PROVIDER", "apertium, deepl"),
        ("TTS_MODEL", "espeak-ng, coqui-xtts-v2, or the path of a folder"),
    ],
)
@pytest.mark.parametrize("name", ["parrot", "faster-whisper-huge"])
def test_an_unknown_name_is_answered_with_the_known_ones(setting: str, known: str, name: str) -> None:
    with pytest.raises(EngineUnavailable, match=f"{setting}={name} is unknown; there are {known}"):
        BUILD[setting](Settings.load({setting: name}))


@pytest.mark.parametrize(
    ("setting", "name"),
    [("ASR_MODEL", "faster-whisper-base"), ("ASR_MODEL", "faster-whisper-large-v3"), ("TTS_MODEL", "coqui-xtts-v2")],
)
def test_a_model_that_is_not_there_says_how_to_get_it(setting: str, name: str, tmp_path: Path) -> None:
    settings = Settings.load({setting: name, "MODELS_DIR": str(tmp_path)})
    with pytest.raises(EngineUnavailable) as refused:
        BUILD[setting](settings)
    assert f"{setting}={name}: there is no folder {tmp_path / name}" in str(refused.value)
    assert f"sts-trio models pull {name}" in str(refused.value)


@pytest.mark.parametrize("setting", ["ASR_MODEL", "TTS_MODEL"])
def test_half_a_model_is_named_by_what_it_misses(setting: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineUnavailable, match=rf"{setting}=.*: {tmp_path}/model\.\w+ is missing or empty"):
        BUILD[setting](Settings.load({setting: str(tmp_path)}))


def test_deepl_without_a_key_is_an_error_at_start() -> None:
    with pytest.raises(EngineUnavailable, match="TRANSLATION_PROVIDER=deepl needs DEEPL_API_KEY"):
        build_translation(Settings.load({}))


def test_several_providers_are_one_that_names_them_all() -> None:
    need(list(apertium.MODES.glob("*.mode")), "apt install apertium apertium-eng-spa")
    settings = Settings.load({"TRANSLATION_PROVIDER": "deepl,apertium", "DEEPL_API_KEY": "key"})
    assert build_translation(settings).name == "deepl,apertium"


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    heavy = (
        *("pocketsphinx", "trio_parallel", "torch", "TTS", "faster_whisper", "ctranslate2", "deepl", "requests"),
        *("sts_trio.engines.pocketsphinx", "sts_trio.engines.apertium", "sts_trio.engines.xtts"),
    )
    code = f"import sys, sts_trio.engines.registry; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
