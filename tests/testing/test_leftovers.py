"""What is still there although nobody is."""

from __future__ import annotations

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from sts_trio.engines.base import Transcript
from sts_trio.testing.engines import HANG, ScriptedAsr, Step, scripted_models
from sts_trio.testing.memory import memory_server
from sts_trio.testing.payloads import fragment, stream_init


async def test_nothing_is_left_where_nobody_was(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        assert server.left_behind() == []


async def test_what_is_left_is_said_in_words(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), delay_s=HANG))
    async with memory_server(scripted_models(asr)) as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init())
        await worker.say("fragment:data", fragment(0))
        await wait_all_tasks_blocked()
        assert server.left_behind() == [
            "sts_fragments_in_flight is 1",
            "sts_streams_active is 1",
            "sts_pool_busy_slots{'pool': 'asr'} is 1",
            "scripted-asr: 1 calls are running",
        ]


@pytest.mark.parametrize("gauge", ["fragments_in_flight", "streams_active", "connections", "pool_busy_slots"])
async def test_a_gauge_that_is_not_there_cannot_be_zero(gauge: str, autojump_clock: MockClock) -> None:
    """It was renamed, and what looks at it was not."""
    async with memory_server() as server:
        server.metrics.registry.unregister(getattr(server.metrics, gauge))
        with pytest.raises(AssertionError, match=f"there is no .*sts_{gauge}"):
            server.left_behind()
