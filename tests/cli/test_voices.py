"""`sts-trio voices`: what streams can ask for as their `voice_profile`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

import pytest
from click.testing import CliRunner, Result

from sts_trio.__main__ import main
from sts_trio.engines import registry
from sts_trio.engines.base import Voice
from sts_trio.testing.engines import ScriptedTts

from ..engines.conftest import need


class TwoVoices(ScriptedTts):
    """``default`` in both languages, and one person in German."""

    def voices(self) -> Sequence[Voice]:
        return [Voice("default", ("de", "es")), Voice("anna [b]", ("de",), "evening news :smile:")]

    def has_voice(self, voice: str, language: str) -> bool:
        return voice == "default" or language == "de"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sts_trio.observe.logs.configure", lambda *args, **kwargs: None)
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("TTS_MODEL", "VOICES_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two_voices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "build_tts", lambda settings: TwoVoices())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["voices", *arguments])


@pytest.mark.usefixtures("two_voices")
def test_voices_are_shown_as_they_are_called() -> None:
    result = run()
    assert result.exit_code == 0
    lines = [[cell.strip() for cell in line.split("│")] for line in result.output.splitlines()]
    assert ["", "default", "de es", "", ""] in lines
    assert ["", "anna [b]", "de", "evening news :smile:", ""] in lines


@pytest.mark.usefixtures("two_voices")
@pytest.mark.parametrize(("language", "ids"), [("de", ["default", "anna [b]"]), ("es", ["default"])])
def test_only_those_that_speak_a_language(language: str, ids: list[str]) -> None:
    body = json.loads(run("--language", language, "--json").output)
    assert body["engine"] == "scripted-tts"
    assert [voice["id"] for voice in body["voices"]] == ids
    assert body["voices"][0] == {"id": "default", "languages": ["de", "es"], "description": ""}


@pytest.mark.usefixtures("two_voices")
def test_a_language_that_nobody_speaks() -> None:
    result = run("--language", "tlh")
    assert result.exit_code == 1
    assert "scripted-tts does not speak tlh" in result.output


def test_an_engine_that_cannot_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTS_MODEL", "parrot")
    result = run()
    assert result.exit_code == 1
    assert "TTS_MODEL=parrot is unknown" in result.output


def test_the_voices_of_the_embedded_profile() -> None:
    need(shutil.which("espeak-ng"), "apt install espeak-ng")
    body = json.loads(run("--profile", "embedded", "--language", "es-MX", "--json").output)
    assert body["engine"] == "espeak-ng"
    assert body["voices"][0]["id"] == "default"
    assert all("es" in voice["languages"] for voice in body["voices"])
