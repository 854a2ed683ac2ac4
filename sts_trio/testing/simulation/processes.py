"""Many seeds on all cores: one process each, which asks for the next seed when it is done with one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import orjson
import trio
from attrs import asdict, field, frozen

SEED_LIMIT_S: Final = 300.0


@frozen
class Size:
    """What is the same for all seeds: see `Scenario.of_seed`."""

    streams: int | None = None
    hours: float | None = None

    @property
    def limit_s(self) -> float:
        """Of real time for one run: many times what it takes."""
        return SEED_LIMIT_S * (1 + (self.streams or 1) * (self.hours or 0.0))


@frozen
class Report:
    """An `Outcome`, as one process tells it another.

    Attributes:
        has_ended: the run has; to run it again would be no better.
    """

    seed: int
    violations: list[str]
    counts: dict[str, int] = field(factory=dict)
    virtual_s: float = 0.0
    has_ended: bool = True


async def simulate_many(
    seeds: Iterable[int], size: Size, *, processes: int, within_s: float, take: Callable[[Report], None]
) -> None:
    """Run `seeds`, and call `take` with each report as it comes.

    A run that does not end in real time has stopped to make progress in virtual time, as one does in which a task asks
    again and again without ever waiting; and one that takes its process with it has not ended either. Both are
    violations like others.

    Args:
        within_s: no seed is begun later.
    """
    remaining = iter(seeds)
    until = trio.current_time() + within_s
    async with trio.open_nursery() as nursery:
        for _ in range(processes):
            nursery.start_soon(_feed, remaining, size, until, take)


async def _feed(remaining: Iterator[int], size: Size, until: float, take: Callable[[Report], None]) -> None:
    """Have one process after the other run seeds: a new one where a run did not end."""
    is_needed = True
    while is_needed:
        async with _process(size) as ask:
            is_needed = False
            for seed in remaining:
                if trio.current_time() >= until:
                    break
                why_not = f"did not end within {size.limit_s:g} s of real time"
                report = Report(seed, [why_not], has_ended=False)
                with trio.move_on_after(size.limit_s):
                    report = await ask(seed)
                take(report)
                if not report.has_ended:
                    is_needed = True
                    break


@asynccontextmanager
async def _process(size: Size) -> AsyncIterator[Callable[[int], Awaitable[Report]]]:
    command = [sys.executable, "-m", __package__ or "", orjson.dumps(asdict(size)).decode()]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    questions, answers = process.stdin, process.stdout
    assert questions is not None
    assert answers is not None

    async def ask(seed: int) -> Report:
        answer = bytearray()
        with suppress(trio.BrokenResourceError):  # it has ended: there is no answer either
            await questions.send_all(b"%d\n" % seed)
        while not answer.endswith(b"\n"):
            piece = await answers.receive_some()
            if not piece:
                status = await process.wait()
                return Report(seed, [f"its process ended with status {status}"], has_ended=False)
            answer += piece
        return Report(**orjson.loads(answer))

    try:
        async with questions, answers:
            yield ask
    finally:
        process.kill()
        with trio.CancelScope(shield=True):  # it was killed: this takes no time
            await process.wait()
