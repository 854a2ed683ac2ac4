"""What a worker was told, waited for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sts_trio.testing.heard import Heard

Noticed = dict[str, float]


@asynccontextmanager
async def waiters(heard: Heard, *events: str) -> AsyncIterator[Noticed]:
    """A task waits for each of these events; when it noticed."""
    noticed: Noticed = {}

    async def wait(event: str) -> None:
        await heard.wait_for(event)
        noticed[event] = trio.current_time()

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event)
        await wait_all_tasks_blocked()
        yield noticed


async def test_each_of_several_waiters_is_woken_at_once(autojump_clock: MockClock) -> None:
    heard = Heard()
    async with waiters(heard, "one", "two") as noticed:
        await trio.sleep(1)
        heard._hear("two", {})
        await trio.sleep(1)
        heard._hear("one", {})
    assert noticed == {"two": 1, "one": 2}


async def test_the_end_wakes_all(autojump_clock: MockClock) -> None:
    heard = Heard()
    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="the connection has ended"), AssertionError):
        async with waiters(heard, "one", "two"):
            heard._hear_the_end()
    assert trio.current_time() == 0
