"""What a stream may hold is counted when it is accepted, and what it does hold is never more (docs/limits.md)."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pytest
import trio
import trio.testing
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protocol.dubbing import Audio, FragmentData, StreamConfig, payload
from sts_trio import audio
from sts_trio.config import Settings
from sts_trio.engines.base import Samples, Transcript
from sts_trio.engines.codec import StretchRequest
from sts_trio.stream.memory import FRAGMENT_BYTES, StreamMemory, encoded_bytes, json_bytes
from sts_trio.stream.order import MAX_RETRYABLE
from sts_trio.stream.session import StreamSession
from sts_trio.testing.engines import HANG, ScriptedAsr, ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.memory import MemoryServer, MemoryWorker, memory_server
from sts_trio.testing.payloads import fragment, stream_init

from .helpers import numbers, opened, send

MIB = 2**20
BESIDE_BYTES = 8 * MIB
"""What docs/limits.md allows a stream beside its two budgets."""

# ---------------------------------------------------------------- the account


def config(format: str = "pcm_s16le", rate_hz: int = 8_000, channels: int = 1) -> StreamConfig:
    return StreamConfig("en", "es", "default", 1_000, rate_hz, channels, format)


def data(number: int, size: int, duration_ms: int = 0) -> FragmentData:
    return FragmentData(f"f{number}", "s", number, 0, Audio("m4a", 8_000, 1, duration_ms, bytes(size)))


def account(budget_bytes: int, processed_at_once: int = 1, **changes: Any) -> StreamMemory:
    return StreamMemory(budget_bytes, processed_at_once, config(**changes))


def test_one_fragment_always_has_room() -> None:
    memory = account(1)
    assert memory.admits(data(0, 10**7, 60_000), 0)
    memory.add(data(0, 10**7, 60_000))
    assert not memory.admits(data(1, 0), 0)
    memory.remove("f0")
    assert memory.held_bytes(0) == 0
    assert memory.admits(data(1, 10**7), 0)


def test_a_fragment_is_counted_with_what_becomes_of_it() -> None:
    memory = account(10**9, format="pcm_s16le", rate_hz=48_000, channels=2)
    memory.add(data(0, 5_000, 60_000))  # a minute of silence in AAC
    assert memory.held_bytes(0) > 60_000 * 48 * 2 * 2


def test_the_silence_of_a_long_fragment_is_counted_while_it_may_be_kept_and_no_longer() -> None:
    memory = account(8 * MIB, 3, format="pcm_s16le", rate_hz=48_000, channels=2)
    memory.add(data(0, 0, 60_000))
    memory.remove("f0")
    assert memory.held_bytes(60_000) > 60_000 * 48 * 2 * 2
    assert memory.held_bytes(0) == 0
    memory.add(data(1, 0, 1_000))
    assert not memory.admits(data(2, 0, 1_000), 60_000)
    assert memory.admits(data(2, 0, 1_000), 1_000)


def test_only_what_is_processed_at_once_has_samples() -> None:
    memory = account(10**9, processed_at_once=2)
    held = []
    for number in range(4):
        memory.add(data(number, 0, 1_000))
        held.append(memory.held_bytes(0))
    steps = np.diff(held)
    assert steps[0] > steps[1] == steps[2]


@given(
    st.integers(10**5, 10**7),
    st.integers(1, 10),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 10**6), st.integers(0, 60_000)), max_size=40),
)
def test_the_budget_is_kept_whatever_comes(budget: int, width: int, steps: list[tuple[int, int, int]]) -> None:
    memory, taken = account(budget, width), set()
    for number, size, duration_ms in steps:
        if number in taken:
            memory.remove(f"f{number}")
            taken.discard(number)
        elif memory.admits(data(number, size, duration_ms), 0):
            memory.add(data(number, size, duration_ms))
            taken.add(number)
        assert memory.held_bytes(0) <= budget or len(taken) == 1
        assert bool(memory.held_bytes(0)) == bool(taken)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pcm_s16le", "wav", "m4a"])
@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (16_000, 2), (44_100, 2), (48_000, 1), (96_000, 2)])
@pytest.mark.parametrize("duration_ms", [1, 100, 6_000, 20_000])
def test_no_encoding_is_larger_than_it_is_counted(format: str, rate_hz: int, channels: int, duration_ms: int) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (audio.frame_count(duration_ms, rate_hz), channels))
    encoded = audio.encode(noise.astype(np.float32), rate_hz, format)
    assert len(encoded) <= encoded_bytes(config(format, rate_hz, channels), duration_ms)


@pytest.mark.parametrize("unit", ["{}", "[]", '{"":0}', "[[]]", '"ab"', "1.5"])
def test_no_metadata_weighs_more_than_it_is_counted(unit: str) -> None:
    text = f'{{"x":[{",".join([unit] * (60_000 // (len(unit) + 1)))}]}}'
    with traced() as held:
        metadata = orjson.loads(text)
        assert held() <= json_bytes(metadata)


# ---------------------------------------------------------------- real streams, in the worst state they can be in


@define(eq=False)
class Forgetful(MemoryWorker):
    """A worker that keeps nothing of what it receives but the names."""

    names: list[tuple[str, str]] = field(factory=list)

    def emit(self, event: str, *args: object) -> None:
        (body,) = args
        assert isinstance(body, dict)
        self.names.append((event, body.get("code", "")))


@contextmanager
def traced() -> Iterator[Any]:
    """Gives a function that says how many bytes more are held than at the beginning."""
    gc.collect()
    tracemalloc.start()
    try:
        yield lambda: (gc.collect(), tracemalloc.get_traced_memory()[0])[1]
    finally:
        tracemalloc.stop()


def sessions(server: MemoryServer) -> list[StreamSession]:
    return [link.session for link in server.gateway._links.values()]


def recorded(format: str, rate_hz: int, channels: int, seconds: float) -> dict[str, Any]:
    """The audio of a fragment, as it travels."""
    frames = round(seconds * rate_hz)
    hum = np.full((frames, channels), 0.01, np.float32)
    sound = Audio(format, rate_hz, channels, round(seconds * 1_000), audio.encode(hum, rate_hz, format))
    body: dict[str, Any] = payload(FragmentData("f", "s", 0, 0, sound))["audio"]
    return body


def numbered(number: int, sound: dict[str, Any], stream_id: str = "s", **changes: Any) -> dict[str, Any]:
    body = {"fragment_id": f"f{number}", "stream_id": stream_id, "sequence_number": number, "timestamp": 0}
    return body | {"audio": sound} | changes


async def flood(worker: Forgetful, sound: dict[str, Any], first: int, stream_id: str = "s", **changes: Any) -> int:
    """Send until a fragment is refused; its number."""
    number = first
    while True:
        await worker.say("fragment:data", numbered(number, sound, stream_id, **changes))
        if ("error", "BACKPRESSURE_EXCEEDED") in worker.names:
            return number
        await trio.sleep(0.001)
        number += 1


LIVE = {"format": "wav", "sample_rate_hz": 48_000, "channels": 2, "chunk_duration_ms": 6_000}
SMALL = {"format": "m4a", "sample_rate_hz": 48_000, "channels": 2, "chunk_duration_ms": 60_000}
WIDE = {"format": "pcm_s16le", "sample_rate_hz": 48_000, "channels": 1, "chunk_duration_ms": 60_000}


async def stretch_and_hang(request: StretchRequest, *, stream: str) -> Samples:
    """What was spoken, and what was made of it."""
    fitted = request.samples[::2].copy()
    await trio.sleep(HANG)
    return fitted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sound", "stream", "factor"),
    [
        ("asr", ("wav", 48_000, 2, 6.0), LIVE, 2.5),
        ("asr", ("pcm_s16le", 44_100, 1, 60.0), WIDE, 6),  # of all samples there are those for ASR only
        ("tts", ("m4a", 16_000, 1, 60.0), SMALL, 2),
        ("tts", ("m4a", 16_000, 1, 60.0), WIDE, 2),
        ("turn", ("wav", 48_000, 2, 6.0), LIVE, 3),
        ("turn", ("m4a", 16_000, 1, 60.0), WIDE, 6),  # samples no more
    ],
)
@pytest.mark.parametrize("fallback", ["silence", "original"])
async def test_what_is_held_is_what_was_counted_and_not_much_less(
    stage: str,
    sound: tuple[str, int, int, float],
    stream: dict[str, Any],
    factor: float,
    fallback: Any,
    autojump_clock: MockClock,
) -> None:
    """A stream that is full: of fragments that a model hangs over, or of results that wait for a missing number."""
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), HANG if stage == "asr" else 0))
    longest = ScriptedTts(script=lambda _: Step(tone(2.3 * 60)), rate_range=(1.0, 1.0))
    tts = longest if stage == "tts" else ScriptedTts(script=lambda request: Step(tone(1.0 / request.rate)))
    settings = Settings(backpressure_critical=100, fallback_mode=fallback, gap_timeout_ms=600_000, tts_slots=10)
    body = recorded(*sound)
    async with memory_server(scripted_models(asr, tts=tts), settings) as server:
        object.__setattr__(server.engines.stretch, "submit", stretch_and_hang)
        worker = Forgetful(server.gateway)
        await worker.say("stream:init", stream_init(max_inflight=10, timeout_ms=30_000, **stream))
        if stage == "turn":
            await worker.say("fragment:data", numbered(0, body))
            await trio.sleep(1)
        with traced() as held:
            refused = await flood(worker, body, 2 if stage == "turn" else 0)
            await trio.sleep(1)
            (session,) = sessions(server)
            assert refused >= 2
            assert session.held_bytes <= settings.stream_buffer_bytes
            assert session.held_bytes / factor <= held() <= session.held_bytes
        await worker.say("stream:init", stream_init(**stream))  # afresh: the old one goes
        await trio.sleep(1)
        assert sum(session.held_bytes for session in sessions(server)) == 0


@pytest.mark.slow
async def test_a_server_full_of_streams_holds_what_the_formula_says(autojump_clock: MockClock) -> None:
    """Each with all it may have in flight, results that nobody acknowledges, and numbers that may come again."""
    settings = Settings(stream_buffer_bytes=12 * MIB, result_buffer_bytes=6 * MIB, backpressure_critical=1_000)
    streams = settings.max_concurrent_streams
    heard = iter([Step(Transcript("hello"))] * 20 * streams)
    asr = ScriptedAsr(script=lambda _: next(heard, Step(Transcript("hello"), HANG)))
    body = recorded("wav", 44_100, 2, 3.0)
    stream: dict[str, Any] = {"format": "wav", "sample_rate_hz": 44_100, "channels": 2, "chunk_duration_ms": 3_000}
    metadata = {"notes": ["\U0001f600" * 100] * 20}
    async with memory_server(scripted_models(asr), settings) as server:
        with traced() as held:
            for name in map(str, range(streams)):
                worker = Forgetful(server.gateway, name)
                await worker.say("stream:init", stream_init(name, max_inflight=2, timeout_ms=30_000, **stream))
                for number in range(20):
                    await worker.say("fragment:data", numbered(number, body, name, metadata=metadata))
                    await trio.sleep(0.1)
                for _ in range(500):
                    unusable = {"fragment_id": "\U0001f600" * 256, "stream_id": name, "sequence_number": 10**9}
                    await worker.say("fragment:data", unusable)
            for name in map(str, range(streams)):
                worker = Forgetful(server.gateway, "again" + name)
                sessions_of = {session.stream_id: session for session in sessions(server)}
                resume = {"session_id": sessions_of[name].session_id, "next_sequence_number": 0}
                await worker.say("stream:init", stream_init(name, resume=resume))
                worker.names.clear()
                await flood(worker, body, 100, name, metadata=metadata)
            await trio.sleep(1)
            most = streams * (settings.stream_buffer_bytes + settings.result_buffer_bytes + BESIDE_BYTES)
            assert most / 4 <= held() <= most


@pytest.mark.slow
async def test_what_a_stream_remembers_of_refusals_is_bounded(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = Forgetful(server.gateway)
        await worker.say("stream:init", stream_init())
        with traced() as held:
            for number in range(MAX_RETRYABLE + 100):
                name = f"{number:06}" + "\U0001f600" * 250
                await worker.say("fragment:data", {"fragment_id": name, "stream_id": "s", "sequence_number": number})
                worker.names.clear()
            assert BESIDE_BYTES / 4 <= held() <= BESIDE_BYTES


# ---------------------------------------------------------------- what a worker is told


async def test_what_has_no_room_is_refused_by_name_and_may_come_again(autojump_clock: MockClock) -> None:
    """Its number holds nobody up: the next smaller one is taken and emitted; sent again, it is a retry."""
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), 1))
    settings = Settings(stream_buffer_bytes=2 * MIB)
    async with memory_server(scripted_models(asr), settings) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.say("fragment:data", fragment(1, duration_ms=4_000))
        (refusal,) = worker.got("error")
        assert (refusal["code"], refusal["fragment_id"], refusal["retryable"]) == ("BACKPRESSURE_EXCEEDED", "f1", True)
        assert "bytes" in refusal["message"]
        await send(worker, 2)
        await worker.wait_for("fragment:processed", 2)
        assert numbers(worker) == [0, 2]
        await worker.say("fragment:data", fragment(1, duration_ms=4_000))
        retried = (await worker.wait_for("fragment:processed", 3))[-1]
        assert (retried["sequence_number"], retried["status"], retried["metadata"]["late"]) == (1, "success", True)


async def test_sent_again_before_its_turn_what_had_no_room_takes_its_place(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), 1))
    async with memory_server(scripted_models(asr), Settings(stream_buffer_bytes=3 * MIB)) as server:
        worker = await opened(server)
        await send(worker, 0)
        await worker.say("fragment:data", fragment(1, duration_ms=6_000))
        await worker.wait_for("fragment:processed")
        assert worker.got("error")[0]["code"] == "BACKPRESSURE_EXCEEDED"
        await worker.say("fragment:data", fragment(1, duration_ms=6_000))
        await send(worker, 2)
        await worker.wait_for("fragment:processed", 2)
        await trio.sleep(5)
        assert numbers(worker)[:2] == [0, 1]


async def test_a_long_fragment_takes_room_from_the_next_ones_no_longer_than_its_silence_is_kept(
    autojump_clock: MockClock,
) -> None:
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), 1))
    async with memory_server(scripted_models(asr), Settings(stream_buffer_bytes=3 * MIB)) as server:
        worker = await opened(server)
        (session,) = sessions(server)
        assert session.held_bytes == 0
        await worker.say("fragment:data", fragment(0, duration_ms=60_000))
        await worker.wait_for("fragment:processed")
        assert session.held_bytes > 60_000 * 8 * 2  # its silence
        await send(worker, 1)
        await worker.wait_for("fragment:processed", 2)
        assert session.held_bytes < MIB
        await send(worker, 2, 3, 4)
        await worker.wait_for("fragment:processed", 5)
        assert worker.got("error") == []


async def test_the_largest_fragment_is_taken_however_small_the_budget(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(stream_buffer_bytes=MIB)) as server:
        worker = await opened(server)
        await worker.say("fragment:data", fragment(0, duration_ms=60_000))
        assert (await worker.wait_for("fragment:processed"))[0]["status"] == "success"


async def test_a_live_stream_never_meets_the_budget() -> None:
    """31 in flight are the most that may be, of six seconds in 48 kHz stereo."""
    live = StreamConfig("en", "es", "default", 6_000, 48_000, 2, "pcm_s16le")
    memory = StreamMemory(Settings().stream_buffer_bytes, 10, live)
    for number in range(31):
        sound = Audio("pcm_s16le", 48_000, 2, 6_000, bytes(6 * 48_000 * 4))
        sent = FragmentData(f"f{number}", "s", number, 0, sound, {"pts_ns": 6_000_000_000 * number})
        assert memory.admits(sent, 6_000)
        memory.add(sent)
    assert FRAGMENT_BYTES < memory.held_bytes(0) < Settings().stream_buffer_bytes
