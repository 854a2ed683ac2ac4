"""A model's call that is cancelled: ends at once, heals, and never takes its cancel for something else.

On virtual time: the engines only wait, and the clock jumps. Each test shows a rule with an engine that keeps it; where
it is easily broken, with one that does not, too, so that one sees what the mistake looks like from outside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from sts_trio.engines.base import Instance, Offload
from sts_trio.engines.pool import Pool
from sts_trio.observe.metrics import Metrics
from sts_trio.testing.conformance import Nonconformance, check_engine
from sts_trio.testing.engines import HANG, ScriptedEngine, Step, inline_offload


class Upper:
    """An engine that makes letters large, in three steps of a second. The others here are it with a difference."""

    name = "upper"
    max_batch = 1

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[str, str]]:
        await trio.lowlevel.checkpoint()
        yield self.call

    async def call(self, batch: Sequence[str], /) -> Sequence[str]:
        for _ in range(3):
            await trio.sleep(1)
        return [text.upper() for text in batch]


async def test_a_call_ends_when_it_is_cancelled_and_the_next_one_works(autojump_clock: MockClock) -> None:
    """The two promises a pool relies on: a caller that leaves gets its slot back, and the slot is as good as new."""
    async with Upper().open(inline_offload) as call:
        with trio.move_on_after(1.5) as patience:
            await call(["hello"])
        assert patience.cancelled_caught
        assert trio.current_time() == 1.5
        assert await call(["hello"]) == ["HELLO"]


async def test_the_same_for_every_moment_at_which_it_can_be_cancelled(autojump_clock: MockClock) -> None:
    """One moment proves little: `check_engine` cancels a call in each of its awaits, and its opening, too."""
    await check_engine(Upper(), "hello", inline_offload, ends_within_s=0, same=str.__eq__)


async def test_an_engine_sees_how_long_its_caller_will_wait(autojump_clock: MockClock) -> None:
    """With the deadline it can decide whether another try is worth it; asking anybody else would be a second truth."""
    seen: list[float] = []

    class Curious(Upper):
        async def call(self, batch: Sequence[str], /) -> Sequence[str]:
            seen.append(trio.current_effective_deadline())
            return await super().call(batch)

    async with running(Curious()) as pool:
        with trio.fail_after(8):
            await pool.submit("hello", stream="s")
    assert seen == [8]


# ---------------------------------------------------------------- a swallowed Cancelled


async def test_a_cancelled_that_is_swallowed_comes_again(autojump_clock: MockClock) -> None:
    """Trio's cancellation is a state, not an event: every further await raises again, so that most mistakes heal."""

    class Careless(Upper):
        async def call(self, batch: Sequence[str], /) -> Sequence[str]:
            with suppress(trio.Cancelled):  # never do this
                await trio.sleep(1)
            return await super().call(batch)

    await check_engine(Careless(), "hello", inline_offload, ends_within_s=0)


async def test_one_that_is_swallowed_in_the_last_await_does_not(autojump_clock: MockClock) -> None:
    """No await comes after it to raise again. The call returns as if it were done, and its caller believes it."""

    class Careless(Upper):
        async def call(self, batch: Sequence[str], /) -> Sequence[str]:
            try:
                return await super().call(batch)
            except trio.Cancelled:
                return [""]

    async with Careless().open(inline_offload) as call:
        with trio.move_on_after(1) as patience:
            assert await call(["hello"]) == [""]
        assert not patience.cancelled_caught
    with pytest.raises(Nonconformance, match=r"was cancelled before it began answered \[''\]"):
        await check_engine(Careless(), "hello", inline_offload, same=str.__eq__)


@pytest.mark.parametrize("instead", [[], None, ["A", "B", "C"]])
async def test_whatever_is_returned_in_its_place(instead: Any, autojump_clock: MockClock) -> None:
    """One request has one answer. Where there is none, or three, nobody has to know the right one to see it."""

    class Careless(Upper):
        async def call(self, batch: Sequence[str], /) -> Sequence[str]:
            try:
                return await super().call(batch)
            except trio.Cancelled:
                return cast(Sequence[str], instead)

    with pytest.raises(Nonconformance, match="was cancelled before it began answered"):
        await check_engine(Careless(), "hello", inline_offload)


async def test_a_cancel_that_is_taken_for_a_fault_is_told_as_one(autojump_clock: MockClock) -> None:
    """`except BaseException` and an error of one's own in its place: an alarm where somebody has only left."""

    class Alarmed(Upper):
        async def call(self, batch: Sequence[str], /) -> Sequence[str]:
            try:
                return await super().call(batch)
            except BaseException as error:
                raise RuntimeError("the model is broken") from error

    with pytest.raises(Nonconformance, match="raised RuntimeError"):
        await check_engine(Alarmed(), "hello", inline_offload)


# ---------------------------------------------------------------- cleanup


@define
class Device(Upper):
    """Something that must be reset after each call, which takes a moment; else it answers nothing any more."""

    reset_s: float = 0.1
    dirty: bool = field(default=False, init=False)

    async def call(self, batch: Sequence[str], /) -> Sequence[str]:
        if self.dirty:
            raise RuntimeError("it was not reset")
        self.dirty = True
        return await super().call(batch)

    async def reset(self) -> None:
        await trio.sleep(self.reset_s)
        self.dirty = False


class Shielded(Device):
    async def call(self, batch: Sequence[str], /) -> Sequence[str]:
        try:
            return await super().call(batch)
        finally:
            with trio.move_on_after(0.5, shield=True):
                await self.reset()


class Unshielded(Device):
    async def call(self, batch: Sequence[str], /) -> Sequence[str]:
        try:
            return await super().call(batch)
        finally:
            await self.reset()


async def test_cleanup_that_waits_is_shielded_for_a_limited_time(autojump_clock: MockClock) -> None:
    """In a cancelled scope each await raises at once, in `finally`, too. A shield lets it through; its end is ours."""
    await check_engine(Shielded(), "hello", inline_offload, ends_within_s=0.1)


async def test_cleanup_without_a_shield_does_not_happen(autojump_clock: MockClock) -> None:
    """It looks right, and works in every test in which nobody is cancelled."""
    with pytest.raises(Nonconformance, match=r"does not work after one that was cancelled .* RuntimeError"):
        await check_engine(Unshielded(), "hello", inline_offload)


async def test_a_shield_ends_although_what_it_shields_does_not(autojump_clock: MockClock) -> None:
    """A shield without a deadline holds the call, its slot, and the end of the server."""
    async with Shielded(reset_s=HANG).open(inline_offload) as call:
        with trio.move_on_after(1):
            await call(["hello"])
        assert trio.current_time() == 1.5


# ---------------------------------------------------------------- what is left


class Leaky(Upper):
    """Has a task at the side that it does not end: a nursery of the engine, and not of `open`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[str, str]]:
        self.nursery.start_soon(trio.sleep_forever)
        yield self.call


async def test_after_open_nothing_is_left(autojump_clock: MockClock) -> None:
    """An instance that fails is closed and opened again: what each one leaves adds up for days."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(Nonconformance, match="1 tasks are left after an orderly end"):
            await check_engine(Leaky(nursery), "hello", inline_offload)
        nursery.cancel_scope.cancel()


async def test_a_call_that_lingers_is_found(autojump_clock: MockClock) -> None:
    """How late an engine may notice is its own affair, as long as it says so: the pool counts it as hung after 5 s."""
    lingers = ScriptedEngine[str, str]("lingers", lambda text: Step(text, delay_s=1, linger_s=2))
    await check_engine(lingers, "hello", inline_offload, ends_within_s=2)
    with pytest.raises(Nonconformance, match=r"ended 2\.00 s later"):
        await check_engine(lingers, "hello", inline_offload, ends_within_s=1)


@asynccontextmanager
async def running(engine: Upper) -> AsyncIterator[Pool[str, str]]:
    pool = Pool("upper", engine, slots=1, max_waiting=10, offload=inline_offload, metrics=Metrics())
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        yield pool
        nursery.cancel_scope.cancel()
