"""Existing workers against the real server: python-socketio, real speech, m4a and PCM, and all that goes wrong."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import jiwer
import numpy as np
import pytest

from protocol.dubbing import Audio
from sts_trio import audio

from .worker import Pcm, Worker, dubbed, m4a_audio, pcm_audio, speak

pytestmark = pytest.mark.slow

SENTENCES = (
    "the president will meet with leaders of the industry on monday",
    "the government said on friday that prices are rising again",
    "officials said the new program will begin next year",
)


@pytest.fixture(scope="module")
def stereo() -> list[Pcm]:
    return [speak(text, 48_000, 2) for text in SENTENCES]


@pytest.fixture(scope="module")
def mono() -> list[Pcm]:
    return [speak(text, 16_000, 1) for text in SENTENCES]


def is_silent(result: dict[str, Any]) -> bool:
    return not np.frombuffer(dubbed(result), "<i2").any()


async def dub_m4a(port: int, stream_id: str, spoken: list[Pcm]) -> list[dict[str, Any]]:
    async with Worker(port) as worker:
        await worker.open(stream_id)
        for number, samples in enumerate(spoken):
            await worker.send(stream_id, number, m4a_audio(samples, 48_000), metadata={"pts_ns": number})
        await worker.emit("stream:end", {"stream_id": stream_id})
        await worker.wait_for("stream:complete")
        return worker.got("fragment:processed")


def check_m4a(results: list[dict[str, Any]], spoken: list[Pcm]) -> None:
    assert [result["sequence_number"] for result in results] == list(range(len(spoken)))
    for result, samples in zip(results, spoken, strict=True):
        assert result["status"] == "success", result["error"]
        assert result["metadata"]["pts_ns"] == result["sequence_number"]
        fields = result["dubbed_audio"]
        assert (fields["format"], fields["sample_rate_hz"], fields["channels"]) == ("m4a", 48_000, 2)
        assert fields["duration_ms"] == round(len(samples) / 48)
        decoded = audio.decode(Audio("m4a", 48_000, 2, fields["duration_ms"], dubbed(result)))
        assert decoded.shape == (audio.frame_count(fields["duration_ms"], 48_000), 2)
        assert np.abs(decoded).max() > 0.05


def test_a_worker_that_sends_m4a_gets_speech_back(server: int, stereo: list[Pcm]) -> None:
    results = asyncio.run(dub_m4a(server, "m4a", stereo))
    check_m4a(results, stereo)
    heard = [result["transcript"] for result in results]
    assert jiwer.wer(list(SENTENCES), heard) < 0.1, heard
    assert "gobierno" in results[1]["translated_text"]


def test_pcm_comes_back_exact_to_the_sample(server: int, mono: list[Pcm]) -> None:
    async def scenario() -> None:
        async with Worker(server) as worker:
            await worker.open("pcm", format="pcm_s16le", sample_rate_hz=16_000, channels=1)
            for number, samples in enumerate(mono):
                await worker.send("pcm", number, pcm_audio(samples, 16_000))
            results = await worker.wait_for("fragment:processed", len(mono))
            for result in results:
                assert result["status"] == "success", result["error"]
                duration_ms = result["dubbed_audio"]["duration_ms"]
                assert len(dubbed(result)) == 2 * round(duration_ms * 16)
                assert not is_silent(result)

    asyncio.run(scenario())


def test_three_streams_at_once_do_not_mix(server: int, stereo: list[Pcm]) -> None:
    async def scenario() -> list[list[dict[str, Any]]]:
        orders = ([0, 1, 2], [2, 0, 1], [1, 2, 0])
        return await asyncio.gather(
            *(dub_m4a(server, f"three-{n}", [stereo[i] for i in order]) for n, order in enumerate(orders))
        )

    first, second, third = asyncio.run(scenario())
    check_m4a(first, stereo)
    texts = [result["transcript"] for result in first]
    assert [result["transcript"] for result in second] == [texts[2], texts[0], texts[1]]
    assert [result["transcript"] for result in third] == [texts[1], texts[2], texts[0]]
    assert all(result["stream_id"] == "three-1" for result in second)


def test_numbers_out_of_order_come_back_in_order(server: int, mono: list[Pcm]) -> None:
    async def scenario() -> None:
        async with Worker(server) as worker:
            await worker.open("shuffled", format="pcm_s16le", sample_rate_hz=16_000, channels=1)
            for number in (10, 12, 11):
                await worker.send("shuffled", number, pcm_audio(mono[number - 10], 16_000))
            results = await worker.wait_for("fragment:processed", 3)
            assert [result["sequence_number"] for result in results] == [10, 11, 12]

    asyncio.run(scenario())


def test_noise_and_garbage_harm_nobody(server: int, mono: list[Pcm]) -> None:
    noise = (np.random.default_rng(7).standard_normal((32_000, 1)) * 2_000).astype(np.int16)
    silence = np.zeros((16_000, 1), np.int16)
    garbage = pcm_audio(mono[0], 16_000) | {
        "format": "m4a",
        "data_base64": base64.b64encode(bytes(range(256)) * 40).decode(),
    }

    async def scenario() -> None:
        async with Worker(server) as worker:
            await worker.open("odd", format="pcm_s16le", sample_rate_hz=16_000, channels=1)
            for number, body in enumerate(
                [pcm_audio(mono[0], 16_000), garbage, pcm_audio(noise, 16_000), pcm_audio(silence, 16_000)]
            ):
                await worker.send("odd", number, body)
            broken = pcm_audio(mono[1], 16_000) | {"sample_rate_hz": "fast"}
            await worker.send("odd", 4, broken)
            await worker.send("odd", 5, pcm_audio(mono[1], 16_000))
            good, bad, noisy, silent, last = await worker.wait_for("fragment:processed", 5)
            assert good["status"] == last["status"] == "success"
            assert (bad["error"]["code"], bad["error"]["stage"]) == ("INVALID_AUDIO_FORMAT", "decode")
            assert bad["fragment_id"] == "odd-1"
            assert is_silent(bad)
            assert noisy["status"] in ("success", "partial")
            assert (silent["status"], silent["transcript"]) == ("success", "")
            assert is_silent(silent)
            (refusal,) = worker.got("error")
            assert (refusal["code"], refusal["fragment_id"]) == ("INVALID_FRAGMENT", "odd-4")
            assert "audio.sample_rate_hz" in refusal["message"]

    asyncio.run(scenario())
