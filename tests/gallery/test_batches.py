"""Callers that leave a pool: a call goes on as long as anybody waits for any part of it, and no longer.

This is the pool's part of cancellation, the same for each engine behind it. Copy these for a pool, a cache or a batcher
of your own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing
from trio.testing import MockClock

from sts_trio.engines.pool import Pool
from sts_trio.observe.metrics import Metrics
from sts_trio.testing.engines import ScriptedEngine, Step, inline_offload

CALL_S = 10


@asynccontextmanager
async def batching() -> AsyncIterator[tuple[Pool[str, str], ScriptedEngine[str, str]]]:
    """A pool whose only slot is busy until 10 s, so that what is asked for meanwhile becomes one batch until 20 s."""
    engine = ScriptedEngine[str, str]("upper", lambda text: Step(text.upper(), CALL_S), max_batch=4)
    pool = Pool("upper", engine, slots=1, max_waiting=10, offload=inline_offload, metrics=Metrics())
    async with trio.open_nursery() as slots, trio.open_nursery() as callers:
        await slots.start(pool.run)
        callers.start_soon(lambda: pool.submit("first", stream="s"))
        await trio.testing.wait_all_tasks_blocked()
        yield pool, engine
        await trio.sleep_until(3 * CALL_S)
        slots.cancel_scope.cancel()


async def ask(pool: Pool[str, str], text: str, until_s: float, answers: dict[str, str]) -> None:
    with trio.move_on_at(until_s):
        answers[text] = await pool.submit(text, stream=text)


async def test_a_batch_goes_on_when_one_of_its_callers_leaves(autojump_clock: MockClock) -> None:
    """Who shares a call with a worker that hangs up must not pay for it."""
    answers: dict[str, str] = {}
    async with batching() as (pool, engine), trio.open_nursery() as callers:
        callers.start_soon(ask, pool, "leaves", 12, answers)
        callers.start_soon(ask, pool, "stays", 30, answers)
    assert engine.batches == [1, 2]
    assert answers == {"stays": "STAYS"}
    assert engine.cancelled == 0


async def test_a_batch_is_cancelled_when_its_last_caller_leaves(autojump_clock: MockClock) -> None:
    """Work that nobody waits for takes the model from those who wait."""
    async with batching() as (pool, engine):
        async with trio.open_nursery() as callers:
            callers.start_soon(ask, pool, "has no time", 12, {})
            callers.start_soon(ask, pool, "is cancelled", 30, {})
            await trio.sleep_until(13)
            assert engine.cancelled == 0
            callers.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert engine.cancelled == 1
        assert engine.running == 0


async def test_who_leaves_before_the_call_is_not_in_it(autojump_clock: MockClock) -> None:
    """What is dropped while it waits costs nothing at all: the model never hears of it."""
    async with batching() as (pool, engine):
        await ask(pool, "leaves", 5, {})
    assert engine.requests == ["first"]


async def test_the_slot_of_a_cancelled_call_takes_the_next_when_the_call_has_ended(autojump_clock: MockClock) -> None:
    """Not before: a model that is called again while it still works on the last request is called twice at once."""
    engine = ScriptedEngine[str, str]("lingers", lambda text: Step(text.upper(), CALL_S, linger_s=2))
    pool = Pool("lingers", engine, slots=1, max_waiting=10, offload=inline_offload, metrics=Metrics())
    async with trio.open_nursery() as slots:
        await slots.start(pool.run)
        await ask(pool, "leaves", 5, {})
        assert trio.current_time() == 5  # who leaves waits for nothing
        assert await pool.submit("next", stream="s") == "NEXT"
        assert trio.current_time() == 5 + 2 + CALL_S
        assert engine.overlapping_calls == 0
        slots.cancel_scope.cancel()
