"""All engines together: what a server may not start with."""

from __future__ import annotations

import sys

import pytest
import trio
from trio.testing import MockClock

from sts_trio.config import Settings
from sts_trio.engines.base import EngineUnavailable
from sts_trio.engines.suite import EngineSuite
from sts_trio.observe.metrics import Metrics
from sts_trio.testing.engines import ScriptedAsr, ScriptedTts, inline_offload, scripted_models
from tests.observe.fake_nvml import FakeNvml

GIB = 2**30


def suite(asr_bytes: int, tts_bytes: int) -> tuple[EngineSuite, ScriptedAsr]:
    asr, tts = ScriptedAsr(gpu_memory_bytes=asr_bytes), ScriptedTts(gpu_memory_bytes=tts_bytes)
    settings = Settings(asr_slots=2, tts_slots=3)
    return EngineSuite.assemble(scripted_models(asr, tts=tts), settings, inline_offload, Metrics()), asr


async def start(engines: EngineSuite) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(engines.run)
        nursery.cancel_scope.cancel()


async def test_a_gpu_too_small_for_all_instances_is_an_error_before_the_first_is_loaded(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({"GPU-0": 0}, free_bytes=24 * GIB))
    engines, asr = suite(GIB, 8 * GIB)
    asr.load_s = 1e9  # if it were loaded, time would tell
    with pytest.RaisesGroup(pytest.RaisesExc(EngineUnavailable), flatten_subgroups=True) as refused:
        await start(engines)
    error = refused.value.exceptions[0]
    assert "26.0 GiB" in str(error)
    assert "24.0 GiB are free" in str(error)
    assert "ASR_SLOTS=2 x 1.0 GiB" in str(error)
    assert "TTS_SLOTS=3 x 8.0 GiB" in str(error)
    assert trio.current_time() == 0


async def test_a_gpu_that_is_large_enough_is_used(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({"GPU-0": 0}, free_bytes=26 * GIB))
    await start(suite(GIB, 8 * GIB)[0])


async def test_models_on_the_cpu_ask_nobody(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    nvml = FakeNvml({"GPU-0": 0}, free_bytes=0)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    await start(suite(0, 0)[0])
    assert not nvml.asked
