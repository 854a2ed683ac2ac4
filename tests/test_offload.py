"""Blocking calls: in threads they can be stopped, inline there is nothing to stop."""

from __future__ import annotations

import threading

import pytest
import trio

from sts_trio.offload import check_cancelled, thread_offload
from sts_trio.testing.engines import inline_offload


async def test_a_function_whose_caller_has_left_stops_at_its_next_check() -> None:
    began, left = trio.Event(), threading.Event()
    went_on = False

    def work() -> None:
        nonlocal went_on
        check_cancelled()
        trio.from_thread.run_sync(began.set)
        assert left.wait(5)
        check_cancelled()
        went_on = True

    async def leave(caller: trio.CancelScope) -> None:
        await began.wait()
        caller.cancel()
        left.set()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as caller:
            nursery.start_soon(leave, caller)
            await thread_offload(1)(work)
    assert caller.cancelled_caught
    assert not went_on


async def test_inline_there_is_nothing_to_check() -> None:
    with trio.CancelScope() as caller:
        await trio.lowlevel.checkpoint()
        caller.cancel()
        check_cancelled()
    await inline_offload(check_cancelled)


def test_a_thread_that_trio_does_not_know_cannot_check() -> None:
    with pytest.raises(RuntimeError, match="wasn't created by Trio"):
        check_cancelled()
