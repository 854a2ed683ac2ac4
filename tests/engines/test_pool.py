"""The pool's promises: fair turns, deadlines, cancellation that frees the slot when the call has really ended."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import structlog.testing
import trio
import trio.testing

from protocol.errors import ErrorCode
from sts_trio.engines.base import EngineFailure, EngineLost, EngineUnavailable, Instance
from sts_trio.engines.pool import HUNG_AFTER_S, EngineDefect, Pool
from sts_trio.observe.metrics import Metrics
from sts_trio.offload import Offload, thread_offload
from sts_trio.testing.engines import HANG, ScriptedEngine, Step, inline_offload

Echo = ScriptedEngine[str, str]


@asynccontextmanager
async def running(engine: Echo, slots: int = 1, max_waiting: int = 100) -> AsyncIterator[Pool[str, str]]:
    pool = Pool("test", engine, slots=slots, max_waiting=max_waiting, offload=inline_offload, metrics=Metrics())
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        yield pool
        nursery.cancel_scope.cancel()
    assert engine.open_instances == 0


def takes(seconds: float, max_batch: int = 1) -> Echo:
    return ScriptedEngine("echo", lambda request: Step(request.upper(), seconds), max_batch)


async def test_an_answer_comes_back(autojump_clock: trio.testing.MockClock) -> None:
    async with running(takes(1)) as pool:
        assert await pool.submit("a", stream="s") == "A"
        assert trio.current_time() == 1


async def test_as_many_calls_at_once_as_slots_and_never_more(autojump_clock: trio.testing.MockClock) -> None:
    engine = takes(1)
    async with running(engine, slots=2) as pool, trio.open_nursery() as callers:
        for _ in range(6):
            callers.start_soon(lambda: pool.submit("a", stream="s"))
    assert engine.most_running == 2
    assert trio.current_time() == 3


async def test_a_backlog_of_one_stream_does_not_starve_another(autojump_clock: trio.testing.MockClock) -> None:
    engine = takes(1)
    async with running(engine) as pool, trio.open_nursery() as callers:
        for number in range(10):
            callers.start_soon(lambda n=number: pool.submit(f"greedy{n}", stream="greedy"))  # type: ignore[misc]
        await trio.sleep(0.5)
        with trio.fail_after(2.6):  # what runs, one turn of the other stream, its own
            await pool.submit("modest", stream="modest")


async def test_the_earliest_deadline_of_a_stream_goes_first(autojump_clock: trio.testing.MockClock) -> None:
    engine = takes(1)
    async with running(engine) as pool, trio.open_nursery() as callers:

        async def ask(request: str, within: float) -> None:
            with trio.move_on_after(within):
                await pool.submit(request, stream="s")

        for request, within in (("first", 10), ("patient", 30), ("urgent", 5)):
            callers.start_soon(ask, request, within)
            await trio.testing.wait_all_tasks_blocked()
    assert engine.requests == ["first", "urgent", "patient"]


async def test_an_engine_knows_when_the_last_caller_of_its_batch_gives_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    deadlines: list[float] = []

    def script(request: str) -> Step[str]:
        deadlines.append(trio.current_effective_deadline())
        return Step(request, 1)

    async with running(ScriptedEngine("echo", script, max_batch=2)) as pool, trio.open_nursery() as callers:

        async def call(seconds: float) -> None:
            with trio.move_on_at(seconds):
                await pool.submit("a", stream="s")

        callers.start_soon(call, 7)
        await trio.sleep(0.5)
        callers.start_soon(call, 3)
        callers.start_soon(call, 4)
    assert deadlines == [7, 4, 4]


async def test_requests_that_wait_go_as_one_batch(autojump_clock: trio.testing.MockClock) -> None:
    engine = takes(1, max_batch=4)
    async with running(engine) as pool, trio.open_nursery() as callers:
        for stream in "abcdef":
            callers.start_soon(lambda s=stream: pool.submit(s, stream=s))  # type: ignore[misc]
            await trio.testing.wait_all_tasks_blocked()
    assert engine.batches == [1, 4, 1]


async def test_a_failure_in_a_batch_is_one_requests_own(autojump_clock: trio.testing.MockClock) -> None:
    def script(request: str) -> Step[str]:
        return Step(EngineFailure(ErrorCode.INVALID_TEXT, "no") if request == "bad" else request, 1)

    engine: Echo = ScriptedEngine("echo", script, 4)
    outcomes: dict[str, str] = {}

    async with running(engine) as pool, trio.open_nursery() as callers:

        async def ask(request: str) -> None:
            try:
                outcomes[request] = await pool.submit(request, stream=request)
            except EngineFailure as failure:
                outcomes[request] = failure.code

        for request in ("first", "good", "bad", "fine"):
            callers.start_soon(ask, request)
            await trio.testing.wait_all_tasks_blocked()
    assert outcomes == {"first": "first", "good": "good", "bad": "INVALID_TEXT", "fine": "fine"}


async def test_a_defect_of_an_engine_costs_its_request_and_not_the_slot(autojump_clock: trio.testing.MockClock) -> None:
    engine: Echo = ScriptedEngine("echo", lambda request: Step(ZeroDivisionError() if request == "bad" else request))
    async with running(engine) as pool:
        with pytest.raises(EngineDefect) as defect:
            await pool.submit("bad", stream="s")
        assert isinstance(defect.value.__cause__, ZeroDivisionError)
        assert await pool.submit("good", stream="s") == "good"


async def test_an_engine_that_is_lost_ends_its_pool(autojump_clock: trio.testing.MockClock) -> None:
    engine: Echo = ScriptedEngine("echo", lambda _: Step(EngineLost("the GPU is gone"), 1))
    with pytest.RaisesGroup(pytest.RaisesExc(EngineLost, match="the GPU is gone"), flatten_subgroups=True):
        async with running(engine) as pool:
            await pool.submit("a", stream="s")
    assert engine.open_instances == 0


async def test_what_nobody_waits_for_is_never_started(autojump_clock: trio.testing.MockClock) -> None:
    engine = takes(2)
    async with running(engine) as pool, trio.open_nursery() as callers:
        callers.start_soon(lambda: pool.submit("runs", stream="s"))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await pool.submit("gives up", stream="s")
    assert engine.requests == ["runs"]


async def test_a_call_nobody_waits_for_is_cancelled_and_its_slot_is_free_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    engine: Echo = ScriptedEngine("echo", lambda request: Step(request, HANG if request == "hang" else 0))
    async with running(engine) as pool:
        with trio.move_on_after(3):
            await pool.submit("hang", stream="s")
        assert await pool.submit("next", stream="s") == "next"
        assert trio.current_time() == 3
    assert engine.cancelled == 1


class Deaf(ScriptedEngine[str, str]):
    """Goes on when it is cancelled, as a library does in a thread."""

    async def _call(self, batch: Sequence[str]) -> Sequence[str | EngineFailure]:
        with trio.CancelScope(shield=True):
            return await super()._call(batch)
        raise AssertionError("nobody cancels this scope")


async def leave_at(pool: Pool[str, str], request: str, seconds: float) -> None:
    with trio.move_on_at(seconds):
        await pool.submit(request, stream="s")


async def test_a_slot_whose_cancelled_call_does_not_end_is_told_and_counted_and_serves_on_when_it_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    metrics = Metrics()
    engine = Deaf("deaf", lambda request: Step(request, 60 if request == "hang" else 0))
    pool = Pool("test", engine, slots=1, max_waiting=9, offload=inline_offload, metrics=metrics)

    def figures() -> list[float | None]:
        names = "sts_pool_hung_slots", "sts_pool_hung_calls_total"
        return [metrics.registry.get_sample_value(name, {"pool": "test"}) for name in names]

    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        with structlog.testing.capture_logs() as lines:
            await leave_at(pool, "hang", 1)
            await trio.sleep_until(1 + HUNG_AFTER_S - 0.1)
            assert figures() == [0, 0]
            assert not lines
            await trio.sleep_until(1 + HUNG_AFTER_S + 0.1)
            assert figures() == [1, 1]
            await trio.sleep_until(60.1)
            assert figures() == [0, 1]
        what = {"pool": "test", "engine": "deaf", "slots": 1}
        assert lines == [
            {"event": "slot_hung", "log_level": "error", "after_s": HUNG_AFTER_S, "hung": 1, **what},
            {"event": "slot_recovered", "log_level": "warning", "after_s": 59.0, "hung": 0, **what},
        ]
        assert await pool.submit("next", stream="s") == "next"
        nursery.cancel_scope.cancel()
    assert engine.overlapping_calls == 0


async def test_a_cancelled_call_that_ends_in_time_is_nothing_to_tell(autojump_clock: trio.testing.MockClock) -> None:
    engine = Deaf("deaf", lambda request: Step(request, HUNG_AFTER_S))
    async with running(engine) as pool:
        with structlog.testing.capture_logs() as lines:
            await leave_at(pool, "slow", 1)
            await trio.sleep(60)
        assert not lines


async def test_the_other_slots_go_on_while_one_hangs(autojump_clock: trio.testing.MockClock) -> None:
    engine = Deaf("deaf", lambda request: Step(request, 60 if request == "hang" else 1))
    async with running(engine, slots=2) as pool:
        await leave_at(pool, "hang", 1)
        await trio.sleep_until(10)
        assert pool.hung_slots == 1
        for _ in range(3):
            assert await pool.submit("next", stream="s") == "next"
        assert trio.current_time() == 13


async def test_where_every_slot_hangs_nobody_waits_in_vain(autojump_clock: trio.testing.MockClock) -> None:
    engine = Deaf("deaf", lambda request: Step(request, 60 if request == "hang" else 0))
    refused_at: list[float] = []

    async def ask(pool: Pool[str, str]) -> None:
        with pytest.raises(EngineFailure, match="every slot hangs") as failure:
            await pool.submit("next", stream="t")
        assert failure.value.code is ErrorCode.TEMPORARY_UNAVAILABLE
        refused_at.append(trio.current_time())

    async with running(engine, slots=2) as pool, trio.open_nursery() as callers:
        callers.start_soon(leave_at, pool, "hang", 1)
        callers.start_soon(leave_at, pool, "hang", 2)
        await trio.sleep(3)
        callers.start_soon(ask, pool)  # waits: they may yet end
        await trio.sleep_until(10)
        await ask(pool)
        assert refused_at == [2 + HUNG_AFTER_S, 10]
        await trio.sleep_until(60.1)
        assert await pool.submit("next", stream="t") == "next"


async def test_a_slot_hangs_until_its_call_has_ended_whether_or_not_the_pool_is_ending(
    autojump_clock: trio.testing.MockClock,
) -> None:
    engine = Deaf("deaf", lambda request: Step(request, 60))
    pool = Pool("test", engine, slots=1, max_waiting=9, offload=inline_offload, metrics=Metrics())
    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            await leave_at(pool, "hang", 1)
            await trio.sleep_until(10)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep_until(59)
            assert pool.hung_slots == 1
        assert pool.hung_slots == 0
    assert [line["event"] for line in lines] == ["slot_hung", "slot_recovered"]


async def test_an_instance_that_cannot_be_loaded_is_told_at_once_although_another_hangs_in_loading(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Unavailable(ScriptedEngine[str, str]):
        @asynccontextmanager
        async def open(self, offload: Offload) -> AsyncIterator[Instance[str, str]]:
            self.open_instances += 1
            if self.open_instances == 1:
                with trio.CancelScope(shield=True):
                    await trio.sleep(60)
                await trio.sleep_forever()
            async with trio.open_nursery():
                raise EngineUnavailable("no model: install it")
            yield  # type: ignore[unreachable]

    engine: Echo = Unavailable("unavailable", lambda request: Step(request))
    pool = Pool("test", engine, slots=2, max_waiting=9, offload=inline_offload, metrics=Metrics())
    lost_at: list[float] = []

    async def watch() -> None:
        await pool.lost.wait()
        lost_at.append(trio.current_time())

    expected = pytest.RaisesGroup(EngineUnavailable, flatten_subgroups=True)
    with structlog.testing.capture_logs() as lines, expected:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(pool.run)
    assert (lost_at, trio.current_time()) == ([0], 60)
    assert [(line["event"], line["reason"]) for line in lines] == [("engine_lost", "no model: install it")]


async def test_a_pool_ends_when_the_last_of_its_calls_has_and_knows_which_slots_have_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    engine = Deaf("deaf", lambda request: Step(request, 60))
    pool = Pool("test", engine, slots=2, max_waiting=9, offload=inline_offload, metrics=Metrics())
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        assert pool.open_slots == 2
        await leave_at(pool, "hang", 1)
        await trio.sleep(HUNG_AFTER_S)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        assert pool.open_slots == 1
    assert trio.current_time() == 60
    assert pool.open_slots == 0


async def test_a_call_that_fails_while_it_is_cancelled_costs_nobody_anything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Torn(ScriptedEngine[str, str]):
        async def _call(self, batch: Sequence[str]) -> Sequence[str | EngineFailure]:
            async def breaks_on_the_way_out() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    raise OSError("the pipe broke while being cancelled")

            if batch[0] == "hang":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(breaks_on_the_way_out)
                    await trio.sleep_forever()
            return list(batch)

    async with running(Torn("torn", lambda request: Step(request))) as pool:
        with trio.move_on_after(1):
            await pool.submit("hang", stream="s")
        assert await pool.submit("next", stream="s") == "next"


async def test_a_batch_goes_on_while_anybody_waits_for_any_of_it(autojump_clock: trio.testing.MockClock) -> None:
    engine = takes(5, max_batch=2)
    answers: list[str] = []
    async with running(engine) as pool, trio.open_nursery() as callers:
        callers.start_soon(lambda: pool.submit("head", stream="h"))
        await trio.testing.wait_all_tasks_blocked()

        async def leaves_early() -> None:
            with trio.move_on_after(6):
                await pool.submit("leaves", stream="a")

        async def stays() -> None:
            answers.append(await pool.submit("stays", stream="b"))

        callers.start_soon(leaves_early)
        callers.start_soon(stays)
    assert engine.batches == [1, 2]
    assert answers == ["STAYS"]
    assert engine.cancelled == 0


async def test_an_engine_that_loses_an_answer_is_a_defect(autojump_clock: trio.testing.MockClock) -> None:
    class Forgetful(ScriptedEngine[str, str]):
        async def _call(self, batch: Sequence[str]) -> Sequence[str | EngineFailure]:
            return []

    async with running(Forgetful("forgetful", lambda request: Step(request))) as pool:
        with pytest.raises(EngineDefect, match="0 answers to 1 requests"):
            await pool.submit("a", stream="s")


async def test_operators_see_busy_slots_and_abandoned_calls(autojump_clock: trio.testing.MockClock) -> None:
    metrics = Metrics()
    engine: Echo = ScriptedEngine("echo", lambda request: Step(request, HANG))
    pool = Pool("test", engine, slots=2, max_waiting=9, offload=inline_offload, metrics=metrics)

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"pool": "test"})

    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        assert value("sts_pool_busy_slots") == 0
        with trio.move_on_after(1):
            async with trio.open_nursery() as callers:
                callers.start_soon(lambda: pool.submit("a", stream="s"))
                await trio.sleep(0.5)
                assert value("sts_pool_busy_slots") == 1
        await trio.testing.wait_all_tasks_blocked()
        assert value("sts_pool_busy_slots") == 0
        assert value("sts_pool_abandoned_calls_total") == 1
        nursery.cancel_scope.cancel()


async def test_too_many_waiting_requests_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with running(takes(1), max_waiting=1) as pool, trio.open_nursery() as callers:
        for _ in range(2):  # one runs, one waits
            callers.start_soon(lambda: pool.submit("a", stream="s"))
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(EngineFailure) as failure:
            await pool.submit("b", stream="t")
        assert failure.value.code is ErrorCode.TEMPORARY_UNAVAILABLE


async def test_ready_means_that_every_instance_is_warm(autojump_clock: trio.testing.MockClock) -> None:
    engine: Echo = ScriptedEngine("echo", lambda request: Step(request), load_s=7)
    async with running(engine, slots=3):
        assert engine.open_instances == 3
        assert trio.current_time() == 7


async def test_a_blocking_call_in_a_thread_stops_at_its_next_check() -> None:
    started = trio.Event()
    offload = thread_offload(1)
    ended: list[str] = []

    def work() -> None:
        trio.from_thread.run_sync(started.set)
        try:
            while True:
                trio.from_thread.check_cancelled()
        finally:
            ended.append("cancelled")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(offload, work)
        await started.wait()
        nursery.cancel_scope.cancel()
    assert ended == ["cancelled"]


async def test_an_idle_slot_keeps_nothing_of_what_it_did(autojump_clock: trio.testing.MockClock) -> None:
    class Request(str):  # a plain one cannot be watched
        pass

    engine = takes(1)
    async with running(engine) as pool:
        request = Request("a")
        watched = weakref.ref(request)
        await pool.submit(request, stream="s")
        del request
        engine.requests.clear()
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert watched() is None


@pytest.mark.parametrize("error", [lambda: EngineFailure(ErrorCode.GPU_OOM, "no"), lambda: RuntimeError("no")])
async def test_a_failed_call_keeps_nothing_of_its_requests(
    autojump_clock: trio.testing.MockClock, error: Callable[[], Exception]
) -> None:
    """Without the collector of rings, which runs when there are many objects, and not when they are large."""

    class Request(str):  # a plain one cannot be watched
        pass

    class Failing(ScriptedEngine[str, str]):
        async def _call(self, batch: Sequence[str]) -> Sequence[str | EngineFailure]:
            raise error()

    async with running(Failing("failing", lambda request: Step(request))) as pool:
        request = Request("a")
        watched = weakref.ref(request)
        gc.collect()
        gc.disable()
        try:
            with suppress(EngineFailure, EngineDefect):  # pytest.raises would keep the request
                await pool.submit(request, stream="s")
                pytest.fail("it did not fail")
            del request
            await trio.testing.wait_all_tasks_blocked()
            assert watched() is None
        finally:
            gc.enable()
