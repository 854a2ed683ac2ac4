"""A model that hangs for good in a thread: what its stream gets, what operators see, and that the process ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sts_trio.testing.process import free_port

from .worker import Worker, dubbed, pcm_audio

pytestmark = pytest.mark.slow

AUDIO = pcm_audio(np.ones((16_000, 1), np.int16), 16_000)
INIT = {
    "worker_id": "w",
    "timeout_ms": 1_000,
    "config": {
        "source_language": "en",
        "target_language": "es",
        "voice_profile": "default",
        "format": "pcm_s16le",
        "sample_rate_hz": 16_000,
        "channels": 1,
        "chunk_duration_ms": 1_000,
    },
}


class Hanging:
    """A server process of `tests.e2e.hanging`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    def health(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self._log.read_text().splitlines()) if line["event"] == event]

    def wait_for(self, event: str) -> dict[str, Any]:
        give_up = time.monotonic() + 20
        while not (lines := self.lines(event)):
            assert self.process.poll() is None
            assert time.monotonic() < give_up, event
            time.sleep(0.05)
        return lines[0]

    def ends_with_status_1(self, within_s: float) -> None:
        began = time.monotonic()
        assert self.process.wait(30) == 1  # and not by a signal: nothing aborted
        assert time.monotonic() - began < within_s
        (line,) = self.lines("stuck_at_exit")  # and each line of the log is JSON: nothing else was written
        assert line["level"] == "critical"

    async def until_a_call_hangs(self, worker: Worker, stream_id: str = "s") -> dict[str, Any]:
        await worker.emit("stream:init", INIT | {"stream_id": stream_id})
        await worker.wait_for("stream:ready")
        await worker.send(stream_id, 0, AUDIO)
        (result,) = await worker.wait_for("fragment:processed")
        return result


@contextmanager
def hanging(log: Path, what: str, until: str = "healthy", **environment: str) -> Iterator[Hanging]:
    port = free_port()
    here = {"STS_HOST": "127.0.0.1", "STS_PORT": str(port), "DRAIN_TIMEOUT_S": "2"} | environment
    with log.open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.hanging", what], env=os.environ | here, stdout=lines, stderr=lines
        )
    server = Hanging(process, port, log)
    try:
        server.wait_for(until)
        yield server
    finally:
        process.kill()
        process.wait()


def test_its_stream_has_timeouts_then_refusals_its_operator_is_told_and_sigterm_ends_it(tmp_path: Path) -> None:
    async def scenario(server: Hanging) -> None:
        async with Worker(server.port) as worker:
            began = time.monotonic()
            result = await server.until_a_call_hangs(worker)
            assert time.monotonic() - began < 3
            assert (result["error"]["code"], result["error"]["stage"]) == ("TIMEOUT", "asr")
            assert len(dubbed(result)) == 32_000
            told = await asyncio.to_thread(server.wait_for, "slot_hung")
            assert (told["pool"], told["hung"], told["slots"]) == ("asr", 1, 1)
            began = time.monotonic()
            await worker.send("s", 1, AUDIO)
            refused = (await worker.wait_for("fragment:processed", 2))[1]
            assert time.monotonic() - began < 0.9  # at once, and not at its deadline
            assert (refused["error"]["code"], refused["error"]["retryable"]) == ("TEMPORARY_UNAVAILABLE", True)
            assert len(dubbed(refused)) == 32_000
            status, report = await asyncio.to_thread(server.health)
            assert (status, report["status"], report["pools"]["asr"]) == (503, "failed", {"slots": 1, "hung": 1})
            server.process.send_signal(signal.SIGTERM)
            await worker.wait_for("stream:complete")
            await asyncio.to_thread(server.ends_with_status_1, within_s=12)

    with hanging(tmp_path / "log", "call", ASR_SLOTS="1") as server:
        asyncio.run(scenario(server))
        assert server.lines("stuck_at_exit")[0]["pools"] == ["asr"]


def test_with_another_slot_it_is_degraded_and_works(tmp_path: Path) -> None:
    async def scenario(server: Hanging) -> None:
        async with Worker(server.port) as worker:
            await server.until_a_call_hangs(worker)
            await asyncio.to_thread(server.wait_for, "slot_hung")
            status, report = await asyncio.to_thread(server.health)
            assert (status, report["status"], report["pools"]["asr"]) == (200, "degraded", {"slots": 2, "hung": 1})

    with hanging(tmp_path / "log", "call", ASR_SLOTS="2") as server:
        asyncio.run(scenario(server))


def twice(number: signal.Signals) -> Callable[[Hanging], None]:
    def stop(server: Hanging) -> None:
        server.process.send_signal(number)
        server.wait_for("draining")
        server.process.send_signal(number)

    return stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_that_is_cut_short_waits_for_no_thread_either(number: signal.Signals, tmp_path: Path) -> None:
    async def scenario(server: Hanging) -> None:
        async with Worker(server.port) as worker:
            await server.until_a_call_hangs(worker)
            await asyncio.to_thread(twice(number), server)
            await asyncio.to_thread(server.ends_with_status_1, within_s=4)

    with hanging(tmp_path / "log", "call", ASR_SLOTS="1", DRAIN_TIMEOUT_S="60") as server:
        asyncio.run(scenario(server))


def test_a_lost_gpu_ends_it_although_another_slot_hangs(tmp_path: Path) -> None:
    async def scenario(server: Hanging) -> None:
        async with Worker(server.port) as worker:
            await server.until_a_call_hangs(worker)
            await worker.send("s", 1, AUDIO)
            await asyncio.to_thread(server.ends_with_status_1, within_s=8)

    with hanging(tmp_path / "log", "lost", ASR_SLOTS="2") as server:
        asyncio.run(scenario(server))
        assert server.lines("engine_lost")


def test_a_model_that_hangs_while_it_is_loaded_does_not_outlive_sigterm(tmp_path: Path) -> None:
    with hanging(tmp_path / "log", "load", until="listening") as server:
        server.process.send_signal(signal.SIGTERM)
        server.ends_with_status_1(within_s=4)


def test_a_model_that_cannot_be_loaded_ends_it_although_another_hangs_while_it_is_loaded(tmp_path: Path) -> None:
    with hanging(tmp_path / "log", "unavailable", until="listening") as server:
        server.ends_with_status_1(within_s=8)
        (told,) = server.lines("engine_lost")
        assert (told["pool"], told["reason"]) == ("translation", "no such pair: install it")
        assert server.lines("stuck_at_exit")[0]["pools"] == ["asr"]
