"""espeak-ng: which voices it has, how fast it speaks, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode
from sts_trio.engines.base import EngineFailure, EngineUnavailable, Instance, Speech, SpeechRequest
from sts_trio.engines.espeak import RATE_RANGE, SILENCE, EspeakEngine, read_voices, speakable, words_per_minute
from sts_trio.offload import thread_offload

from .conftest import need

OFFLOAD = thread_offload(1)

SENTENCE = "El ayuntamiento votó el martes para construir un puente nuevo a través del río."

Speak = Instance[SpeechRequest, Speech]


async def speak(instance: Speak, text: str, language: str = "es", voice: str = "default", rate: float = 1.0) -> Speech:
    [answer] = await instance([SpeechRequest(text, language, voice, rate)])
    assert isinstance(answer, Speech), answer
    return answer


async def refusal(instance: Speak, text: str, language: str = "es", voice: str = "default") -> ErrorCode:
    [answer] = await instance([SpeechRequest(text, language, voice)])
    assert isinstance(answer, EngineFailure)
    return answer.code


def seconds(speech: Speech) -> float:
    return len(speech.samples) / speech.sample_rate_hz


# ------------------------------------------------------------------------------------------ rules

LISTING = """\
Pty Language       Age/Gender VoiceName          File                 Other Languages
 5  cmn             --/M      Chinese_(Mandarin) sit/cmn              (zh-cmn 5)(zh 5)
 5  en-029          --/M      English_(Caribbean) gmw/en-029           (en 10)
 2  en-gb           --/M      English_(Great_Britain) gmw/en               (en 2)
 2  en-us           --/M      English_(America)  gmw/en-US            (en 3)
 5  es              --/M      Spanish_(Spain)    roa/es
 5  es-419          --/M      Spanish_(Latin_America) roa/es-419           (es-mx 6)(es 6)
 5  fr-fr           --/M      French_(France)    roa/fr               (fr 5)
"""


def test_each_tag_gets_the_voice_that_serves_it_best() -> None:
    voices = read_voices(LISTING)

    assert voices["en"] == "en-gb"
    assert voices["en-us"] == "en-us"
    assert voices["es"] == "es"
    assert voices["es-mx"] == "es-419"
    assert voices["fr"] == "fr-fr"
    assert voices["zh"] == "cmn"
    assert "de" not in voices


def test_what_espeak_takes_for_commands_is_taken_out_of_the_text() -> None:
    assert speakable("\x01300Sfast [[h@l'oU]]\0 end\n") == "300Sfast [ [h@l'oU]]  end"


@given(st.floats(min_value=0.1, max_value=10))
def test_the_speed_stays_within_what_can_be_understood(rate: float) -> None:
    assert 110 <= words_per_minute(rate) <= 300


def test_natural_speed_is_the_programs_own() -> None:
    assert words_per_minute(1.0) == 175
    assert [words_per_minute(rate) for rate in RATE_RANGE] == [114, 291]


# ------------------------------------------------------------------------------------------ the command


def test_a_missing_command_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(EngineUnavailable, match="apt install espeak-ng"):
        EspeakEngine()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], EspeakEngine]:
    """An espeak-ng that lists one voice and, asked to speak, runs a shell script."""

    def write(script: str) -> EspeakEngine:
        (tmp_path / "voices").write_text(LISTING)
        program = tmp_path / "espeak-ng"
        program.write_text(f'#!/bin/sh\ncase "$1" in --voices*) exec cat "{tmp_path}/voices";; esac\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        return EspeakEngine()

    return write


def test_a_command_that_cannot_list_its_voices_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "espeak-ng"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    with pytest.raises(EngineUnavailable, match="cannot list its voices"):
        EspeakEngine()


async def test_a_command_that_fails_is_a_failure_of_its_request(install: Callable[[str], EspeakEngine]) -> None:
    async with install("exit 1").open(OFFLOAD) as instance:
        assert await refusal(instance, "hola") is ErrorCode.TTS_SYNTHESIS_FAILED


async def test_a_command_that_is_killed_may_do_better_the_next_time(install: Callable[[str], EspeakEngine]) -> None:
    async with install("kill -KILL $$").open(OFFLOAD) as instance:
        assert await refusal(instance, "hola") is ErrorCode.TEMPORARY_UNAVAILABLE


async def test_a_command_that_says_nothing_could_not_speak_the_text(install: Callable[[str], EspeakEngine]) -> None:
    async with install("head -c 3000 /dev/zero").open(OFFLOAD) as instance:
        assert await refusal(instance, "hola") is ErrorCode.INVALID_TEXT
    async with install("true").open(OFFLOAD) as instance:
        assert await refusal(instance, "hola") is ErrorCode.INVALID_TEXT


@pytest.mark.slow
async def test_a_command_that_hangs_is_killed_with_its_request(
    install: Callable[[str], EspeakEngine], child_processes: Callable[[], set[int]]
) -> None:
    async with install("trap '' TERM; exec sleep 60").open(OFFLOAD) as instance:
        started_s = trio.current_time()
        with trio.move_on_after(0.2) as patience:
            await speak(instance, "hola")
        assert patience.cancelled_caught
        assert trio.current_time() - started_s < 1
        assert child_processes() == set()


# ------------------------------------------------------------------------------------------ the real thing


@pytest.fixture
def engine() -> EspeakEngine:
    need(shutil.which("espeak-ng"), "apt install espeak-ng")
    return EspeakEngine()


@pytest.mark.slow
def test_it_knows_languages_by_their_tags(engine: EspeakEngine) -> None:
    for tag in ("es", "es-MX", "es_AR", "ES", "spa", "en", "en-US", "de-AT", "fr-CA", "pt-BR", "zh-CN", "no", "nb"):
        assert engine.supports(tag), tag
    for tag in ("", "xx", "tlh", "../../etc", "-v", "default"):
        assert not engine.supports(tag), tag


@pytest.mark.slow
def test_each_language_has_the_same_voices(engine: EspeakEngine) -> None:
    for voice in ("default", "male", "female"):
        assert engine.has_voice(voice, "es-MX")
        assert not engine.has_voice(voice, "xx")
    assert not any(engine.has_voice(voice, "es") for voice in ("", "m3", "es+f2", "../male"))


@pytest.mark.slow
async def test_speech_starts_and_ends_with_sound(engine: EspeakEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        speech = await speak(instance, SENTENCE)

    assert speech.sample_rate_hz == 22_050
    assert speech.samples.dtype == np.float32
    assert speech.samples.ndim == 1
    assert 0.1 < np.abs(speech.samples).max() <= 1
    assert abs(speech.samples[0]) > SILENCE
    assert abs(speech.samples[-1]) > SILENCE
    assert 3 < seconds(speech) < 6


@pytest.mark.slow
async def test_voices_sound_different(engine: EspeakEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        spoken = {voice: await speak(instance, SENTENCE, voice=voice) for voice in ("default", "male", "female")}
        american = await speak(instance, SENTENCE, language="es-MX")

    sounds = [speech.samples.tobytes() for speech in (*spoken.values(), american)]
    assert len(set(sounds)) == len(sounds)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["es", "fr", "de", "pt-BR"])
async def test_the_rate_sets_the_duration(language: str, engine: EspeakEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        natural_s = seconds(await speak(instance, SENTENCE, language))
        for rate in (0.65, 0.8, 1.0, 1.2, 1.4, 1.6):
            duration_s = seconds(await speak(instance, SENTENCE, language, rate=rate))
            assert duration_s == pytest.approx(natural_s / rate, rel=0.1), rate


@pytest.mark.slow
async def test_text_without_words_cannot_be_spoken(engine: EspeakEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        for text in ("", "...", "?!", " \n", "🙂", "\0", "—«»"):
            assert await refusal(instance, text) is ErrorCode.INVALID_TEXT, text


@pytest.mark.slow
async def test_what_it_does_not_know_is_refused_and_the_rest_is_spoken(engine: EspeakEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        assert await refusal(instance, "hola", language="xx") is ErrorCode.UNSUPPORTED_LANGUAGE
        assert await refusal(instance, "hola", voice="../../etc") is ErrorCode.INVALID_VOICE_PROFILE
        answers = await instance([SpeechRequest(text, "es", "default") for text in ("uno", "...", "dos")])
    assert [isinstance(answer, Speech) for answer in answers] == [True, False, True]


@pytest.mark.slow
async def test_text_is_never_an_option_a_command_or_markup(engine: EspeakEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        assert seconds(await speak(instance, "--version")) < 2
        fast = await speak(instance, f"\x01400S{SENTENCE}")  # espeak-ng's own way to change the speed
        assert seconds(fast) > seconds(await speak(instance, SENTENCE))


@pytest.mark.slow
async def test_a_long_text_and_its_lines_are_spoken_to_the_end(engine: EspeakEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        once_s = seconds(await speak(instance, SENTENCE))
        assert seconds(await speak(instance, f"{SENTENCE}\n\n" * 50)) > 45 * once_s


@pytest.mark.slow
async def test_a_cancel_stops_it(engine: EspeakEngine, child_processes: Callable[[], set[int]]) -> None:
    async with engine.open(OFFLOAD) as instance:
        with trio.move_on_after(0.05) as patience:
            await speak(instance, SENTENCE * 5_000)
        assert patience.cancelled_caught
        assert child_processes() == set()
        assert seconds(await speak(instance, "hola")) > 0.1


@pytest.mark.slow
def test_every_voice_on_the_list_can_be_asked_for(engine: EspeakEngine) -> None:
    listed = read_voices(subprocess.run(["espeak-ng", "--voices"], check=True, capture_output=True, text=True).stdout)
    assert len(listed) > 100
    for voice in ("es", "es-419", "en-gb", "pt-br", "cmn"):
        assert voice in listed.values()
        subprocess.run(["espeak-ng", "-v", voice, "-q", "a"], check=True)
