"""A stream that ends, however it does: what it had running is cancelled, what waited is dropped, nothing is left.

At the level of the gateway (`memory_server`): events go in, events come out, and there is no wire. Each of the six
fragments is spoken for ever by the one voice there is: one call runs, two wait for the slot, three for a token.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from attrs import frozen
from trio.testing import MockClock

from sts_trio.config import Settings
from sts_trio.stream.session import StreamSession
from sts_trio.testing.engines import HANG, ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.memory import MemoryServer, MemoryWorker, memory_server
from sts_trio.testing.payloads import fragment, stream_init

GRACE_S = 5.0


@frozen
class Scene:
    server: MemoryServer
    worker: MemoryWorker
    tts: ScriptedTts

    async def assert_all_is_gone(self) -> None:
        """Now, without another second: one call was made, and it was cancelled; nobody got its slot after it."""
        await trio.testing.wait_all_tasks_blocked()
        assert len(self.tts.requests) == self.tts.cancelled == 1
        assert self.server.left_behind() == []


@asynccontextmanager
async def busy_stream(speaks_s: float = HANG) -> AsyncIterator[Scene]:
    tts = ScriptedTts(script=lambda request: Step(tone(1), speaks_s))
    settings = Settings(tts_slots=1, resume_grace_s=GRACE_S)
    async with memory_server(scripted_models(tts=tts), settings) as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init(timeout_ms=30_000))
        for number in range(6):
            await worker.say("fragment:data", fragment(number))
        await trio.testing.wait_all_tasks_blocked()
        assert (tts.running, server.in_flight) == (1, 6)
        yield Scene(server, worker, tts)


async def test_a_worker_that_stays_away_past_its_grace(autojump_clock: MockClock) -> None:
    """Known servers go on for workers that are gone, and their gauges never come back to zero."""
    async with busy_stream() as scene:
        scene.worker.disconnect()
        await trio.sleep(GRACE_S - 0.1)
        assert scene.tts.running == 1  # it may come back
        await trio.sleep(0.1)
        await scene.assert_all_is_gone()


async def test_a_worker_that_starts_afresh(autojump_clock: MockClock) -> None:
    """The new session does not wait for the old one's work: that is cancelled in the same tick."""
    async with busy_stream() as scene:
        before = trio.current_time()
        await scene.worker.say("stream:init", stream_init())
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == before
        assert (scene.tts.cancelled, scene.tts.running, scene.server.in_flight) == (1, 0, 0)
        await scene.worker.say("stream:end", {"stream_id": "s"})
        (complete,) = await scene.worker.wait_for("stream:complete")
        assert complete["total_fragments"] == 0
        await scene.assert_all_is_gone()


async def test_a_stream_that_is_ended_completes_first(autojump_clock: MockClock) -> None:
    """``stream:end`` cancels nothing that was promised: the results come, then the word that they were all."""
    async with busy_stream(speaks_s=1) as scene:
        await scene.worker.say("stream:end", {"stream_id": "s"})
        (complete,) = await scene.worker.wait_for("stream:complete")
        assert complete["success_count"] == 6
        assert trio.current_time() == 6
        assert scene.tts.cancelled == 0
        await trio.sleep(6)  # it has 5 s to read its last events
        assert scene.worker.closed
        assert scene.server.left_behind() == []


async def test_an_end_that_nobody_waits_for(autojump_clock: MockClock) -> None:
    """Ended and then away: as if it had not ended, the grace decides, and not the model that hangs."""
    async with busy_stream() as scene:
        await scene.worker.say("stream:end", {"stream_id": "s"})
        scene.worker.disconnect()
        await trio.sleep(GRACE_S)
        await scene.assert_all_is_gone()


async def test_a_drain_that_takes_too_long(autojump_clock: MockClock) -> None:
    """Out of time, each fragment that was accepted still has its one result: a failure that may be tried again."""
    async with busy_stream() as scene:
        with trio.move_on_after(10):
            await scene.server.gateway.drain()
        scene.server.gateway.abandon()
        results = scene.worker.got("fragment:processed")
        assert [result["error"]["code"] for result in results] == ["TEMPORARY_UNAVAILABLE"] * 6
        assert len(scene.worker.got("stream:complete")) == 1
        await scene.assert_all_is_gone()


@pytest.mark.parametrize("ends", [True, False])
async def test_no_task_and_no_memory_is_left(ends: bool, autojump_clock: MockClock) -> None:
    """What one stream leaves, a thousand leave a thousand times. `gc` finds what somebody still refers to."""
    async with memory_server() as server:
        await trio.testing.wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        worker = server.worker()
        await worker.say("stream:init", stream_init())
        await worker.say("fragment:data", fragment(0))
        if ends:
            await worker.say("stream:end", {"stream_id": "s"})
        else:
            worker.disconnect()
        await trio.sleep(60)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        del worker
        gc.collect()
        assert not [thing for thing in gc.get_objects() if type(thing) is StreamSession]
