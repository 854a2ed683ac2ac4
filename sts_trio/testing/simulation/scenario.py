"""What happens in a run: plain values, made from a seed or written by hand.

A seed decides how good the engines and the network are, who the workers are and how they behave; the chances in a plan
are drawn while the run goes on, from the seed, too.
"""

from __future__ import annotations

import math
import random
from typing import Final

from attrs import asdict, evolve, field, frozen
from attrs.validators import and_, deep_iterable, ge, gt, in_, le, min_len

from ...config import Settings
from ..network import Quality

SLOT_MS: Final = 200
"""Of a fragment: short, since the audio is of no interest here."""

SECONDS_PER_FRAGMENT: Final = 6.0
"""The pace of a live worker."""

KINDS: Final = ("cut", "kill", "stall", "half_open", "slow", "garbage")
"""Of trouble."""


def _chance() -> float:
    return field(default=0.0, validator=and_(ge(0), le(1)))


@frozen
class EnginePlan:
    """How one of the three models behaves. Chances are per request.

    Attributes:
        delays_s: a call takes one of these.
        failures: fails in one of the ways that the contract has a code for.
        exhaustions: `GPU_OOM`.
        defects: raises what no engine should.
        hangs: never ends until it is cancelled.
        stubborn_s: ends only so long after it was cancelled, as a native call does that looks seldom.
        outage: between these times (seconds) every call fails.
        max_batch: of the ASR; the others take one request at a time.
    """

    delays_s: tuple[float, ...] = field(default=(0.1,), validator=min_len(1))
    failures: float = _chance()
    exhaustions: float = _chance()
    defects: float = _chance()
    hangs: float = _chance()
    stubborn_s: float = 0.0
    outage: tuple[float, float] = (math.inf, math.inf)
    max_batch: int = 1
    slots: int = 1


@frozen
class Manners:
    """What a worker does beside sending one fragment after the other. Chances are per turn.

    Attributes:
        skips: leaves numbers out. `swaps`: sends the next but one first.
        repeats: sends a fragment again that it has sent before. `retries`: one that was refused or failed for now.
        malformed: a fragment with a wrong field. `undecodable`: one that is no audio.
        pauses: pauses the stream for a few turns.
        restarts: opens the stream afresh. `rivals`: another worker tries to take it.
        acknowledges: per result.
        resumes: knows about `resume`; else it starts afresh after a lost connection, as existing workers do.
        obeys: slows down when it is told to.
        bursts: sends several at once.
        leaves: hangs up politely and comes back.
        deserts: is gone without a word, and never comes back.
    """

    skips: float = _chance()
    swaps: float = _chance()
    repeats: float = _chance()
    retries: float = _chance()
    malformed: float = _chance()
    undecodable: float = _chance()
    pauses: float = _chance()
    restarts: float = _chance()
    rivals: float = _chance()
    acknowledges: float = 1.0
    resumes: bool = True
    obeys: bool = True
    bursts: float = _chance()
    leaves: float = _chance()
    deserts: float = _chance()


@frozen
class Trouble:
    """What befalls a worker's connections.

    Attributes:
        every_s: mean time between two troubles; infinite: none.
        kinds: of `KINDS`.
        away_s: it comes back after one of these.
    """

    every_s: float = math.inf
    kinds: tuple[str, ...] = field(default=("cut",), validator=[min_len(1), deep_iterable(in_(KINDS))])
    away_s: tuple[float, ...] = field(default=(0.0, 0.5, 5.0), validator=min_len(1))


@frozen
class WorkerPlan:
    """One worker and its stream.

    Attributes:
        pace_s: mean time between fragments.
        binary: audio travels as attachments.
    """

    stream_id: str
    fragments: int = field(validator=ge(0))
    pace_s: float = field(validator=gt(0))
    start_s: float = field(default=0.0, validator=ge(0))
    max_inflight: int = field(default=3, validator=[ge(1), le(10)])
    timeout_s: float = field(default=8.0, validator=[ge(1), le(30)])
    binary: bool = False
    manners: Manners = field(factory=Manners)
    trouble: Trouble = field(factory=Trouble)
    quality: Quality = field(factory=Quality)


@frozen
class Scenario:
    """All of a run.

    Attributes:
        settings: of the server. The slots of the models are those of the plans. Limits of who may connect are no use:
            the workers do not expect to be turned away.
        drain_at_s: SIGTERM comes; infinite: when all workers are done.
    """

    seed: int
    settings: Settings
    asr: EnginePlan
    translation: EnginePlan
    tts: EnginePlan
    workers: tuple[WorkerPlan, ...]
    drain_at_s: float = math.inf

    def __attrs_post_init__(self) -> None:
        if len({worker.stream_id for worker in self.workers}) < len(self.workers):
            raise ValueError("two workers have one stream_id")
        if self.settings.api_key is not None:
            raise ValueError("settings.api_key: the workers of a scenario have no token")

    @classmethod
    def of_seed(cls, seed: int, *, streams: int | None = None, hours: float | None = None) -> Scenario:
        """
        Args:
            streams: how many; by default the seed decides.
            hours: how long each lasts, at a live worker's pace; by default the seed decides, a few minutes.
        """
        chance = random.Random(f"scenario {seed}")
        count = streams or chance.choice((1, 1, 2, 3, 5))
        settings = Settings(
            max_concurrent_streams=max(count, chance.choice((2, 5))),
            resume_grace_s=chance.choice((5.0, 30.0)),
            gap_timeout_ms=chance.choice((None, 0, 500, 20_000)),
            fallback_mode=chance.choice(("silence", "original")),
            result_buffer_bytes=chance.choice((8_000, 20_000, 2**25, 2**25)),
            backpressure_critical=chance.choice((None, None, 2, 5)),
            drain_timeout_s=chance.choice((0.0, 1.0, 30.0)),
            stream_buffer_bytes=chance.choice((2**20, 2**26, 2**26)),
            recovery_s=chance.choice((0.0, 0.0, 0.0, 20.0)),
            handshakes_per_s=10_000.0,
        )
        speed = chance.choice((0.05, 0.3, 1.0))
        plans = [_engine_plan(chance, speed) for _ in range(3)]
        workers = tuple(_worker_plan(chance, f"s{number}", hours) for number in range(count))
        drains = hours is None and chance.random() < 0.25
        return cls(
            seed,
            settings,
            evolve(plans[0], slots=chance.choice((1, 2)), max_batch=chance.choice((1, 4))),
            evolve(plans[1], slots=4),
            evolve(plans[2], slots=chance.choice((1, 2))),
            workers,
            drain_at_s=chance.uniform(0, 60) if drains else math.inf,
        )

    def lines(self) -> list[str]:
        """The plan, for people; of the settings those that are not the defaults."""
        plain = Settings()
        changed = {name: value for name, value in asdict(self.settings).items() if getattr(plain, name) != value}
        return [
            f"settings     {changed}",
            f"asr          {self.asr}",
            f"translation  {self.translation}",
            f"tts          {self.tts}",
            *(f"worker       {worker}" for worker in self.workers),
            f"drain at     {self.drain_at_s} s",
        ]


def _engine_plan(chance: random.Random, speed: float) -> EnginePlan:
    plan = EnginePlan(delays_s=tuple(speed * delay for delay in (0.0, 0.1, 0.5, 1.0, 3.0)))
    match chance.choice(("good", "flaky", "hanging", "exhausted", "down", "stubborn")):
        case "flaky":
            return evolve(plan, failures=0.05, defects=0.03)
        case "hanging":
            return evolve(plan, hangs=chance.choice((0.02, 0.1)))
        case "exhausted":
            return evolve(plan, exhaustions=0.1)
        case "down":
            start = chance.uniform(0, 30)
            return evolve(plan, outage=(start, start + chance.choice((5.0, 60.0))))
        case "stubborn":
            return evolve(plan, hangs=0.05, stubborn_s=chance.choice((0.5, 10.0)))
        case _:
            return plan


def _worker_plan(chance: random.Random, stream_id: str, hours: float | None) -> WorkerPlan:
    pace_s = SECONDS_PER_FRAGMENT if hours is not None else chance.choice((0.05, 0.5, 2.0, SECONDS_PER_FRAGMENT))
    fragments = chance.choice((5, 30, 80)) if hours is None else max(1, round(hours * 3600 / pace_s))
    return WorkerPlan(
        stream_id,
        fragments,
        pace_s,
        start_s=chance.choice((0.0, 0.0, chance.uniform(0, 20))),
        max_inflight=chance.choice((1, 2, 3, 3, 10)),
        timeout_s=chance.choice((1.0, 3.0, 8.0)),
        binary=chance.choice((False, False, True)),
        manners=_manners(chance),
        trouble=_trouble(chance, pace_s * fragments),
        quality=Quality(chance.choice((0.0, 0.02, 0.3)), chance.choice((math.inf, 2_000_000.0, 100_000.0))),
    )


def _manners(chance: random.Random) -> Manners:
    match chance.choice(("live", "existing", "careless", "unruly")):
        case "live":
            return Manners(retries=0.05)
        case "existing":
            return Manners(acknowledges=0.0, resumes=False, obeys=False, bursts=0.1)
        case "careless":
            return Manners(
                skips=0.05,
                swaps=0.05,
                repeats=0.05,
                malformed=0.05,
                undecodable=0.05,
                acknowledges=chance.choice((0.0, 0.5)),
                deserts=chance.choice((0.0, 0.03)),
            )
        case _:
            return Manners(
                skips=0.08,
                swaps=0.08,
                repeats=0.15,
                retries=0.15,
                malformed=0.05,
                undecodable=0.05,
                pauses=0.03,
                restarts=0.01,
                rivals=0.03,
                acknowledges=chance.choice((0.0, 0.5, 1.0)),
                obeys=False,
                bursts=0.2,
                leaves=0.03,
                deserts=chance.choice((0.0, 0.01)),
            )


def _trouble(chance: random.Random, length_s: float) -> Trouble:
    return Trouble(
        every_s=chance.choice((math.inf, max(2.0, length_s / 3), max(1.0, length_s / 10))),
        kinds=tuple(chance.sample(KINDS, chance.randint(1, len(KINDS)))),
        away_s=chance.choice(((0.0, 0.5), (0.0, 1.0, 4.0), (0.0, 4.0, 60.0))),
    )
