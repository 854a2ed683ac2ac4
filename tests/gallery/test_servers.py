"""Connections and whole servers that end: from the wire to the models, nothing is left of anybody.

The real server on a network in memory (`virtual_server`), whose lines can be cut or go dead. Leaving its context stops
it as SIGTERM does, and fails where something is left; these tests look earlier.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sts_trio.config import Settings
from sts_trio.testing.engines import HANG, ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.payloads import fragment, stream_init
from sts_trio.testing.virtual import VirtualServer, VirtualWorker, virtual_server

GRACE_S = 5.0
SETTINGS = Settings(resume_grace_s=GRACE_S, tts_slots=1, ping_interval_s=10, ping_timeout_s=5, drain_timeout_s=20)


def speaking(seconds: float) -> ScriptedTts:
    return ScriptedTts(script=lambda request: Step(tone(1), seconds))


async def busy_worker(server: VirtualServer, fragments: int = 6) -> VirtualWorker:
    worker = await server.worker()
    await worker.say("stream:init", stream_init(timeout_ms=30_000))
    for number in range(fragments):
        await worker.say("fragment:data", fragment(number))
    await worker.wait_for("fragment:ack", fragments)
    return worker


# ---------------------------------------------------------------- how a connection ends


async def is_cut(worker: VirtualWorker) -> None:
    worker.line.cut()
    await trio.sleep(GRACE_S)


async def is_killed(worker: VirtualWorker) -> None:
    worker.wire.vanish()
    await trio.sleep(GRACE_S)


async def hangs_up(worker: VirtualWorker) -> None:
    worker.wire.leave()
    await trio.testing.wait_all_tasks_blocked()
    worker.wire.vanish()
    await trio.sleep(GRACE_S)


async def goes_dead(worker: VirtualWorker) -> None:
    """Half open: nobody is told, and only a ping without an answer shows it."""
    worker.line.stall()
    await trio.sleep(SETTINGS.ping_interval_s + SETTINGS.ping_timeout_s + GRACE_S)
    worker.wire.vanish()  # it knows nothing of it either


@pytest.mark.parametrize("ends", [is_cut, is_killed, hangs_up, goes_dead])
async def test_a_connection_that_ends_takes_its_work_with_it(
    ends: Callable[[VirtualWorker], Awaitable[None]], autojump_clock: MockClock
) -> None:
    """One call runs and is cancelled; the others never reach the model, although its slot is free again."""
    tts = speaking(HANG)
    async with virtual_server(scripted_models(tts=tts), SETTINGS) as server:
        await trio.testing.wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        worker = await busy_worker(server)
        await ends(worker)
        await trio.testing.wait_all_tasks_blocked()
        assert len(tts.requests) == tts.cancelled == 1
        assert server.left_behind() == []
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_another_worker_gets_the_slot_at_once(autojump_clock: MockClock) -> None:
    """What is cancelled for one is time for the others: that is what cancelling is for."""
    tts = ScriptedTts(script=lambda _: Step(tone(1), HANG if len(tts.requests) == 1 else 0))
    async with virtual_server(scripted_models(tts=tts), SETTINGS) as server:
        gone = await busy_worker(server)
        other = await server.worker()
        await other.say("stream:init", stream_init("other", timeout_ms=30_000))
        await other.say("fragment:data", fragment(0, "other"))
        gone.wire.vanish()
        await other.wait_for("fragment:processed")
        assert trio.current_time() == GRACE_S


# ---------------------------------------------------------------- how a server ends


async def test_a_drain_completes_what_was_promised(autojump_clock: MockClock) -> None:
    """SIGTERM in the middle of a programme: nothing new is taken, and nothing that was accepted is lost."""
    async with virtual_server(scripted_models(tts=speaking(1)), SETTINGS) as server:
        worker = await busy_worker(server)
        await server.stop()
        assert [result["status"] for result in worker.got("fragment:processed")] == ["success"] * 6
        assert len(worker.got("stream:complete")) == 1
        assert server.left_behind() == []
        with pytest.raises(ConnectionRefusedError):
            await server.worker()


async def test_a_drain_ends_although_a_model_does_not(autojump_clock: MockClock) -> None:
    """Each wait has an end. What is not done by then has a result all the same, and says that it may be tried again."""
    tts = speaking(HANG)
    async with virtual_server(scripted_models(tts=tts), SETTINGS) as server:
        worker = await busy_worker(server)
        await server.stop()
        codes = [result["error"]["code"] for result in worker.got("fragment:processed")]
        assert codes == ["TEMPORARY_UNAVAILABLE"] * 6
        assert SETTINGS.drain_timeout_s <= trio.current_time() < SETTINGS.drain_timeout_s + 10
        assert tts.cancelled == 1


async def test_who_is_away_holds_no_drain_up(autojump_clock: MockClock) -> None:
    """It cannot come back, so its grace means nothing any more."""
    async with virtual_server(scripted_models(tts=speaking(HANG)), SETTINGS) as server:
        worker = await busy_worker(server)
        worker.line.cut()
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await server.stop()
        assert trio.current_time() == before
