"""A run is the same each time, finds nothing where nothing is wrong, and reports what is."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve, fields

from sts_trio.config import Settings
from sts_trio.testing.network import Quality
from sts_trio.testing.simulation import EnginePlan, Manners, Outcome, Scenario, Trouble, WorkerPlan, processes, simulate
from sts_trio.testing.simulation.processes import Report, Size, simulate_many

GOOD = EnginePlan()
LIVE = WorkerPlan("s0", fragments=5, pace_s=6.0)


def scenario(*workers: WorkerPlan, **changes: Any) -> Scenario:
    plain = Scenario(1, Settings(handshakes_per_s=1_000.0), GOOD, GOOD, GOOD, workers)
    return evolve(plain, **changes)


def trace(outcome: Outcome) -> str:
    return "".join(outcome.trace.lines())


def short_seeds(count: int) -> list[int]:
    """Those whose runs are soon over, although connections are lost in them."""
    found = (
        seed
        for seed in itertools.count()
        if all(worker.trouble.every_s < math.inf and worker.pace_s > 0.05 for worker in Scenario.of_seed(seed).workers)
        and sum(worker.fragments for worker in Scenario.of_seed(seed).workers) <= 35
    )
    return list(itertools.islice(found, count))


@pytest.fixture(scope="module")
def seed() -> int:
    """One of them, in which enough happens."""
    return next(seed for seed in short_seeds(20) if simulate(Scenario.of_seed(seed)).counts["resumes"])


# -------------------------------------------------------------------------------------- scenarios by hand


@pytest.mark.slow
def test_where_all_is_well_each_fragment_has_its_result() -> None:
    outcome = simulate(scenario(LIVE))
    assert outcome.violations == ()
    assert outcome.counts["fragments"] == outcome.counts["results"] == 5
    assert outcome.counts["connections"] == outcome.counts["sessions"] == outcome.counts["completed"] == 1


@pytest.mark.slow
def test_several_workers_have_a_stream_each() -> None:
    workers = [evolve(LIVE, stream_id=f"s{number}") for number in range(3)]
    outcome = simulate(scenario(*workers))
    assert outcome.violations == ()
    assert outcome.counts["results"] == 15
    assert outcome.counts["completed"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "kill", "stall", "half_open", "slow", "garbage"])
def test_no_trouble_costs_a_result(kind: str) -> None:
    """A worker that knows about `resume` has all its results, whatever happens to its connections."""
    troubled = evolve(LIVE, fragments=10, trouble=Trouble(every_s=10.0, kinds=(kind,), away_s=(1.0,)))
    outcome = simulate(scenario(troubled))
    assert outcome.violations == ()
    assert outcome.counts[kind] > 0
    assert outcome.counts["completed"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        evolve(GOOD, hangs=0.5),
        evolve(GOOD, hangs=0.5, stubborn_s=10.0),
        evolve(GOOD, failures=0.5, defects=0.2),
        evolve(GOOD, exhaustions=0.5),
        evolve(GOOD, outage=(0.0, 20.0)),
    ],
    ids=["hanging", "stubborn", "flaky", "exhausted", "down"],
)
@pytest.mark.parametrize("engine", ["asr", "translation", "tts"])
def test_no_engine_costs_a_result(engine: str, plan: EnginePlan) -> None:
    outcome = simulate(scenario(LIVE, **{engine: plan}))
    assert outcome.violations == ()
    assert outcome.counts["results"] == 5
    assert sum(count for name, count in outcome.counts.items() if name.startswith(f"{engine} ")) > 0


@pytest.mark.slow
def test_a_drain_completes_what_is_in_flight() -> None:
    outcome = simulate(scenario(evolve(LIVE, pace_s=0.05, fragments=80), drain_at_s=1.0))
    assert outcome.violations == ()
    assert outcome.counts["drains"] == 1
    assert 0 < outcome.counts["results"] < 80


@pytest.mark.slow
def test_what_was_planned_can_be_read() -> None:
    lines = scenario(LIVE, settings=Settings(resume_grace_s=5.0)).lines()
    assert "settings     {'resume_grace_s': 5.0}" in lines
    assert any("stream_id='s0'" in line for line in lines)


# -------------------------------------------------------------------------------------- the same each time


@pytest.mark.slow
def test_a_seed_has_the_same_run_each_time(seed: int) -> None:
    first = simulate(Scenario.of_seed(seed))
    simulate(Scenario.of_seed(seed + 1))
    second = simulate(Scenario.of_seed(seed))
    assert first.counts["connections lost"] > 1
    assert trace(first) == trace(second)
    assert first.trace.digest() == second.trace.digest()
    assert (first.counts, first.virtual_s) == (second.counts, second.virtual_s)


@pytest.mark.slow
def test_a_seed_has_the_same_run_in_every_process(seed: int) -> None:
    """Sets and dicts of strings are in another order in each of them."""
    command = [str(Path(sys.executable).with_name("sts-trio")), "simulate", "--seed", str(seed), "--trace"]
    seen = [
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, check=True).stdout
        for hash_seed in ("0", "1")
    ]
    assert seen[0] == seen[1]
    assert trace(simulate(Scenario.of_seed(seed))) in seen[0].decode()


@pytest.mark.slow
def test_other_seeds_have_other_runs() -> None:
    plan = scenario(evolve(LIVE, manners=Manners(repeats=0.5)))
    assert simulate(plan).trace.digest() != simulate(evolve(plan, seed=2)).trace.digest()


@pytest.mark.slow
def test_seeds_have_no_violations() -> None:
    outcomes = [simulate(Scenario.of_seed(seed)) for seed in short_seeds(6)]
    assert {outcome.seed: outcome.violations for outcome in outcomes if outcome.violations} == {}


# -------------------------------------------------------------------------------------- what seeds decide


def seeds() -> list[Scenario]:
    return [Scenario.of_seed(seed) for seed in range(300)]


def variety(plans: Iterable[Any], *left_out: str) -> dict[str, int]:
    """How many values each field has that is to have several."""
    plans = list(plans)
    names = [attribute.name for attribute in fields(type(plans[0])) if attribute.name not in left_out]
    return {name: len({repr(getattr(plan, name)) for plan in plans}) for name in names}


def test_a_seed_always_means_the_same() -> None:
    assert seeds() == seeds()


def test_seeds_decide_everything() -> None:
    scenarios = seeds()
    workers = [worker for each in scenarios for worker in each.workers]
    several = [
        variety(scenarios),
        variety(each.asr for each in scenarios),
        variety((each.translation for each in scenarios), "max_batch", "slots"),
        variety((each.tts for each in scenarios), "max_batch"),
        variety(workers),
        variety(worker.manners for worker in workers),
        variety(worker.trouble for worker in workers),
        variety(worker.quality for worker in workers),
    ]
    assert {name: count for counts in several for name, count in counts.items() if count < 2} == {}


def test_seeds_have_all_kinds_of_trouble_each_alone_and_together_with_others() -> None:
    troubles = [worker.trouble for each in seeds() for worker in each.workers if worker.trouble.every_s < math.inf]
    kinds = {kind for trouble in troubles for kind in trouble.kinds}
    assert kinds == {"cut", "kill", "stall", "half_open", "slow", "garbage"}
    assert {trouble.kinds for trouble in troubles} >= {(kind,) for kind in kinds}
    assert any(len(trouble.kinds) == len(kinds) for trouble in troubles)


def test_size_is_as_it_is_asked_for() -> None:
    sized = Scenario.of_seed(3, streams=5, hours=1.0)
    assert [worker.stream_id for worker in sized.workers] == ["s0", "s1", "s2", "s3", "s4"]
    assert {(worker.pace_s, worker.fragments) for worker in sized.workers} == {(6.0, 600)}
    assert sized.settings.max_concurrent_streams >= 5
    assert sized.drain_at_s == math.inf


def test_there_is_a_perfect_line_among_them() -> None:
    assert Quality() in {worker.quality for each in seeds() for worker in each.workers}


# -------------------------------------------------------------------------------------- many processes


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a process that runs seeds, one that ends with 3, hangs with 4, and is content with others."""
    path = tmp_path / "process"
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, sys, time\n"
        "for line in sys.stdin:\n"
        "    if (seed := int(line)) == 3: sys.exit(7)\n"
        "    if seed == 4: time.sleep(3_600)\n"
        "    print(json.dumps({'seed': seed, 'violations': [], 'counts': {'runs': 1}, 'virtual_s': 1.5}), flush=True)\n"
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(processes, "SEED_LIMIT_S", 0.5)


def reports(seeds: Iterable[int], jobs: int = 2, within_s: float = math.inf) -> list[Report]:
    """By their seed."""
    taken: list[Report] = []

    async def main() -> None:
        with trio.fail_after(60):
            await simulate_many(seeds, Size(), processes=jobs, within_s=within_s, take=taken.append)

    trio.run(main)
    return sorted(taken, key=lambda report: report.seed)


@pytest.mark.slow
@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("jobs", [1, 3])
def test_what_takes_its_process_with_it_or_does_not_end_is_reported_and_the_others_go_on(jobs: int) -> None:
    taken = reports(range(8), jobs)
    assert [report.seed for report in taken] == list(range(8))
    wrong = {report.seed: report.violations for report in taken if report.violations}
    assert wrong == {3: ["its process ended with status 7"], 4: ["did not end within 0.5 s of real time"]}
    assert {report.seed for report in taken if not report.has_ended} == {3, 4}


@pytest.mark.slow
@pytest.mark.usefixtures("script")
def test_no_seed_is_begun_too_late() -> None:
    assert reports(range(8), within_s=0.0) == []


@pytest.mark.slow
def test_real_processes_report_what_a_run_here_does(seed: int) -> None:
    [report] = reports([seed])
    outcome = simulate(Scenario.of_seed(seed))
    assert report == Report(seed, list(outcome.violations), dict(outcome.counts), outcome.virtual_s)
