"""The engines of production behind a real server: Whisper and XTTS on small models, DeepL's client over real sockets.

The models have random weights, so what is heard and spoken means nothing. That it goes through every stage, in order
and fitted to its slot, does.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio

from protocol.dubbing import StreamConfig
from sts_trio.client.cut import cut_fixed
from sts_trio.client.media import Media
from sts_trio.client.programme import Dub, dub_programme
from sts_trio.client.worker import Stream, open_worker
from sts_trio.config import Settings
from sts_trio.engines.suite import Models
from sts_trio.offload import thread_offload
from sts_trio.server.app import Server
from tests.engines.conftest import left_out
from tests.engines.deepl_server import KEY, DeepLServer, Reply, deepl_server, error
from tests.engines.tiny_whisper import write_whisper
from tests.engines.tiny_xtts import make_checkpoint, small_vocoder

from .worker import speak

left_out("tts")

pytestmark = pytest.mark.slow

SENTENCES = (
    "the president will meet with leaders of the industry on monday.",
    "the government said on friday that prices are rising again.",
    "officials said the new program will begin next year.",
)
SLOT_MS = 4_000
RATE_HZ = 16_000

SAID = Reply(
    body={
        "translations": [{"text": "El gobierno habla hoy.", "detected_source_language": "EN", "billed_characters": 9}]
    }
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_whisper(folder / "whisper")
    with small_vocoder():
        make_checkpoint(folder / "xtts")
    return folder


@asynccontextmanager
async def production(models: Path, deepl: DeepLServer, **environment: str) -> AsyncIterator[str]:
    """The address of a healthy server, which must end in order."""
    settings = Settings.load(
        {
            "STS_HOST": "127.0.0.1",
            "STS_PORT": "0",
            "ASR_MODEL": str(models / "whisper"),
            "TTS_MODEL": str(models / "xtts"),
            "ASR_DEVICE": "cpu",
            "TTS_DEVICE": "cpu",
            "DEEPL_API_KEY": KEY,
            "DEEPL_SERVER_URL": deepl.url,
        }
        | environment
    )
    with small_vocoder():
        server = Server(settings, Models.build(settings))
        async with trio.open_nursery() as nursery:
            port = await nursery.start(server.run)
            yield f"http://127.0.0.1:{port}"
            server.stop.set()


async def dub(url: str) -> Dub:
    """A newsreader's three sentences as a live worker sends them: cut where the slots end, in 12 s of programme."""
    samples = np.zeros((3 * SLOT_MS * RATE_HZ // 1_000, 1), np.int16)
    spoken = np.concatenate([speak(text, RATE_HZ, 1) for text in SENTENCES])[: len(samples)]
    samples[: len(spoken)] = spoken
    config = StreamConfig("en", "es", "default", SLOT_MS, RATE_HZ, 1, "pcm_s16le")
    stream = Stream(config=config, stream_id=str(uuid.uuid4()), timeout_ms=30_000)
    media = Media(Path("news.wav"), samples, RATE_HZ)
    with trio.fail_after(120):
        async with open_worker(url, stream) as worker:
            return await dub_programme(
                worker, media, cut_fixed(3 * SLOT_MS, SLOT_MS), format="pcm_s16le", offload=thread_offload(1)
            )


async def test_a_programme_goes_through_all_three(models: Path) -> None:
    async with deepl_server() as deepl:
        deepl.always = SAID
        async with production(models, deepl) as url:
            finished = await dub(url)
    assert [result.sequence_number for result in finished.results] == [0, 1, 2]
    for result in finished.results:
        assert result.status == "success", result.error
        assert result.transcript
        assert result.translated_text == "El gobierno habla hoy."
        assert result.metadata["translation_model"] == "deepl"
        assert result.metadata["asr_model"] == "whisper"
        assert result.metadata["tts_model"] == "xtts"
        assert 0.8 <= result.metadata["speed_ratio"] <= 2.0
    slots = finished.samples.reshape(3, -1)
    assert slots.shape[1] == SLOT_MS * RATE_HZ // 1_000
    assert slots.any(axis=1).all()
    said = [result.transcript for result in finished.results]
    asked = [(*request.json["text"], request.json.get("context")) for request in deepl.requests]
    assert sorted(asked, key=str) == sorted(zip(said, [None, *said[:-1]], strict=True), key=str)


async def test_while_deepl_is_down_apertium_translates_and_the_result_says_so(models: Path) -> None:
    async with deepl_server() as deepl:
        deepl.always = error(503, "down")
        async with production(models, deepl, TRANSLATION_PROVIDER="deepl,apertium") as url:
            finished = await dub(url)
    for result in finished.results:
        assert result.metadata["translation_model"] == "apertium"
        assert result.translated_text


async def test_without_a_way_out_the_worker_learns_why_and_plays_silence(models: Path) -> None:
    async with deepl_server() as deepl:
        deepl.always = error(456, "Quota exceeded")
        async with production(models, deepl, TRANSLATION_SLOTS="1") as url:
            finished = await dub(url)
    for result in finished.results:
        assert result.error is not None
        assert (result.error.code, result.error.stage, result.error.retryable) == (
            "QUOTA_EXCEEDED",
            "translation",
            False,
        )
    assert not finished.samples.any()
    assert len(deepl.requests) == 1  # the account's quota is not asked for again with each fragment
