"""Many seeds on all cores: one process each, which asks for the next seed when it is done with one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator

import orjson
import trio
from attrs import asdict, frozen


@frozen
class Size:
    """What is the same for all seeds: see `Scenario.of_seed`."""

    streams: int | None = None
    hours: float | None = None


@frozen
class Report:
    """An `Outcome`, as one process tells it another."""

    seed: int
    violations: list[str]
    counts: dict[str, int]
    virtual_s: float


class ProcessFailed(Exception):
    """A process has ended in the middle of a seed; the message names it."""


async def simulate_many(
    seeds: Iterable[int], size: Size, *, processes: int, within_s: float, take: Callable[[Report], None]
) -> None:
    """Run `seeds`, and call `take` with each report as it comes.

    Args:
        within_s: no seed is begun later.

    Raises:
        ProcessFailed
    """
    remaining = iter(seeds)
    until = trio.current_time() + within_s
    async with trio.open_nursery() as nursery:
        for _ in range(processes):
            nursery.start_soon(_feed, remaining, size, until, take)


async def _feed(remaining: Iterator[int], size: Size, until: float, take: Callable[[Report], None]) -> None:
    command = [sys.executable, "-m", __package__ or "", orjson.dumps(asdict(size)).decode()]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    answers = process.stdout
    try:
        async with process.stdin, answers:
            for seed in remaining:
                if trio.current_time() >= until:
                    break
                await process.stdin.send_all(b"%d\n" % seed)
                answer = bytearray()
                while not answer.endswith(b"\n"):
                    piece = await answers.receive_some()
                    if not piece:
                        raise ProcessFailed(f"the process that ran seed {seed} has ended")
                    answer += piece
                take(Report(**orjson.loads(answer)))
        await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):  # it was killed: this takes no time
            await process.wait()
