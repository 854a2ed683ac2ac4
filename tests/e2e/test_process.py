"""The server as a process: what stops it, what keeps it from starting, and what its exit code says."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sts_trio.testing.process import ServerProcessError, free_port, server_process

from .worker import Worker, pcm_audio, speak

pytestmark = pytest.mark.slow


def test_sigterm_lets_what_is_in_flight_finish_and_exits_zero(tmp_path: Path) -> None:
    spoken = speak("officials said the new program will begin next year", 16_000, 1)

    async def scenario(port: int, process: subprocess.Popen[bytes]) -> None:
        async with Worker(port) as worker:
            await worker.open("drained", format="pcm_s16le", sample_rate_hz=16_000, channels=1)
            for number in range(2):
                await worker.send("drained", number, pcm_audio(spoken, 16_000))
            await worker.wait_for("fragment:ack", 2)
            process.send_signal(signal.SIGTERM)
            await worker.wait_for("stream:complete")
            results = worker.got("fragment:processed")
            assert [result["status"] for result in results] == ["success", "success"]

    with server_process(tmp_path / "log") as server:
        asyncio.run(scenario(server.port, server.process))
        assert server.process.wait(20) == 0
    lines = (tmp_path / "log").read_text()
    assert '"event":"stopped"' in lines
    assert "drain_timed_out" not in lines


def test_a_second_sigterm_cuts_the_drain_short(tmp_path: Path) -> None:
    spoken = speak("officials said the new program will begin next year " * 4, 16_000, 1)

    async def scenario(port: int, process: subprocess.Popen[bytes]) -> None:
        async with Worker(port) as worker:
            await worker.open("cut", format="pcm_s16le", sample_rate_hz=16_000, channels=1)
            for number in range(6):
                await worker.send("cut", number, pcm_audio(spoken, 16_000))
            await worker.wait_for("fragment:ack", 6)
            process.send_signal(signal.SIGTERM)
            while b"draining" not in (tmp_path / "log").read_bytes():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 10) == 1

    with pytest.raises(ServerProcessError, match="exit status 1"), server_process(tmp_path / "log") as server:
        asyncio.run(scenario(server.port, server.process))


def test_the_drain_timeout_bounds_the_drain_and_every_fragment_has_its_result(tmp_path: Path) -> None:
    spoken = speak("officials said the new program will begin next year " * 4, 16_000, 1)

    async def scenario(port: int, process: subprocess.Popen[bytes]) -> None:
        async with Worker(port) as worker:
            await worker.open("late", format="pcm_s16le", sample_rate_hz=16_000, channels=1)
            for number in range(6):
                await worker.send("late", number, pcm_audio(spoken, 16_000))
            await worker.wait_for("fragment:ack", 6)
            process.send_signal(signal.SIGTERM)
            await worker.wait_for("stream:complete")
            results = worker.got("fragment:processed")
            assert [result["sequence_number"] for result in results] == list(range(6))
            assert results[-1]["error"]["code"] == "TEMPORARY_UNAVAILABLE"

    with server_process(tmp_path / "log", DRAIN_TIMEOUT_S="1") as server:
        asyncio.run(scenario(server.port, server.process))
        assert server.process.wait(20) == 0


def test_while_it_starts_it_listens_and_sigterm_ends_it(tmp_path: Path) -> None:
    """A program that it asks what it can do takes seconds to answer, as the import of a large library does."""
    slow = tmp_path / "espeak-ng"
    slow.write_text("#!/bin/sh\nsleep 3\n")
    slow.chmod(0o755)
    port = free_port()
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STS_HOST": "127.0.0.1", "STS_PORT": str(port)}
    command = [sys.executable, "-m", "sts_trio", "serve", "--profile", "embedded"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        while b"listening" not in (tmp_path / "log").read_bytes():
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(urllib.error.HTTPError) as starting:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
        with starting.value as answer:
            assert (answer.code, answer.read()) == (503, b'{"status":"starting"}')
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 1
    finally:
        process.kill()
        process.wait()
    lines = (tmp_path / "log").read_text()
    assert '"event":"signal"' in lines
    assert "Traceback" not in lines


def refused_to_start(**environment: str) -> str:
    """What `sts-trio serve` says when it does not start."""
    env = {name: text for name, text in os.environ.items() if not name.startswith(("STS_", "ASR_", "TTS_"))}
    env |= {"STS_HOST": "127.0.0.1", "STS_PORT": str(free_port())} | environment
    command = [sys.executable, "-m", "sts_trio", "serve"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_without_models_it_says_how_to_get_them_and_how_to_do_without(tmp_path: Path) -> None:
    message = refused_to_start(MODELS_DIR=str(tmp_path))
    assert "sts-trio models pull faster-whisper-base" in message
    assert "`sts-trio doctor`" in message
    assert "--profile embedded" in message


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    message = refused_to_start(ASR_MODEL="magic")
    assert "magic" in message
    assert "pocketsphinx" in message


def test_a_wrong_variable_is_named() -> None:
    assert "MAX_INFLIGHT" in refused_to_start(MAX_INFLIGHT="many")


def test_a_missing_program_is_named_with_its_package() -> None:
    folder = Path(sys.executable).parent  # no espeak-ng, apertium or rubberband here
    embedded = {"ASR_MODEL": "pocketsphinx", "TRANSLATION_PROVIDER": "apertium", "TTS_MODEL": "espeak-ng"}
    assert "apt" in refused_to_start(PATH=str(folder), **embedded)
