"""Whatever one stream does changes nothing for another beyond its fair share of the engines.

The share: at each stage a request waits at most for the call that runs and for one call of each other stream that
wants something there, since streams take turns (`engines/fairness.py`). So with `k` other busy streams, one slot for
each model and calls of `t` seconds, a fragment takes at most (k + 2) x t at each stage, its own call included. What a
stream does that needs no model costs the others nothing at all.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
import structlog.testing
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protocol.errors import ErrorCode
from sts_trio.config import Settings
from sts_trio.engines.base import Transcript, Translation
from sts_trio.engines.fairness import FairQueue
from sts_trio.engines.suite import Models
from sts_trio.server.gateway import LINES_PER_S
from sts_trio.stream.reporting import RESULTS_LOGGED_PER_S
from sts_trio.testing.engines import ScriptedAsr, ScriptedTranslation, ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.memory import MemoryServer, MemoryWorker, memory_server
from sts_trio.testing.payloads import fragment, stream_init

from .helpers import numbers, opened, send

CALLS_S = {"asr": 0.1, "translation": 0.02, "tts": 0.15}
ALONE_S = sum(CALLS_S.values())
ONE_SLOT_EACH = Settings(asr_slots=1, translation_slots=1, tts_slots=1, codec_slots=1, max_concurrent_streams=10)
FRAGMENTS = 10
"""Of the neighbour: one a second, as long as they are."""


def models() -> Models:
    """Each call takes its time, and speech fits its slot."""
    return scripted_models(
        ScriptedAsr(script=lambda _: Step(Transcript("hello"), CALLS_S["asr"])),
        ScriptedTranslation(script=lambda _: Step(Translation("hola"), CALLS_S["translation"])),
        ScriptedTts(script=lambda _: Step(tone(1), CALLS_S["tts"])),
    )


async def neighbour(server: MemoryServer, name: str = "neighbour") -> list[float]:
    """A live stream that does all right; how long each of its fragments took."""
    worker = server.worker(name)
    await worker.say("stream:init", stream_init(name, name))
    sent: list[float] = []
    for number in range(FRAGMENTS):
        sent.append(trio.current_time())
        await worker.say("fragment:data", fragment(number, name))
        await trio.sleep(1)
    await worker.say("stream:end", {"stream_id": name})
    with trio.fail_after(FRAGMENTS):
        await worker.wait_for("stream:complete")
    results = worker.got("fragment:processed")
    assert [result["sequence_number"] for result in results] == list(range(FRAGMENTS))
    assert {result["status"] for result in results} == {"success"}
    assert worker.got("error") == worker.got("backpressure") == []
    return [back - there for back, there in zip(worker.times("fragment:processed"), sent, strict=True)]


# ---------------------------------------------------------------- bad neighbours

Bad: TypeAlias = Callable[[MemoryServer, str], Awaitable[None]]


async def floods(server: MemoryServer, name: str) -> None:
    """Is at its critical threshold all the time."""
    worker = server.worker(name)
    await worker.say("stream:init", stream_init(name, name, max_inflight=10, timeout_ms=30_000))
    number = 0
    while True:
        answer = await worker.say("fragment:data", fragment(number, name))
        number += answer.get("code") is None
        await trio.sleep(0.02)


async def sends_garbage(server: MemoryServer, name: str) -> None:
    worker = server.worker(name)
    await worker.say("stream:init", stream_init(name, name))
    await trio.sleep(0.1)  # the neighbour has opened its stream
    number = 0
    while True:
        for event, body in (
            ("fragment:data", {"stream_id": name, "fragment_id": "x", "sequence_number": number}),
            ("fragment:data", {"stream_id": "neighbour", "fragment_id": "x", "sequence_number": number}),
            ("fragment:data", 17),
            ("fragment:ack", {"fragment_id": "f0", "status": "lost", "timestamp": 0}),
            ("stream:end", {"stream_id": "neighbour"}),
            ("stream:init", stream_init("neighbour", name)),
            ("no such event", None),
        ):
            await worker.say(event, body)
        undecodable = fragment(number, name)
        undecodable["audio"] |= {"format": "m4a", "data_base64": "AAAA"}
        await worker.say("fragment:data", undecodable)
        number += 1
        await trio.sleep(0.02)


async def opens_streams(server: MemoryServer, name: str) -> None:
    worker = server.worker(name)
    while True:
        await worker.say("stream:init", stream_init(name, name, chunk_duration_ms=60_000, format="m4a"))
        await trio.sleep(0.02)


class SlowReader(MemoryWorker):
    async def drained(self) -> None:
        await trio.sleep_forever()


async def never_reads(server: MemoryServer, name: str) -> None:
    """Comes back to what it has not acknowledged, and takes nothing of it; what it sends cannot be decoded."""
    worker = server.worker(name)
    ready = await worker.say("stream:init", stream_init(name, name))
    number = 0
    while True:
        for _ in range(5):
            undecodable = fragment(number, name)
            undecodable["audio"] |= {"format": "m4a", "data_base64": "AAAA"}
            await worker.say("fragment:data", undecodable)
            number += 1
            await trio.sleep(0.05)
        worker.disconnect()
        worker = SlowReader(server.gateway, f"{name}-{number}")
        assert worker.connect() is None
        await worker.say("stream:init", stream_init(name, name, resume={"session_id": ready["session_id"]}))


async def reconnects(server: MemoryServer, name: str) -> None:
    """Starts afresh over a new connection in the middle of its work, again and again."""
    generation = 0
    while True:
        worker = server.worker(f"{name}-{generation}")
        await worker.say("stream:init", stream_init(name, name, max_inflight=10))
        for number in range(10):
            await worker.say("fragment:data", fragment(number, name))
        await trio.sleep(0.13)
        worker.disconnect()
        generation += 1


@pytest.mark.slow
@pytest.mark.parametrize("bad", [sends_garbage, opens_streams, never_reads])
async def test_what_needs_no_model_costs_nobody_anything(bad: Bad, autojump_clock: MockClock) -> None:
    async with memory_server(models(), ONE_SLOT_EACH) as server, trio.open_nursery() as nursery:
        nursery.start_soon(bad, server, "bad")
        latencies = await neighbour(server)
        assert latencies == pytest.approx([ALONE_S] * FRAGMENTS)
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("bad", [floods, reconnects])
@pytest.mark.parametrize("others", [1, 3])
async def test_what_needs_models_costs_others_no_more_than_its_turns(
    bad: Bad, others: int, autojump_clock: MockClock
) -> None:
    async with memory_server(models(), ONE_SLOT_EACH) as server, trio.open_nursery() as nursery:
        for number in range(others):
            nursery.start_soon(bad, server, f"bad{number}")
        latencies = await neighbour(server)
        assert max(latencies) <= (others + 2) * ALONE_S
        assert max(latencies) > ALONE_S  # there was something to wait for
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_good_stream_among_all_bad_ones_has_its_share(autojump_clock: MockClock) -> None:
    all_bad: list[Bad] = [floods, sends_garbage, opens_streams, never_reads, reconnects]
    async with memory_server(models(), ONE_SLOT_EACH) as server, trio.open_nursery() as nursery:
        for bad in all_bad:
            nursery.start_soon(bad, server, bad.__name__)
        both = await together(server)
        # Of the bad ones two ask a model for anything, and of the good ones each has the other beside it.
        assert max(both) <= (3 + 2) * ALONE_S
        nursery.cancel_scope.cancel()
    # What the bad ones had was taken back.
    assert server.in_flight == 0


async def together(server: MemoryServer) -> list[float]:
    latencies: list[float] = []

    async def one(name: str) -> None:
        latencies.extend(await neighbour(server, name))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "neighbour")
        nursery.start_soon(one, "another")
    return latencies


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["ask", "give up", "answer"])), max_size=60))
def test_nobody_passes_a_stream_twice_by_giving_up_and_asking_again(steps: list[tuple[str, str]]) -> None:
    queue: FairQueue[str] = FairQueue()
    waiting: dict[str, list[str]] = {name: [] for name in "abcd"}
    passed: list[str] = []  # who had a turn since `me` began to wait
    queue.push("me", 0, "mine")
    for number, (name, step) in enumerate(steps):
        if step == "ask":
            waiting[name].append(f"{name}{number}")
            queue.push(name, -number, waiting[name][-1])
        elif step == "give up" and waiting[name]:
            queue.discard(name, waiting[name].pop())
        elif step == "answer":
            answered = queue.pop()
            if answered == "mine":
                break
            waiting[answered[0]].remove(answered)
            passed.append(answered[0])
    assert len(passed) == len(set(passed))


# ---------------------------------------------------------------- opening streams is cheap


async def test_a_stream_without_fragments_asks_no_engine_for_anything(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = server.worker()
        for _ in range(100):
            await worker.say("stream:init", stream_init(chunk_duration_ms=60_000, format="m4a"))
            await trio.sleep(0.01)
        for pool in server.engines.pools:
            value = server.metrics.registry.get_sample_value("sts_pool_batch_size_count", {"pool": pool.label})
            assert value == 0, pool.label


@pytest.mark.slow
async def test_a_flood_fills_no_log(autojump_clock: MockClock) -> None:
    undecodable = fragment(0)
    undecodable["audio"] |= {"format": "m4a", "data_base64": "AAAA"}
    async with memory_server() as server:
        worker = server.worker()
        with structlog.testing.capture_logs() as lines:
            for _ in range(200):
                await worker.say("stream:init", stream_init())
            await trio.sleep(0.5)
            assert len(lines) <= 2 * LINES_PER_S
            assert {line["event"] for line in lines} == {"stream_started", "stream_ended", "stream_replaced"}
        await trio.sleep(1)
        with structlog.testing.capture_logs() as lines:
            for number in range(200):
                await worker.say(
                    "fragment:data", undecodable | {"fragment_id": f"f{number}", "sequence_number": number}
                )
                await trio.sleep(0.001)
            results = [line for line in lines if line["event"] == "fragment_processed"]
            assert len(results) == RESULTS_LOGGED_PER_S
            await trio.sleep(1)
            await worker.say("fragment:data", undecodable | {"fragment_id": "last", "sequence_number": 200})
            await worker.wait_for("fragment:processed", 201)
            assert lines[-1]["lines_left_out"] == 200 - RESULTS_LOGGED_PER_S


# ---------------------------------------------------------------- a defect in one fragment


async def test_a_result_that_cannot_be_written_is_a_failure_and_the_stream_goes_on(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = Unwritable(server.gateway, spoiled={"f1"})
        assert worker.connect() is None
        await worker.say("stream:init", stream_init())
        with structlog.testing.capture_logs() as lines:
            await send(worker, 0, 1, 2)
            results = await worker.wait_for("fragment:processed", 3)
        assert [result["status"] for result in results] == ["success", "failed", "success"]
        error = results[1]["error"]
        assert (error["code"], error["stage"], error["retryable"]) == ("INTERNAL_ERROR", "encode", True)
        (logged,) = [line for line in lines if line["event"] == "result_lost"]
        assert (logged["fragment_id"], logged["exc_info"]) == ("f1", True)
        assert logged["error_id"] in error["message"]
        assert "dubbed_audio" not in results[1]
        assert results[1]["metadata"]["asr_model"] == "scripted-asr"
        value = server.metrics.registry.get_sample_value
        assert value("sts_fragment_errors_total", {"stage": "encode", "error_code": "INTERNAL_ERROR"}) == 1
        worker.spoiled.clear()
        await send(worker, 1)  # it may be tried again
        retried = (await worker.wait_for("fragment:processed", 4))[-1]
        assert (retried["status"], retried["metadata"]["late"]) == ("success", True)
        await worker.say("stream:end", {"stream_id": "s"})
        (complete,) = await worker.wait_for("stream:complete")
        assert (complete["success_count"], complete["failed_count"]) == (2, 1)
        assert server.in_flight == 0


async def test_a_kept_result_that_cannot_be_written_is_a_failure_for_who_comes_back(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        session_id = worker.got("stream:ready")[0]["session_id"]
        await send(worker, 0, 1, 2)
        worker.disconnect()
        await trio.sleep(1)
        back = Unwritable(server.gateway, "back", spoiled={"f1"})
        assert back.connect() is None
        await back.say("stream:init", stream_init(resume={"session_id": session_id}))
        results = await back.wait_for("fragment:processed", 3)
        assert numbers(back) == [0, 1, 2]
        assert [result["status"] for result in results] == ["success", "failed", "success"]
        assert results[1]["error"]["code"] == ErrorCode.INTERNAL_ERROR
        assert results[1].keys() == results[0].keys() - {"dubbed_audio", "transcript", "translated_text"} | {"error"}
        assert results[1]["metadata"].keys() == results[0]["metadata"].keys()
        await send(back, 3)
        await back.wait_for("fragment:processed", 4)
        back.disconnect()
        again = server.worker("again")  # the failure is now its result, in its place, as long as nobody has it
        await again.say("stream:init", stream_init(resume={"session_id": session_id}))
        assert (await again.wait_for("fragment:processed", 4))[1] == results[1]
        assert numbers(again) == [0, 1, 2, 3]
        await send(again, 1)
        assert (await again.wait_for("fragment:processed", 5))[-1]["status"] == "success"


@pytest.mark.parametrize(
    "broken",
    [
        "reporting.Reporter.result",
        "reporting.Reporter.record",
        "statistics.StreamStatistics.add",
        "results.weight_bytes",
    ],
)
async def test_a_defect_in_what_is_said_of_a_fragment_costs_no_other(
    broken: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_server() as server:
        worker = await opened(server)
        calls = iter([True])

        def once(*args: Any, **kwargs: Any) -> Any:
            if next(calls, False):
                raise ZeroDivisionError("secret")
            return real(*args, **kwargs)

        target = f"sts_trio.stream.{broken}"
        real = pkgutil.resolve_name(target)
        monkeypatch.setattr(target, once)
        await send(worker, 0, 1)
        results = await worker.wait_for("fragment:processed", 2)
        assert numbers(worker) == [0, 1]
        counted_only = broken.endswith(("record", "add"))
        assert [result["status"] for result in results] == ["success" if counted_only else "failed", "success"]
        assert "secret" not in str(results)
        assert server.in_flight == 0


class Unwritable(MemoryWorker):
    """A connection that cannot be given the results of some fragments."""

    def __init__(self, *args: Any, spoiled: set[str]) -> None:
        super().__init__(*args)
        self.spoiled = spoiled

    def emit(self, event: str, *args: object) -> None:
        (body,) = args
        assert isinstance(body, dict)
        if event == "fragment:processed" and body["status"] == "success" and body["fragment_id"] in self.spoiled:
            raise ValueError("nested more than 100 deep")
        super().emit(event, *args)
