"""Hours of live streams in minutes, over real sockets: does the server's memory stay flat, and is nothing lost?

    python benchmarks/soak.py --minutes 30 --streams 5 [--speed 5] [--out build/soak]

The server is a process of its own with engines that cost next to nothing (`sts_trio.testing.serve`); this process has
the workers. Each sends fragments of 6 s, PCM or m4a, `--speed` times as fast as a live programme would. Streams end and
others begin, connections are cut and taken up again, some calls fail and a few hang, and half of the workers never
acknowledge a result, as existing ones do.

Every few seconds goes into ``samples.csv``: memory, descriptors, threads, tasks, blocks of Python's memory, gauges. The
table at the end has the slope of memory over time by least squares. Its standard error is widened for samples that
resemble their neighbours (first-order autocorrelation). Of the last two thirds it says whether memory grows by more
than `--max-slope` MiB an hour: it does where the slope less two standard errors is over that, it is flat where the
slope and two standard errors are not. Between these the run was too short, or the machine too busy, to tell.

Exit status 1: something was lost, came twice, out of order or with the wrong sound; something is left in the end; or
memory grows. 2: none of these, but whether memory grows cannot be told.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import trio
from attrs import astuple, define, field, fields
from rich.console import Console
from rich.table import Table

from protocol.dubbing import (
    Audio,
    ErrorEvent,
    FragmentAck,
    FragmentData,
    FragmentProcessed,
    ResultAck,
    Resume,
    ServerEvent,
    StreamComplete,
    StreamConfig,
    StreamEnd,
    StreamInit,
    StreamReady,
)
from sts_trio import audio
from sts_trio.client.connection import Address, Connection, ConnectionLost, DubbingError
from sts_trio.testing.figures import Figures, read_figures
from sts_trio.testing.process import ServerProcess, server_process
from sts_trio.testing.tones import tone
from sts_trio.testing.trend import Trend, slope

FRAGMENT_MS: Final = 6_000
TIMEOUT_MS: Final = 8_000
WINDOW: Final = 6
PITCHES: Final = tuple(range(300, 1_500, 100))

LIFE_S: Final = (60.0, 180.0)
"""From a stream's beginning to its end."""
CONNECTION_S: Final = (10.0, 60.0)
"""From a connection's beginning to its cut."""
AWAY_S: Final = (0.1, 2.0)
ANSWER_S: Final = 30.0
"""For a server that says nothing any more while it owes something."""

MAX_BROKEN: Final = 3
"""Connections that end although nobody has cut them, before a stream is given up."""

SAMPLE_S: Final = 3.0
WARM_UP: Final = 0.2
"""Of the run, before the slope is looked at: every thread has its arena, every buffer has been full once."""

IDLE_S: Final = 8.0
"""Until nothing is left of the last connection: the server gives it 5 s after ``stream:complete``."""

SCRAPES_AT_REST: Final = 10

FAULTS: Final = ("--delay", "0.02:0.15", "--speech", "0.9:1.22", "--failures", "0.01", "--hangs", "0.0005")

MIB: Final = 2**20


@define
class Kind:
    """How a worker sends: `binary` as attachments, `acks` whether it acknowledges results."""

    format: str
    rate_hz: int
    channels: int
    binary: bool
    acks: bool

    def sounds(self) -> list[Audio]:
        """A fragment of each pitch."""
        made = []
        for pitch in PITCHES:
            samples = np.stack([tone(pitch, FRAGMENT_MS / 1000, self.rate_hz)] * self.channels, axis=1)
            data = audio.encode(samples, self.rate_hz, self.format)
            made.append(Audio(self.format, self.rate_hz, self.channels, FRAGMENT_MS, data, self.binary))
        return made


KINDS: Final = (
    Kind("pcm_s16le", 16_000, 1, binary=False, acks=False),
    Kind("m4a", 48_000, 2, binary=False, acks=True),
    Kind("pcm_s16le", 16_000, 1, binary=True, acks=True),
    Kind("m4a", 16_000, 1, binary=False, acks=False),
)


@define
class Tally:
    """What became of all fragments."""

    done: int = 0
    failed: int = 0
    lost: int = 0
    twice: int = 0
    out_of_order: int = 0
    wrong: int = 0
    refused: int = 0
    broken: int = 0
    streams: int = 0
    reconnections: int = 0
    again: int = 0  # after a reconnection, as they may
    latencies_ms: list[float] = field(factory=list)

    @property
    def faults(self) -> int:
        return self.lost + self.twice + self.out_of_order + self.wrong + self.refused + self.broken


@define(eq=False)
class Life:
    """One stream, from its beginning to its end, over as many connections as it takes."""

    address: Address
    name: str
    kind: Kind
    sounds: list[Audio]
    interval_s: float
    tally: Tally
    end_at: float
    session_id: str | None = field(default=None, init=False)
    number: int = field(default=0, init=False)  # of the next fragment
    open: dict[int, float] = field(factory=dict, init=False)  # without a result, and when it was sent
    accepted: set[int] = field(factory=set, init=False)
    acknowledged: set[int] = field(factory=set, init=False)  # over this connection
    may_come_again: set[int] = field(factory=set, init=False)
    complete: StreamComplete | None = field(default=None, init=False)
    changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)

    async def live(self, random: Random) -> None:
        """Dub until its time is over, then complete."""
        broken = 0
        while self.complete is None and broken < MAX_BROKEN:
            cut_at = trio.current_time() + random.uniform(*CONNECTION_S)
            try:
                await self.converse(cut_at if cut_at < self.end_at else math.inf)
            except* (DubbingError, trio.TooSlowError) as group:  # nobody has cut it
                print(f"{self.name}: {group.exceptions}", file=sys.stderr)
                self.tally.broken += 1
                broken += 1
            self.may_come_again = self.acknowledged  # where the acknowledgement was lost
            self.acknowledged = set()
            if self.complete is None:
                self.tally.reconnections += 1
                await trio.sleep(random.uniform(*AWAY_S))
        counted = self.complete is not None and self.complete.total_fragments == self.number
        self.tally.lost += len(self.open) or (not counted)
        self.tally.streams += 1

    async def converse(self, cut_at: float) -> None:
        """One connection, until the stream is complete or it is cut."""
        async with trio.open_nursery() as nursery:
            connection = Connection(self.address)
            with trio.CancelScope(deadline=cut_at) as scope:
                await nursery.start(connection.run)
                await connection.send(self.init())
                ready = await self.next_event(connection)
                if not isinstance(ready, StreamReady):
                    raise ConnectionLost(self.address.url, f"no stream: {ready}")
                self.session_id = ready.session_id
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(self.send, connection)
                    while self.complete is None:
                        acknowledgement = self.take(await self.next_event(connection))
                        if acknowledgement is not None:
                            await connection.send(acknowledgement)
                    tasks.cancel_scope.cancel()
                await connection.close()
            if scope.cancelled_caught:
                nursery.cancel_scope.cancel()  # closes the socket, whatever is on its way

    def init(self) -> StreamInit:
        kind = self.kind
        config = StreamConfig("en", "es", "default", FRAGMENT_MS, kind.rate_hz, kind.channels, kind.format)
        resume = None
        if self.session_id is not None:
            resume = Resume(self.session_id, None if kind.acks else min(self.open, default=self.number))
        return StreamInit(self.name, self.name, config, timeout_ms=TIMEOUT_MS, resume=resume)

    async def next_event(self, connection: Connection) -> ServerEvent:
        with trio.fail_after(ANSWER_S):
            return await connection.receive()

    async def send(self, connection: Connection) -> None:
        for number in sorted(set(self.open) - self.accepted):
            self.may_come_again.add(number)  # once for what it was, and once because it was asked for again
            await connection.send(self.fragment(number))
        self.open = dict.fromkeys(self.open, math.nan)  # a time over two connections says nothing
        due = trio.current_time()
        while trio.current_time() < self.end_at:
            while len(self.open) >= WINDOW:
                await self.changed.park()
            number, self.number = self.number, self.number + 1
            self.open[number] = trio.current_time()
            await connection.send(self.fragment(number))
            due = max(due + self.interval_s, trio.current_time())
            await trio.sleep_until(due)
        while self.open:
            await self.changed.park()
        await connection.send(StreamEnd(self.name))

    def fragment(self, number: int) -> FragmentData:
        sound = self.sounds[number % len(PITCHES)]
        return FragmentData(f"{self.name}-{number}", self.name, number, time.time_ns() // 1_000_000, sound)

    def take(self, event: ServerEvent) -> ResultAck | None:
        """What has come; the answer to it, if there is one."""
        self.changed.unpark_all()
        match event:
            case FragmentAck():
                self.accepted.add(int(event.fragment_id.rpartition("-")[2]))
            case FragmentProcessed():
                self.take_result(event)
                if self.kind.acks:
                    self.acknowledged.add(event.sequence_number)
                    return ResultAck(event.fragment_id, "applied")
            case StreamComplete():
                self.complete = event
            case ErrorEvent():
                print(f"{self.name}: {event}", file=sys.stderr)
                self.tally.refused += 1
        return None

    def take_result(self, result: FragmentProcessed) -> None:
        number, tally = result.sequence_number, self.tally
        sent_at = self.open.pop(number, None)
        self.accepted.discard(number)
        if sent_at is None:
            allowed = number in self.may_come_again
            tally.again += allowed
            tally.twice += not allowed
            self.may_come_again.discard(number)
            return
        tally.done += 1
        tally.out_of_order += any(earlier < number for earlier in self.open)
        if not math.isnan(sent_at):
            tally.latencies_ms.append(1000 * (trio.current_time() - sent_at))
        if result.status == "failed":
            tally.failed += 1
        else:
            heard = re.search(r"(\d+) Hz", result.transcript or "")
            tally.wrong += heard is None or abs(int(heard[1]) - PITCHES[number % len(PITCHES)]) > 8


async def work(
    server: ServerProcess, streams: int, minutes: float, speed: float, tally: Tally, sample: Callable[[Tally], Figures]
) -> None:
    """All streams, one after the other in each place, and a sample every few seconds until all have ended."""
    address = Address.parse(server.url)
    stop_at = trio.current_time() + 60 * minutes
    sounds = [kind.sounds() for kind in KINDS]

    async def fill(place: int) -> None:
        random = Random(place)
        life = place
        while trio.current_time() < stop_at:
            end_at = min(stop_at, trio.current_time() + random.uniform(*LIFE_S))
            kind = life % len(KINDS)
            name = f"soak-{place}-{life}"
            await Life(address, name, KINDS[kind], sounds[kind], FRAGMENT_MS / 1000 / speed, tally, end_at).live(random)
            life += 1

    async def watch() -> None:
        while True:
            await trio.to_thread.run_sync(sample, tally)
            await trio.sleep(SAMPLE_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with trio.open_nursery() as lives:
            for place in range(streams):
                lives.start_soon(fill, place)
        nursery.cancel_scope.cancel()


def cpu_s(pid: int) -> float:
    """Processor time that a process has taken, its children included."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, numbers)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--streams", type=int, default=5)
    options.add_argument("--speed", type=float, default=5.0, help="times real time")
    options.add_argument("--buffer", type=int, default=8 * MIB, help="RESULT_BUFFER_BYTES, which must fill to be flat")
    options.add_argument("--max-slope", type=float, default=6.0, help="MiB an hour")
    options.add_argument("--out", type=Path, default=Path("build/soak"))
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)

    tally = Tally()
    hours: list[float] = []
    samples: list[Figures] = []
    settings = {"RESULT_BUFFER_BYTES": str(chosen.buffer), "MAX_CONCURRENT_STREAMS": str(chosen.streams)}
    with (
        server_process(chosen.out / "server.log", faults=FAULTS, LOG_LEVEL="WARNING", **settings) as server,
        (chosen.out / "samples.csv").open("w", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["seconds", *(name.name for name in fields(Figures)), "done", "faults"])
        began = time.monotonic()

        def sample(tally: Tally) -> Figures:
            figures = read_figures(server)
            seconds = time.monotonic() - began
            hours.append(seconds / 3600)
            samples.append(figures)
            rows.writerow([round(seconds, 1), *astuple(figures), tally.done, tally.faults])
            file.flush()
            return figures

        def at_rest() -> Figures:
            time.sleep(IDLE_S)
            # A scrape has tasks of its own, one more or less; what is left behind is there at each.
            return min(
                (sample(tally) for _ in range(SCRAPES_AT_REST)), key=lambda figures: (figures.fds, figures.tasks)
            )

        first = at_rest()
        working, cpu_before = time.monotonic(), cpu_s(server.process.pid)
        with suppress(KeyboardInterrupt):  # then it is the table of what there is
            trio.run(work, server, chosen.streams, chosen.minutes, chosen.speed, tally, sample)
        load = (cpu_s(server.process.pid) - cpu_before) / (time.monotonic() - working)
        measured = len(samples)
        last = at_rest()

    show(chosen, tally, hours[:measured], samples[:measured], first, last, load)


def show(
    chosen: argparse.Namespace,
    tally: Tally,
    hours: list[float],
    samples: list[Figures],
    first: Figures,
    last: Figures,
    load: float,
) -> None:
    """The table, and the exit status."""
    rss = [figures.rss_bytes / MIB for figures in samples]
    blocks = [figures.blocks / 1000 for figures in samples]
    warm, third = int(len(rss) * WARM_UP), len(rss) // 3
    growth, error = slope(hours[warm:], rss[warm:])
    late_growth, late_error = slope(hours[third:], rss[third:])
    blocks_growth, blocks_error = slope(hours[third:], blocks[third:])
    trend = Trend.of(late_growth, late_error, chosen.max_slope)
    p50, p95 = np.percentile(tally.latencies_ms, [50, 95])
    table = Table(title=f"{chosen.streams} streams, {60 * hours[-1]:.1f} minutes at {chosen.speed:g} times real time")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in (
        ("programme dubbed", f"{tally.done * FRAGMENT_MS / 3_600_000:.1f} h"),
        ("streams, reconnections", f"{tally.streams}, {tally.reconnections}"),
        ("fragments done, of these failed", f"{tally.done}, {tally.failed}"),
        ("lost", f"{tally.lost}"),
        ("twice (again after a reconnection, as they may)", f"{tally.twice} ({tally.again})"),
        ("out of order, wrong sound, refused", f"{tally.out_of_order}, {tally.wrong}, {tally.refused}"),
        ("connections broken by nobody", f"{tally.broken}"),
        ("latency p50, p95, max", f"{p50:.0f}, {p95:.0f}, {max(tally.latencies_ms):.0f} ms"),
        ("server's cores", f"{load:.2f}"),
        ("memory at start, after warm-up, at the end", f"{rss[0]:.1f}, {rss[warm]:.1f}, {rss[-1]:.1f} MiB"),
        ("memory at most, idle afterwards", f"{max(rss):.1f}, {last.rss_bytes / MIB:.1f} MiB"),
        ("slope after warm-up", f"{growth:+.2f} ± {error:.2f} MiB/h"),
        ("slope of the last two thirds", f"{late_growth:+.2f} ± {late_error:.2f} MiB/h"),
        (f"which is, for at most {chosen.max_slope:g} MiB/h", trend.value),
        ("Python's blocks, last two thirds", f"{blocks_growth:+.1f} ± {blocks_error:.1f} thousand/h"),
        ("descriptors, tasks, threads at start", f"{first.fds}, {first.tasks}, {first.threads}"),
        ("descriptors, tasks, threads afterwards", f"{last.fds}, {last.tasks}, {last.threads}"),
    ):
        table.add_row(name, value)
    Console().print(table)
    left = not last.is_idle or (last.fds, last.tasks) != (first.fds, first.tasks)
    for said, bad in (
        ("fragments were lost or spoilt", tally.faults),
        ("something is left behind", left),
        (f"memory grows by more than {chosen.max_slope:g} MiB/h", trend is Trend.GROWS),
        ("whether memory grows cannot be told: let it run for longer", trend is Trend.UNKNOWN),
    ):
        if bad:
            print(f"FAILED: {said}")
    if tally.faults or left or trend is Trend.GROWS:
        sys.exit(1)
    sys.exit(2 if trend is Trend.UNKNOWN else 0)


if __name__ == "__main__":
    main()
