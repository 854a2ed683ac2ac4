"""One run: a real server on a network in memory, its workers, and what must hold when all is over."""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from ...stream.session import StreamSession
from ..clock import run_seeded
from ..virtual import VirtualServer, virtual_server
from .actor import Actor
from .faults import scenario_models
from .scenario import Scenario
from .trace import Trace

AFTERMATH_S: Final = 120.0
"""So long after the last worker and its grace nothing is left, not even a half-open connection or a call."""


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
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("simulate() runs trio itself: call it from a test that is not async")
    world = _World(scenario)
    gc.collect()
    gc.freeze()  # what was there before is none of this run's business
    try:
        _run(world)
        return world.outcome()
    finally:
        gc.unfreeze()


def _run(world: _World) -> None:
    try:
        with world.trace.of_log():
            run_seeded(world.run, seed=world.scenario.seed)
    except Exception as crash:  # noqa: BLE001 - whatever it is, it is what came of the run
        world.violations += _leaves(crash)


def _leaves(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return ["".join(traceback.format_exception(error)).rstrip()]


@define(eq=False)
class _World:
    scenario: Scenario
    trace: Trace = field(factory=Trace)
    counts: Counter[str] = field(factory=Counter)
    violations: list[str] = field(factory=list)
    virtual_s: float = 0.0
    actors: list[Actor] = field(factory=list)

    async def run(self) -> None:
        scenario = self.scenario
        models = scenario_models(scenario, self.trace, self.counts)
        settings = evolve(
            scenario.settings,
            asr_slots=scenario.asr.slots,
            translation_slots=scenario.translation.slots,
            tts_slots=scenario.tts.slots,
        )
        draining = trio.Event()
        async with virtual_server(models, settings) as server, trio.open_nursery() as companions:
            companions.start_soon(self._watch, server)
            companions.start_soon(self._terminate, server, draining)
            for plan in scenario.workers:
                self.actors.append(Actor(plan, scenario, server.network, self.trace, self.counts, draining))
            async with trio.open_nursery() as workers:
                for actor in self.actors:
                    workers.start_soon(actor.run)
            if not draining.is_set():
                await trio.sleep(settings.resume_grace_s + settings.recovery_s + AFTERMATH_S)
                self.violations += [f"{left}, when all workers are gone" for left in server.left_behind()]
            companions.cancel_scope.cancel()
            self.virtual_s = trio.current_time()

    async def _terminate(self, server: VirtualServer, draining: trio.Event) -> None:
        """Stop the server while its workers are there."""
        await trio.sleep_until(self.scenario.drain_at_s)
        self.counts["drains"] += 1
        self.trace.add("world", "SIGTERM")
        draining.set()
        for actor in self.actors:
            actor.hear_of_drain()
        server.server.stop.set()

    async def _watch(self, server: VirtualServer) -> None:
        """What must hold at every moment."""
        most = sum(actor.terms.critical for actor in self.actors)
        registry = server.server.metrics.registry
        while True:
            await trio.sleep(1.0)
            if (in_flight := registry.get_sample_value("sts_fragments_in_flight") or 0.0) > most:
                self.violations.append(f"{in_flight:.0f} fragments are in flight, {most} at most may be")
                return

    def outcome(self) -> Outcome:
        """To be called when the run is over and nothing of it is referred to any more."""
        gc.collect()
        left = sum(type(thing) is StreamSession for thing in gc.get_objects())
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
