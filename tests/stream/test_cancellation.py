"""Whatever ends a stream leaves nothing of it behind: no task, no request, no gauge, no memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest
import trio
import trio.testing
from attrs import define
from trio.testing import MockClock

from sts_trio.config import Settings
from sts_trio.engines.base import Transcript, Translation
from sts_trio.testing.engines import HANG, ScriptedAsr, ScriptedTranslation, ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.memory import MemoryServer, MemoryWorker, memory_server
from sts_trio.testing.payloads import stream_init

from .helpers import opened, send, slow_asr

STAGES = ("asr", "translation", "tts")


@define(eq=False)
class Scene:
    """A stream with more fragments than its engines can take, in the middle of its work."""

    server: MemoryServer
    worker: MemoryWorker
    engine: ScriptedAsr | ScriptedTranslation | ScriptedTts

    def waiting(self) -> int:
        """Requests at all pools that wait for a slot."""
        return sum(len(pool._queue) for pool in self.server.engines.pools)

    def assert_nothing_is_left(self) -> None:
        value = self.server.metrics.registry.get_sample_value
        assert self.waiting() == 0
        assert self.engine.running == 0
        assert self.server.in_flight == 0
        assert value("sts_streams_active") == self.server.gateway.active_streams == 0
        assert all(value("sts_pool_busy_slots", {"pool": pool.label}) == 0 for pool in self.server.engines.pools)
        assert not self.server.gateway._sessions.child_tasks


@asynccontextmanager
async def busy_stream(stage: str, delay_s: float = HANG, **settings: object) -> AsyncIterator[Scene]:
    models = scripted_models(
        asr := ScriptedAsr(script=lambda _: Step(Transcript("hello"), delay_s if stage == "asr" else 0)),
        translation := ScriptedTranslation(
            script=lambda _: Step(Translation("hola"), delay_s if stage == "translation" else 0)
        ),
        tts := ScriptedTts(script=lambda _: Step(tone(1), delay_s if stage == "tts" else 0)),
    )
    one_each = Settings(asr_slots=1, translation_slots=1, tts_slots=1, **settings)  # type: ignore[arg-type]
    async with memory_server(models, one_each) as server:
        worker = await opened(server, max_inflight=3, timeout_ms=30_000)
        await send(worker, *range(6))
        await trio.testing.wait_all_tasks_blocked()
        engine = asr if stage == "asr" else translation if stage == "translation" else tts
        assert engine.running == 1
        yield Scene(server, worker, engine)


async def one_tick() -> None:
    """Let every task that can run do so once. They and we come in any order: what they did is seen a tick later."""
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()


# ---------------------------------------------------------------- what cancels a stream


async def starts_afresh(scene: Scene) -> None:
    await scene.worker.say("stream:init", stream_init())
    (session,) = [link.session for link in scene.server.gateway._links.values()]
    session.cancel()  # of the new one there is nothing to see


async def stays_away(scene: Scene) -> None:
    scene.worker.disconnect()
    await trio.sleep(2)


async def leaves_while_draining(scene: Scene) -> None:
    scene.server.gateway._closed_because = "the server is shutting down"
    scene.worker.disconnect()


async def drain_takes_too_long(scene: Scene) -> None:
    with trio.move_on_after(5):
        await scene.server.gateway.drain()
    scene.server.gateway.abandon()


Ending: TypeAlias = Callable[[Scene], Awaitable[None]]


@pytest.mark.parametrize("end", [starts_afresh, stays_away, leaves_while_draining, drain_takes_too_long])
@pytest.mark.parametrize("stage", STAGES)
async def test_what_waits_is_gone_within_a_tick_and_what_runs_is_told_to_stop(
    stage: str, end: Ending, autojump_clock: MockClock
) -> None:
    async with busy_stream(stage, resume_grace_s=2) as scene:
        assert scene.waiting() == (0 if stage == "asr" else 2)  # ASR hears a stream's fragments one at a time
        await end(scene)
        await one_tick()
        assert scene.waiting() == 0
        await one_tick()  # who waited for the call has told it
        assert scene.engine.cancelled == 1
        await trio.testing.wait_all_tasks_blocked()
        scene.assert_nothing_is_left()


@pytest.mark.parametrize("stage", STAGES)
async def test_a_stream_that_ends_completes_and_leaves_nothing(stage: str, autojump_clock: MockClock) -> None:
    async with busy_stream(stage, 1) as scene:
        await scene.worker.say("stream:end", {"stream_id": "s"})
        (complete,) = await scene.worker.wait_for("stream:complete")
        assert complete["total_fragments"] == 6
        await trio.sleep(6)
        scene.assert_nothing_is_left()
        assert scene.engine.cancelled == 0


@pytest.mark.parametrize("end", [starts_afresh, stays_away, leaves_while_draining, drain_takes_too_long])
async def test_no_task_is_left(end: Ending, autojump_clock: MockClock) -> None:
    async with busy_stream("tts", resume_grace_s=2) as scene:
        with_a_stream = trio.lowlevel.current_statistics().tasks_living
        await end(scene)
        await trio.testing.wait_all_tasks_blocked()
        without = trio.lowlevel.current_statistics().tasks_living
        for name in ("a", "b"):
            if scene.worker.closed or scene.server.gateway._closed_because is not None:
                break
            await scene.worker.say("stream:init", stream_init(name))
            await trio.testing.wait_all_tasks_blocked()
            await stays_away(scene)
            await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == without < with_a_stream


@pytest.mark.parametrize("end", [starts_afresh, stays_away, leaves_while_draining, drain_takes_too_long])
@pytest.mark.parametrize("stage", STAGES)
async def test_no_memory_is_left(stage: str, end: Ending, autojump_clock: MockClock) -> None:
    async with busy_stream(stage, resume_grace_s=2) as scene:
        remembered = remember(scene.server)
        assert len(remembered) == 7
        await end(scene)
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert [thing for reference in remembered if (thing := reference()) is not None] == []


def remember(server: MemoryServer) -> list[weakref.ref[Any]]:
    """The one stream and its fragments, without holding them."""
    (session,) = [link.session for link in server.gateway._links.values()]
    return [weakref.ref(thing) for thing in (session, *session._accepted.values())]


async def test_no_memory_is_left_of_a_stream_that_completes_or_crashes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for crashes in (False, True):
        async with memory_server(scripted_models(slow_asr(1))) as server:
            worker = await opened(server)
            await send(worker, 0, 1, 2)
            remembered = remember(server)
            with monkeypatch.context() as patch:
                if crashes:
                    patch.setattr("sts_trio.stream.order.ResultOrder.pop_ready", lambda _: 1 / 0)
                await worker.say("stream:end", {"stream_id": "s"})
                await trio.sleep(10)
            assert len(worker.got("fragment:processed")) == 3
            gc.collect()
            assert [thing for reference in remembered if (thing := reference()) is not None] == []


async def test_a_worker_that_starts_afresh_all_the_time_leaves_nothing(autojump_clock: MockClock) -> None:
    async with memory_server(scripted_models(slow_asr(1)), Settings(asr_slots=1)) as server:
        worker = server.worker()
        before = trio.lowlevel.current_statistics().tasks_living
        for ticks in range(40):
            await worker.say("stream:init", stream_init())
            await send(worker, 0, 1, 2)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
        worker.disconnect()
        await trio.sleep(31)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert server.in_flight == server.gateway.active_streams == 0
        assert sum(len(pool._queue) for pool in server.engines.pools) == 0
