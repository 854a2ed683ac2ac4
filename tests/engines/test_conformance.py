"""Each engine can be cancelled at any moment: the rules of `testing.conformance`, with the real programs and models."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sts_trio.engines.apertium import ApertiumEngine
from sts_trio.engines.base import AsrRequest, Samples, Speech, SpeechRequest, TranslationRequest
from sts_trio.engines.deepl import DeepLEngine
from sts_trio.engines.espeak import EspeakEngine
from sts_trio.engines.pocketsphinx import PocketsphinxEngine
from sts_trio.engines.whisper import WhisperEngine
from sts_trio.offload import thread_offload
from sts_trio.testing.conformance import check_engine

from .conftest import left_out, need
from .deepl_server import KEY, Reply, deepl_server

pytestmark = pytest.mark.slow

OFFLOAD = thread_offload(1)


def same_sound(first: Speech, again: Speech) -> bool:
    return np.array_equal(first.samples, again.samples)


async def test_espeak() -> None:
    need(shutil.which("espeak-ng"), "apt install espeak-ng")
    request = SpeechRequest("El ayuntamiento votó el martes. " * 50, "es", "default")
    await check_engine(EspeakEngine(), request, OFFLOAD, same=same_sound)


async def test_apertium() -> None:
    need(shutil.which("lt-proc"), "apt install apertium apertium-eng-spa")
    request = TranslationRequest("The cat is black. " * 200, "en", "es")
    await check_engine(ApertiumEngine(), request, OFFLOAD, same=lambda first, again: first == again)


async def test_deepl() -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")
    async with deepl_server() as server:
        server.always = Reply(delay_s=0.2)
        request = TranslationRequest("The cat is black.", "en", "es")
        engine = DeepLEngine(KEY, server.url)
        await check_engine(engine, request, OFFLOAD, same=lambda first, again: first == again)


async def test_pocketsphinx(say: Callable[[str], Samples]) -> None:
    speech = say("good morning london")
    await check_engine(
        PocketsphinxEngine(), AsrRequest(speech, "en"), OFFLOAD, same=lambda first, again: first == again
    )


async def test_whisper(model: Path, speech: Samples) -> None:
    engine = WhisperEngine(model, "tiny", "cpu", "auto", slots=1, max_batch=4)
    request = AsrRequest(speech, "en")
    await check_engine(engine, request, OFFLOAD, same=lambda first, again: first == again)


async def test_xtts(tmp_path: Path) -> None:
    left_out("tts")
    from sts_trio.engines.xtts import XttsEngine  # which needs torch

    from .tiny_xtts import make_checkpoint, small_vocoder

    with small_vocoder():
        engine = XttsEngine(folder=make_checkpoint(tmp_path / "tiny"), name="tiny", device="cpu", voices_file=None)
        request = SpeechRequest("El ayuntamiento votó el martes.", "es", "default")
        await check_engine(engine, request, OFFLOAD, same=same_sound)
