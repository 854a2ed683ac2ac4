"""Dubbing as a whole, beside what one would write in an afternoon (`straightforward.py`), on the same engines.

    python benchmarks/bench_dub.py [--streams 3] [--fragments 8] [--rounds 3]

Each stream is a python-socketio worker that keeps three fragments of about 6 s of spoken news on their way. Rounds
alternate between the servers. Printed are medians over the rounds: how much faster than real time all streams together
are dubbed, how long a fragment takes from being sent to being back, and how long its acknowledgement takes, which is
how long the server is deaf. The straightforward server does less: no duration matching, no order, no deadlines.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import socketio

from sts_trio.testing.process import free_port, server_process

SENTENCES = (
    "The president said on Monday that the country needs more schools and more hospitals.",
    "Heavy rain has closed many roads in the north, and there will be more rain tomorrow.",
    "The price of oil fell for the third day, after the market opened in London this morning.",
)
RATE_HZ = 16_000


def speech() -> list[bytes]:
    """16 kHz mono, 16 bit."""
    spoken = []
    for text in SENTENCES:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            subprocess.run(["flite", "-voice", "rms", "-t", text, "-o", file.name], check=True)
            spoken.append(Path(file.name).read_bytes()[44:])
    return spoken


@contextmanager
def straightforward() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("straightforward.py")), str(port)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def ours() -> Iterator[str]:
    with tempfile.NamedTemporaryFile() as log, server_process(Path(log.name)) as server:
        yield server.url


async def stream(url: str, name: str, fragments: list[bytes], times: dict[str, list[float]]) -> None:
    """One worker: at most three fragments on their way."""
    worker = socketio.AsyncClient()
    ready, places = asyncio.Event(), asyncio.Semaphore(3)
    sent: dict[str, float] = {}
    worker.on("stream:ready", lambda _: ready.set())
    worker.on("fragment:ack", lambda ack: times["ack"].append(time.monotonic() - sent[ack["fragment_id"]]))

    @worker.on("fragment:processed")
    async def processed(result: dict[str, Any]) -> None:
        assert result.get("status") != "failed", result.get("error")
        times["result"].append(time.monotonic() - sent[result["fragment_id"]])
        places.release()

    await worker.connect(url, transports=["websocket"], retry=True)
    config = {
        "source_language": "en",
        "target_language": "es",
        "voice_profile": "default",
        "format": "pcm_s16le",
        "sample_rate_hz": RATE_HZ,
        "channels": 1,
        "chunk_duration_ms": 6_000,
    }
    await worker.emit("stream:init", {"stream_id": name, "worker_id": name, "config": config, "timeout_ms": 30_000})
    await ready.wait()
    for number, pcm in enumerate(fragments):
        await places.acquire()
        fragment_id = f"{name}-{number}"
        audio = {
            "format": "pcm_s16le",
            "sample_rate_hz": RATE_HZ,
            "channels": 1,
            "duration_ms": len(pcm) // 32,
            "data_base64": base64.b64encode(pcm).decode(),
        }
        sent[fragment_id] = time.monotonic()
        body = {
            "fragment_id": fragment_id,
            "stream_id": name,
            "sequence_number": number,
            "timestamp": 0,
            "audio": audio,
        }
        await worker.emit("fragment:data", body)
    for _ in range(3):
        await places.acquire()
    await worker.disconnect()


async def measure(url: str, streams: int, fragments: list[bytes]) -> dict[str, float]:
    times: dict[str, list[float]] = {"ack": [], "result": []}
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(stream(url, f"stream-{number}", fragments, times))
    spent = time.monotonic() - began
    return {
        "times real time": streams * sum(map(len, fragments)) / (2 * RATE_HZ) / spent,
        "result, ms": 1000 * statistics.median(times["result"]),
        "ack, ms": 1000 * statistics.median(times["ack"]),
        "slowest ack, ms": 1000 * max(times["ack"]),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--streams", type=int, default=3)
    options.add_argument("--fragments", type=int, default=8)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    spoken = speech()
    fragments = [spoken[number % len(spoken)] for number in range(chosen.fragments)]
    rounds: dict[str, list[dict[str, float]]] = {"sts-trio": [], "straightforward": []}
    with ours() as our_url, straightforward() as other_url:
        for _ in range(chosen.rounds):
            for name, url in (("sts-trio", our_url), ("straightforward", other_url)):
                rounds[name].append(asyncio.run(measure(url, chosen.streams, fragments)))
    print(f"{chosen.streams} streams, {chosen.fragments} fragments each, medians of {chosen.rounds} rounds\n")
    print(f"{'':24}{'sts-trio':>12}{'straightforward':>18}{'ratio':>8}")
    for figure in rounds["sts-trio"][0]:
        mine, other = (statistics.median(one[figure] for one in rounds[name]) for name in rounds)
        print(f"{figure:24}{mine:12.1f}{other:18.1f}{mine / other:8.2f}")


if __name__ == "__main__":
    main()
