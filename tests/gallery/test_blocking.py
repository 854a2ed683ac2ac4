"""Blocking libraries and child processes: what trio cannot cancel by itself.

With real threads and real processes, so on real time: a clock that jumps would not wait for them.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from sts_trio.engines.base import Instance, Offload
from sts_trio.offload import check_cancelled, thread_offload
from sts_trio.testing.conformance import Nonconformance, check_engine, child_processes

pytestmark = pytest.mark.slow

STEPS = 30
STEP_S = 0.01


class Blocking:
    """An engine over a library that blocks: it goes through `offload`, and looks up between its steps."""

    name = "blocking"
    max_batch = 1

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[str, str]]:
        async def call(batch: Sequence[str], /) -> Sequence[str]:
            return [await offload(self.work, text) for text in batch]

        await trio.lowlevel.checkpoint()
        yield call

    def work(self, text: str) -> str:
        for _ in range(STEPS):
            time.sleep(STEP_S)
            check_cancelled()
        return text.upper()


class Deaf(Blocking):
    """Never looks up."""

    def work(self, text: str) -> str:
        time.sleep(STEPS * STEP_S)
        return text.upper()


class Inline(Blocking):
    """Goes past `offload` and blocks the event loop."""

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[str, str]]:
        async def call(batch: Sequence[str], /) -> Sequence[str]:
            await trio.lowlevel.checkpoint()
            time.sleep(STEPS * STEP_S)  # noqa: ASYNC251 - the mistake
            return [text.upper() for text in batch]

        async with trio.open_nursery():
            yield call


class Abandoning(Blocking):
    """Goes past `offload`, to a thread that it leaves behind where its caller has left."""

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[str, str]]:
        async def call(batch: Sequence[str], /) -> Sequence[str]:
            return [await trio.to_thread.run_sync(self.work, text, abandon_on_cancel=True) for text in batch]

        await trio.lowlevel.checkpoint()
        yield call

    def work(self, text: str) -> str:
        time.sleep(STEPS * STEP_S)
        return text.upper()


class Speaking:
    """An engine that starts a program for each request; killing it is the cancel."""

    name = "speaking"
    max_batch = 1
    script = "sleep 0.3; exec cat"

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[str, str]]:
        await trio.lowlevel.checkpoint()
        yield self.call

    async def call(self, batch: Sequence[str], /) -> Sequence[str]:
        return [await self.run(text) for text in batch]

    async def run(self, text: str) -> str:
        done = await trio.run_process(
            ["sh", "-c", self.script], stdin=text.encode(), capture_stdout=True, deliver_cancel=kill
        )
        return done.stdout.decode()


async def kill(process: trio.Process) -> None:
    process.kill()


class Unreaped(Speaking):
    """Kills its program and forgets it: it stays in the table of processes until ours ends."""

    forgotten: list[subprocess.Popen[bytes]]

    def __init__(self) -> None:
        self.forgotten = []

    async def run(self, text: str) -> str:
        process = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220 - it is about what this leaves
        self.forgotten.append(process)
        try:
            await trio.sleep(0.1)
        finally:
            process.kill()
        return text


async def test_a_blocking_function_stops_at_its_next_check() -> None:
    """`offload` never abandons a thread, which would go on with the model; so the function itself must look up."""
    async with Blocking().open(thread_offload(1)) as call:
        began = trio.current_time()
        with trio.move_on_after(STEP_S) as patience:
            await call(["hello"])
        assert patience.cancelled_caught
        assert trio.current_time() - began < STEPS * STEP_S / 2


async def test_it_can_be_cancelled_at_any_time() -> None:
    """Its check is a plain `raise` in the thread: `finally` and `with` work as ever, and the next call finds order."""
    await check_engine(Blocking(), "hello", thread_offload(1), ends_within_s=STEPS * STEP_S / 2, same=str.__eq__)


async def test_a_function_that_never_looks_up_is_found() -> None:
    """It ends when it ends, and holds its slot until then; the fragment that waits for it has its TIMEOUT meanwhile."""
    with pytest.raises(Nonconformance, match=r"^blocking: .* ended .* s later, .* 0\.15 s \(ends_within_s\)$"):
        await check_engine(Deaf(), "hello", thread_offload(1), ends_within_s=STEPS * STEP_S / 2)


async def test_a_call_that_blocks_the_event_loop_is_told_so() -> None:
    """Nothing else runs meanwhile: no other stream, no ping, no deadline."""
    with pytest.raises(Nonconformance, match=r"held the event loop for 0\.\d+ s, past `offload`"):
        await check_engine(Inline(), "hello", thread_offload(1), ends_within_s=STEPS * STEP_S / 2)


async def test_a_thread_that_is_abandoned_is_found() -> None:
    """The call ends at once, and looks as good as any; its model works on, and the next call uses it meanwhile."""
    with pytest.raises(Nonconformance, match=r"has abandoned threads: .*work from"):
        await check_engine(Abandoning(), "hello", thread_offload(1))


async def test_a_program_is_killed_and_reaped() -> None:
    """`trio.run_process` does both; SIGTERM, its default, is too polite for a program that may ignore it."""
    await check_engine(Speaking(), "hello", thread_offload(1), ends_within_s=0.25, same=str.__eq__)


async def test_a_program_that_ignores_sigterm_is_killed_too() -> None:
    """What hangs hangs in the worst state."""

    class Stubborn(Speaking):
        script = "trap '' TERM; exec sleep 60"

    async with Stubborn().open(thread_offload(1)) as call:
        began = trio.current_time()
        with trio.move_on_after(0.1):
            await call(["hello"])
        assert trio.current_time() - began < 1


async def test_a_program_that_is_not_reaped_is_found() -> None:
    """One for each cancelled request: the table of processes is full one day, and nothing can be started any more."""
    engine = Unreaped()
    before = child_processes()
    with pytest.raises(Nonconformance, match="child processes are left"):
        await check_engine(engine, "hello", thread_offload(1))
    for process in engine.forgotten:
        process.wait()
    assert child_processes() == before
