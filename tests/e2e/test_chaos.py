"""Nothing lost, nothing twice, nothing left behind: workers are killed, and the network cuts, stalls and loses.

Six workers, each a process, dub tones through a proxy that resets, closes, stalls, delays and slows their connections;
now and then one of them is killed with SIGKILL and started again. A seventh is killed and never comes back. The server
is a process, too, with engines that fail and hang. It goes on until there were 200 reconnections, then the weather
clears and everybody finishes.

``STS_CHAOS_RECONNECTIONS=5000 STS_CHAOS_SEED=7 pytest tests/e2e/test_chaos.py`` runs longer. The seed decides what
meets each connection and who is killed; when that happens is up to the machine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import pytest
import structlog
import trio
from attrs import asdict, define, field

from sts_trio import audio
from sts_trio.testing.figures import Figures, read_figures
from sts_trio.testing.process import ServerProcess, server_process
from sts_trio.testing.proxy import Ending, Fate, Proxy, open_proxy, seeded_fates
from sts_trio.testing.tones import tone

from . import journal
from .chaos_worker import Options

log = structlog.get_logger(__name__)

RECONNECTIONS = int(os.environ.get("STS_CHAOS_RECONNECTIONS", "200"))
SEED = int(os.environ.get("STS_CHAOS_SEED", "1"))

CHAOS_TIMEOUT_S = 120 + RECONNECTIONS / 2
FINISH_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 30.0
REAP_TIMEOUT_S = 10.0
BETWEEN_KILLS_S = (0.4, 1.6)
VANISHES_AFTER_S = 8.0

MEMORY_TOLERANCE_BYTES = 24 * 2**20
"""Beyond what the server held after a calm round. A round that kept each result it sends would be over it: about 1,000
of them, 32 kB of sound each and its base64."""

FAULTS = ("--seed", str(SEED), "--delay", "0.02:0.08", "--speech", "0.9:1.25", "--failures", "0.03", "--hangs", "0.002")
SETTINGS = {
    "MAX_CONCURRENT_STREAMS": "7",
    "RESUME_GRACE_S": "10",
    "STS_PING_INTERVAL_S": "1",  # so that a connection that is half-open is soon known to be
    "STS_PING_TIMEOUT_S": "1.5",
    "STS_HANDSHAKES_PER_S": "1000",
    "LOG_LEVEL": "INFO",
}

WEATHER = (
    *[Fate(Ending.RESET, after_bytes=150_000)] * 4,
    *[Fate(Ending.CLOSE, after_bytes=150_000)] * 4,
    Fate(Ending.RESET, after_bytes=1_000),  # while it is being opened
    Fate(Ending.STALL, after_bytes=100_000),
    Fate(Ending.STALL_UP, after_bytes=100_000),
    Fate(Ending.STALL_DOWN, after_bytes=100_000),
    Fate(Ending.STALL, after_bytes=100_000, stall_s=0.5),
    Fate(Ending.RESET, after_bytes=200_000, delay_s=0.02),
    Fate(Ending.CLOSE, after_bytes=100_000, bytes_per_s=300_000),
)
CALM = (Fate(),)

WORKERS: Final[dict[str, dict[str, Any]]] = {
    "resuming": {"audio": "pcm"},
    "binary": {"audio": "binary"},
    "m4a": {"audio": "m4a", "interval_s": 0.4},
    "greedy": {"window": 14, "interval_s": 0.1},  # over what the server takes: it is refused now and then
    "existing": {"resumes": False},
    "client": {},
}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@define(eq=False)
class Round:
    """Workers at work, from their first connection to their last word."""

    folder: Path = field(converter=_made)
    media: Path
    port: int
    processes: dict[str, trio.Process] = field(factory=dict, init=False)
    kills: Counter[str] = field(factory=Counter, init=False)

    @property
    def finish(self) -> Path:
        return self.folder / "finish"

    def entries(self, name: str) -> list[journal.Entry]:
        return journal.read(self.folder / f"{name}.jsonl")

    def connections(self) -> int:
        """Streams opened or taken up again."""
        return sum(entry["what"] == "ready" for name in WORKERS for entry in self.entries(name))

    async def keep_alive(self, name: str, seed: int) -> None:
        """Run a worker, and run it again when it was killed, until it has come to its end."""
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            async with self.running(name, seed) as process:
                self.processes[name] = process
                code = await process.wait()
        del self.processes[name]
        assert code == 0, f"{name}:\n{(self.folder / f'{name}.log').read_text()[-2_000:]}"

    async def vanish(self) -> None:
        """A worker that dies in the middle of its work and never comes back."""
        async with self.running("vanishing", seed=0):
            await trio.sleep(VANISHES_AFTER_S)

    @asynccontextmanager
    async def running(self, name: str, seed: int) -> AsyncIterator[trio.Process]:
        """A worker that is killed when the context ends, and reaped: who only kills it leaves its descriptor open."""
        options = Options(
            port=self.port,
            name=name,
            seed=seed,
            journal=str(self.folder / f"{name}.jsonl"),
            finish=str(self.finish),
            media=str(self.media),
            **WORKERS.get(name, {}),
        )
        module = "chaos_client_worker" if name == "client" else "chaos_worker"
        command = [sys.executable, "-m", f"{__package__}.{module}", json.dumps(asdict(options))]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = await trio.lowlevel.open_process(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            with trio.move_on_after(REAP_TIMEOUT_S, shield=True):
                await process.wait()

    async def kill(self, random: Random) -> None:
        """SIGKILL now for one of the workers, now for another."""
        while True:
            await trio.sleep(random.uniform(*BETWEEN_KILLS_S))
            if not self.processes:  # on a busy machine the first of them takes longer to start
                continue
            name = random.choice(sorted(self.processes))
            self.processes[name].kill()
            self.kills[name] += 1


@asynccontextmanager
async def workers(folder: Path, media: Path, proxy: Proxy) -> AsyncIterator[Round]:
    """All workers; leaving the context lets them finish."""
    work = Round(folder, media, proxy.port)
    async with trio.open_nursery() as nursery:
        for seed, name in enumerate(WORKERS):
            nursery.start_soon(work.keep_alive, name, seed)
        yield work
        work.finish.touch()
        nursery.cancel_scope.deadline = trio.current_time() + FINISH_TIMEOUT_S
    assert not nursery.cancel_scope.cancelled_caught, f"{sorted(work.processes)} did not finish"


async def idle(server: ServerProcess, until: Callable[[Figures], bool] = lambda _: True) -> Figures:
    """The server's figures once nobody is there, and `until` holds, as it must in the end."""
    figures = await trio.to_thread.run_sync(read_figures, server)
    with trio.move_on_after(SETTLE_TIMEOUT_S):
        while not (figures.is_idle and until(figures)):
            await trio.sleep(0.5)
            figures = await trio.to_thread.run_sync(read_figures, server)
    return figures


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """It must have logged no error in the end, and stop in order."""
    log = tmp_path / "server.log"
    with server_process(log, faults=FAULTS, **SETTINGS) as running:
        yield running
    assert b'"level":"error"' not in log.read_bytes(), log.read_text()


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(journal.PITCHES):
        pitch = journal.pitch_of(0, number)
        mono = tone(pitch, 1.0, 48_000)
        (folder / f"{pitch}.m4a").write_bytes(audio.encode(np.stack([mono, mono], axis=1), 48_000, "m4a"))
    return folder


@pytest.mark.slow
async def test_chaos(tmp_path: Path, server: ServerProcess, media: Path) -> None:
    random = Random(SEED)
    await trio.sleep(2)  # the connection that asked whether it is healthy lingers
    fresh = await idle(server)
    async with open_proxy(server.port, seeded_fates(SEED, CALM)) as proxy:
        async with workers(tmp_path / "calm", media, proxy) as calm:
            await trio.sleep(4)
        check(calm)
        used = await idle(server)

        proxy.next_fate = seeded_fates(SEED, WEATHER)
        async with workers(tmp_path / "chaos", media, proxy) as chaos, trio.open_nursery() as nursery:
            nursery.start_soon(chaos.vanish)
            nursery.start_soon(chaos.kill, random)
            with trio.fail_after(CHAOS_TIMEOUT_S):
                while chaos.connections() < len(WORKERS) + RECONNECTIONS:  # noqa: ASYNC110 - others write them
                    await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
            proxy.next_fate = seeded_fates(SEED, CALM)
            proxy.reset_all()
        report(chaos, proxy)
        check(chaos)
    after = await idle(server, lambda now: (now.tasks, now.fds) == (fresh.tasks, fresh.fds))
    log.info("figures", fresh=fresh, used=used, after=after)
    assert after.is_idle
    assert (after.tasks, after.fds) == (fresh.tasks, fresh.fds)
    assert after.rss_bytes < used.rss_bytes + MEMORY_TOLERANCE_BYTES


def check(work: Round) -> None:
    found = {name: journal.violations(work.entries(name), seed) for seed, name in enumerate(WORKERS)}
    assert not any(found.values()), found


def report(work: Round, proxy: Proxy) -> None:
    """For who wants to know what it was that nothing was lost in (``pytest -s``)."""
    happened: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    for name in WORKERS:
        for entry in work.entries(name):
            happened[entry["what"]] += 1
            if entry["what"] in ("result", "refused") and entry["code"]:
                codes[entry["code"]] += 1
    log.info(
        "chaos",
        connections=work.connections(),
        tried=proxy.accepted,
        ended={ending.name: count for ending, count in proxy.ended.items()},
        kills=work.kills.total(),
        happened=dict(happened),
        codes=dict(codes),
    )
