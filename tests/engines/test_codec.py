"""Decoding, stretching and encoding behind the engine interface: one answer per request, typed failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import trio

from protocol.dubbing import Audio
from protocol.errors import ErrorCode
from sts_trio import audio
from sts_trio.audio import AudioError, Samples
from sts_trio.engines.base import ASR_SAMPLE_RATE_HZ, Engine, EngineFailure, EngineUnavailable
from sts_trio.engines.codec import (
    DecodedAudio,
    DecodeRequest,
    EncodeRequest,
    FunctionEngine,
    StretchRequest,
    decoder,
    encoder,
    stretcher,
)
from sts_trio.offload import thread_offload
from sts_trio.testing.engines import inline_offload

T = TypeVar("T")
Req = TypeVar("Req")
Res = TypeVar("Res")
RATE = 48_000


async def ask(engine: Engine[Req, Res], *requests: Req) -> list[Res | EngineFailure]:
    async with engine.open(inline_offload) as instance:
        return list(await instance(requests))


def noise(frames: int, channels: int = 2) -> Samples:
    return (np.random.default_rng(1).standard_normal((frames, channels)) * 0.1).astype(np.float32)


def pcm(duration_ms: int, data: bytes | None = None) -> DecodeRequest:
    if data is None:
        data = audio.encode(noise(audio.frame_count(duration_ms, RATE)), RATE, "pcm_s16le")
    return DecodeRequest(Audio("pcm_s16le", RATE, 2, duration_ms, data))


async def test_a_fragment_is_decoded_for_the_fallback_and_for_asr() -> None:
    (decoded,) = await ask(decoder(), pcm(1_000))
    assert isinstance(decoded, DecodedAudio)
    assert decoded.sample_rate_hz == RATE
    assert decoded.samples.shape == (RATE, 2)
    assert decoded.speech.shape == (ASR_SAMPLE_RATE_HZ,)
    assert decoded.speech.dtype == np.float32


async def test_a_fragment_that_cannot_be_decoded_harms_no_other() -> None:
    good, bad, also_good = await ask(decoder(), pcm(100), pcm(100, b"\0"), pcm(200))
    assert isinstance(good, DecodedAudio)
    assert isinstance(bad, EngineFailure)
    assert bad.code is ErrorCode.INVALID_AUDIO_FORMAT
    assert "whole number" in str(bad)
    assert isinstance(also_good, DecodedAudio)
    assert len(also_good.samples) == 9_600


@pytest.mark.parametrize("format", ["pcm_s16le", "wav", "m4a"])
@pytest.mark.parametrize(
    ("frames", "channels"),
    [(0, 1), (10_000, 1), (22_050, 1), (40_000, 1), (10_000, 2)],
    ids=["silence", "short", "exact", "long", "stereo"],
)
async def test_a_slot_is_filled_to_the_frame(format: str, frames: int, channels: int) -> None:
    samples = noise(frames, channels) if channels > 1 else noise(frames, 1)[:, 0]
    (encoded,) = await ask(encoder(), EncodeRequest(samples, 22_050, format, 44_100, 2, 1_005))
    assert isinstance(encoded, bytes)
    expected = audio.frame_count(1_005, 44_100)
    decoded = audio.decode(Audio(format, 44_100, 2, 1_005, encoded))
    assert decoded.shape == (expected, 2)
    if format != "m4a":
        header = 44 if format == "wav" else 0
        assert len(encoded) == header + 4 * expected
    assert bool(np.abs(decoded).max() > 0.01) == bool(frames)


async def test_what_is_cut_off_fades_out() -> None:
    (encoded,) = await ask(encoder(), EncodeRequest(np.full(RATE, 0.5, np.float32), RATE, "pcm_s16le", RATE, 1, 500))
    assert isinstance(encoded, bytes)
    tail = np.frombuffer(encoded, "<i2")[-480:]
    assert np.all(np.diff(tail) < 0)
    assert tail[-1] == 0


async def test_the_original_comes_back_to_the_bit() -> None:
    request = pcm(500)
    (decoded,) = await ask(decoder(), request)
    assert isinstance(decoded, DecodedAudio)
    (encoded,) = await ask(encoder(), EncodeRequest(decoded.samples, RATE, "pcm_s16le", RATE, 2, 500))
    assert encoded == request.audio.data


async def test_speech_is_stretched() -> None:
    (stretched,) = await ask(stretcher(), StretchRequest(noise(24_000, 1)[:, 0], 24_000, 1.25))
    assert isinstance(stretched, np.ndarray)
    assert stretched.shape == (19_200,)


async def test_speech_that_cannot_be_stretched_is_a_failure_of_synthesis() -> None:
    (failure,) = await ask(stretcher(), StretchRequest(np.full(100, np.nan, np.float32), 24_000, 1.25))
    assert isinstance(failure, EngineFailure)
    assert failure.code is ErrorCode.TTS_SYNTHESIS_FAILED


def test_without_rubberband_there_is_no_stretcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineUnavailable, match="apt install rubberband-cli"):
        stretcher()


async def test_a_defect_is_no_failure_but_propagates() -> None:
    with pytest.raises(ValueError, match="finite"):
        await ask(encoder(), EncodeRequest(np.full(100, np.nan, np.float32), RATE, "wav", RATE, 1, 100))


async def test_any_function_can_be_an_engine() -> None:
    def half(number: int) -> int:
        if number % 2:
            raise AudioError(f"{number} is odd")
        return number // 2

    engine = FunctionEngine("half", half, ErrorCode.INVALID_TEXT)
    assert (engine.name, engine.max_batch) == ("half", 1)
    one, two = await ask(engine, 3, 4)
    assert isinstance(one, EngineFailure)
    assert (one.code, str(one)) == (ErrorCode.INVALID_TEXT, "3 is odd")
    assert two == 2


async def test_the_work_is_done_where_it_is_offloaded_to() -> None:
    async def to_thread(function: Callable[..., T], /, *args: object) -> T:
        return await trio.to_thread.run_sync(function, *args)

    def thread_name(_: None) -> str:
        return threading.current_thread().name

    engine = FunctionEngine("thread", thread_name)
    async with engine.open(to_thread) as instance:
        assert await instance([None]) != [threading.current_thread().name]


@pytest.mark.parametrize(
    ("script", "code"),
    [("kill -KILL $$", ErrorCode.TEMPORARY_UNAVAILABLE), ("exit 1", ErrorCode.TTS_SYNTHESIS_FAILED)],
)
async def test_a_command_that_is_killed_may_do_better_the_next_time(
    script: str, code: ErrorCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "rubberband"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    async with stretcher().open(thread_offload(1)) as stretch:
        [answer] = await stretch([StretchRequest(np.full(4_800, 0.1, np.float32), RATE, 1.5)])
    assert isinstance(answer, EngineFailure)
    assert answer.code is code


@pytest.mark.slow
@pytest.mark.parametrize("launch_s", [0.0, 0.3])
async def test_a_command_that_hangs_is_killed_when_nobody_waits_any_more(
    launch_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = tmp_path / "rubberband"
    hanging.write_text("#!/bin/sh\nwhile :; do read line </dev/zero; done\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    request = StretchRequest(np.full(4_800, 0.1, np.float32), RATE, 1.5)
    with trio.fail_after(10):
        async with stretcher().open(thread_offload(1)) as stretch:
            # What is done before the command starts, such as writing files, may last until nobody waits any more.
            monkeypatch.setattr("sts_trio.audio.stretching.check_rubberband", lambda: time.sleep(launch_s))
            with trio.move_on_after(0.5 if launch_s == 0 else launch_s / 2) as patience:
                await stretch([request])
    assert patience.cancelled_caught
