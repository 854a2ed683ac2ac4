"""One run: a real server on a network in memory, its workers, and what must hold when all is over."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from ...server.app import Server
from ...stream.session import Identity, StreamSession
from ..clock import run_seeded
from ..engines import ScriptedEngine, inline_offload
from ..network import Network
from .actor import Actor
from .faults import scenario_models
from .scenario import Scenario
from .trace import Trace

EPOCH_MS: Final = 1_700_000_000_000
"""The wall clock when a run begins."""

AFTERMATH_S: Final = 120.0
"""So long after the last worker and its grace nothing is left, not even a half-open connection or a call."""

STOPS_WITHIN_S: Final = 60.0
"""A server has stopped so long after the time it may drain: with `flush_timeout_s` and calls that end late."""

POOLS: Final = ("decode", "asr", "translation", "tts", "stretch", "encode")


@frozen
class Outcome:
    """What came of a run.

    Attributes:
        violations: of the contract, or of what a run must leave behind; none, or the server is wrong.
        counts: how often what happened.
        virtual_s: how long it was for those in it.
    """

    seed: int
    violations: tuple[str, ...]
    counts: Counter[str]
    virtual_s: float
    trace: Trace


def simulate(scenario: Scenario) -> Outcome:
    """Run a scenario to its end. The same scenario has the same outcome, down to the last line of its trace."""
    world = _World(scenario)
    gc.collect()
    gc.freeze()  # what was there before is none of this run's business
    try:
        with world.trace.of_log():
            run_seeded(world.run, seed=scenario.seed)
    except BaseExceptionGroup as crash:
        world.violations.append(f"the server crashed: {crash!r}: {_leaves(crash)}")
    finally:
        gc.unfreeze()
    return world.outcome()


def _leaves(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [repr(error)]


@define(eq=False)
class _World:
    scenario: Scenario
    trace: Trace = field(factory=Trace)
    counts: Counter[str] = field(factory=Counter)
    violations: list[str] = field(factory=list)
    virtual_s: float = 0.0
    actors: list[Actor] = field(factory=list)

    async def run(self) -> None:
        scenario, network = self.scenario, Network()
        models = scenario_models(scenario, self.trace, self.counts)
        settings = evolve(
            scenario.settings,
            asr_slots=scenario.asr.slots,
            translation_slots=scenario.translation.slots,
            tts_slots=scenario.tts.slots,
        )
        server = Server(settings, models, identity=_identity(), offload=inline_offload, listen=network.listen)
        draining, stopped = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._serve, server, stopped)
            async with trio.open_nursery() as companions:
                companions.start_soon(self._watch, server)
                companions.start_soon(self._terminate, server, draining)
                for plan in scenario.workers:
                    self.actors.append(Actor(plan, scenario, network, self.trace, self.counts, draining))
                async with trio.open_nursery() as workers:
                    for actor in self.actors:
                        workers.start_soon(actor.run)
                if not draining.is_set():
                    await trio.sleep(settings.resume_grace_s + settings.recovery_s + AFTERMATH_S)
                    self._check_idle(server, "when all workers were gone")
                companions.cancel_scope.cancel()
            self._stop(server, draining)
            with trio.move_on_after(settings.drain_timeout_s + STOPS_WITHIN_S):
                await stopped.wait()
            if not stopped.is_set():
                self.violations.append("the server does not stop")
            nursery.cancel_scope.cancel()
        self.virtual_s = trio.current_time()
        self._check_idle(server, "when the server had stopped")

    async def _serve(self, server: Server, stopped: trio.Event, *, task_status: trio.TaskStatus[int]) -> None:
        await server.run(task_status=task_status)
        stopped.set()

    async def _terminate(self, server: Server, draining: trio.Event) -> None:
        await trio.sleep_until(self.scenario.drain_at_s)
        self.counts["drains"] += 1
        self._stop(server, draining)

    def _stop(self, server: Server, draining: trio.Event) -> None:
        if not draining.is_set():
            self.trace.add("world", "SIGTERM")
            draining.set()
            for actor in self.actors:
                actor.hear_of_drain()
            server.stop.set()

    async def _watch(self, server: Server) -> None:
        """What must hold at every moment."""
        most = sum(actor.terms.critical for actor in self.actors)
        while True:
            await trio.sleep(1.0)
            if (in_flight := _gauge(server, "sts_fragments_in_flight")) > most:
                self.violations.append(f"{in_flight:.0f} fragments are in flight, {most} at most may be")
                return

    def _check_idle(self, server: Server, when: str) -> None:
        """Nothing is left behind."""
        for name in ("sts_fragments_in_flight", "sts_streams_active", "sts_connections"):
            if (value := _gauge(server, name)) != 0:
                self.violations.append(f"{name} is {value:.0f} {when}")
        for pool in POOLS:
            if (value := _gauge(server, "sts_pool_busy_slots", pool=pool)) != 0:
                self.violations.append(f"{value:.0f} slots of {pool} are busy {when}")
        assert server.models is not None
        for engine in (server.models.asr, server.models.translation, server.models.tts):
            assert isinstance(engine, ScriptedEngine)
            if engine.running or engine.overlapping_calls:
                self.violations.append(f"{engine.name}: {engine.running} running, {engine.overlapping_calls} at once")

    def outcome(self) -> Outcome:
        """To be called when the run is over and nothing of it is referred to any more."""
        gc.collect()
        left = sum(isinstance(thing, StreamSession) for thing in gc.get_objects())
        if left:
            self.violations.append(f"{left} sessions are still in memory")
        for actor in self.actors:
            name = actor.plan.stream_id
            self.violations += [f"{name}: {problem}" for problem in actor.problems]
            for number, ledger in enumerate(actor.ledgers):
                self.violations += [f"{name}, session {number}: {rule}" for rule in ledger.violations]
                self.counts["results"] += ledger.first_results
        self.violations += self.trace.defects
        return Outcome(self.scenario.seed, tuple(self.violations), self.counts, self.virtual_s, self.trace)


def _gauge(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(name, labels) or 0.0


def _identity() -> Identity:
    """Ids that count up, and the clock of the run."""
    ids, secrets = itertools.count(1), itertools.count(1)
    return Identity(
        new_id=lambda: f"id-{next(ids)}",
        new_secret=lambda: f"secret-{next(secrets)}",
        wall_ms=lambda: EPOCH_MS + round(trio.current_time() * 1000),
    )
