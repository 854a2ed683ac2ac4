"""Real engines in tests: where one is missing on a developer's machine its tests are skipped, in CI they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import soundfile

from sts_trio.engines.base import ASR_SAMPLE_RATE_HZ, Samples

LIBRARIES = {"tts": ("torch", "TTS")}
"""Of the extras that can be left out."""


def need(present: object, remedy: str) -> None:
    """Go on only where a tool that a test needs is `present`; a test that never runs in CI would prove nothing."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"this test must run in CI: {remedy}")
    pytest.skip(remedy)


def left_out(extra: str) -> None:
    """Skip the module that calls it where `WITHOUT` names this extra; anywhere else its libraries must be there."""
    if extra in os.environ.get("WITHOUT", "").replace(",", " ").split():
        pytest.skip(f"left out by WITHOUT={extra}", allow_module_level=True)
    if missing := [library for library in LIBRARIES[extra] if find_spec(library) is None]:
        remedy = f"`make setup` installs what all tests need, `WITHOUT={extra} pytest` leaves these out"
        pytest.fail(f"not installed: {', '.join(missing)}; {remedy}", pytrace=False)


@pytest.fixture(scope="session")
def say(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Samples]:
    """English speech as 16 kHz mono, by flite: the one free voice that pocketsphinx understands well."""
    need(shutil.which("flite"), "apt install flite")
    folder = tmp_path_factory.mktemp("speech")

    def speak(text: str) -> Samples:
        path = folder / "speech.wav"
        subprocess.run(["flite", "-voice", "rms", "-t", text, "-o", str(path)], check=True)
        samples, rate_hz = soundfile.read(path, dtype="float32")
        assert rate_hz == ASR_SAMPLE_RATE_HZ
        speech: Samples = samples
        return speech

    return speak


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Whisper."""
    from .tiny_whisper import write_whisper  # which needs CTranslate2

    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="session")
def english_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as the models whose names end in ``.en``."""
    from .tiny_whisper import write_whisper

    return write_whisper(tmp_path_factory.mktemp("whisper.en"), multilingual=False)


@pytest.fixture(scope="session")
def speech(say: Callable[[str], Samples]) -> Samples:
    """Over 6 s of it."""
    return say("the city council voted on tuesday to build a new bridge, and schools will open again on monday morning")


@pytest.fixture
def child_processes() -> Callable[[], set[int]]:
    """The processes this one has started and that have not ended, by id."""
    before = _children()
    return lambda: _children() - before


def _children() -> set[int]:
    children = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the command, which is in brackets and may contain anything: state, parent (proc(5)).
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if int(parent) == os.getpid() and state != "Z":
            children.add(int(stat.parent.name))
    return children
