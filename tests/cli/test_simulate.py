"""`sts-trio simulate`: what it runs, what it shows, and its exit status."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable

import pytest
import trio
from attrs import define, field
from click.testing import CliRunner, Result

from sts_trio.__main__ import main
from sts_trio.cli.simulate import SHOWN_EVENTS, SHOWN_FAILURES
from sts_trio.offload import available_cores
from sts_trio.stream.assets import Fragment
from sts_trio.stream.delivery import Delivery
from sts_trio.testing.simulation import Scenario, processes
from sts_trio.testing.simulation import simulate as run_scenario
from sts_trio.testing.simulation.processes import Report, Size
from sts_trio.testing.simulation.trace import VIOLATED


def is_short(scenario: Scenario) -> bool:
    """One worker, who has an untroubled connection and is soon done."""
    plans = scenario.workers
    return sum(plan.fragments for plan in plans) == 5 and all(plan.trouble.every_s == math.inf for plan in plans)


SHORT = next(seed for seed in itertools.count() if is_short(Scenario.of_seed(seed)))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sts_trio.observe.logs.configure", lambda *args, **kwargs: None)


@define
class Processes:
    """In place of processes: seeds are content, unless a test says otherwise. It notes what it is asked for."""

    reports: dict[int, Report] = field(factory=dict)
    seeds: list[int] = field(factory=list)
    size: Size = field(factory=Size)
    jobs: int = 0
    within_s: float = 0.0

    async def run(
        self, seeds: Iterable[int], size: Size, *, processes: int, within_s: float, take: Callable[[Report], None]
    ) -> None:
        await trio.lowlevel.checkpoint()
        self.seeds, self.size, self.jobs, self.within_s = list(seeds), size, processes, within_s
        for seed in self.seeds:
            take(self.reports.get(seed, Report(seed, [], {"fragments": 2}, 1_800.0)))


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    fake = Processes()
    monkeypatch.setattr(processes, "simulate_many", fake.run)
    return fake


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted one: every result leaves twice."""
    deliver = Delivery.deliver

    def twice(self: Delivery, fragment: Fragment) -> None:
        deliver(self, fragment)
        self.tell(self._report.result(fragment))

    monkeypatch.setattr(Delivery, "deliver", twice)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["simulate", *arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


# -------------------------------------------------------------------------------------- one seed


@pytest.mark.slow
def test_one_seed_is_told_in_a_line() -> None:
    result = run("--seed", str(SHORT))
    assert result.exit_code == 0
    assert re.fullmatch(rf"seed {SHORT}: \d+ s of virtual time, \d+ events, no violations\n", result.output)


@pytest.mark.slow
def test_a_trace_shows_the_plan_and_all_events() -> None:
    scenario = Scenario.of_seed(SHORT)
    lines = run("--seed", str(SHORT), "--trace").output.splitlines(keepends=True)
    assert lines[:-1] == [f"{line}\n" for line in scenario.lines()] + list(run_scenario(scenario).trace.lines())


@pytest.mark.slow
@pytest.mark.usefixtures("bug")
def test_a_violation_is_told_and_shows_in_the_exit_status() -> None:
    result = run("--seed", str(SHORT))
    assert result.exit_code == 1
    assert re.search(
        r"^  VIOLATED  s0, session 0: the result of s0-\d+ came a second time$", result.output, re.MULTILINE
    )


@pytest.mark.slow
def test_a_run_is_as_large_as_it_is_asked_for() -> None:
    result = run("--seed", str(SHORT), "--streams", "2", "--hours", "0.01", "--trace")
    assert result.exit_code == 0
    plans = [line for line in result.output.splitlines() if line.startswith("worker ")]
    assert len(plans) == 2
    assert all("fragments=6, pace_s=6.0" in plan for plan in plans)


# -------------------------------------------------------------------------------------- many seeds


@pytest.mark.slow
def test_seeds_are_run_in_processes_of_their_own() -> None:
    result = run("--seeds", f"{SHORT}:{SHORT + 1}", "--jobs", "2")
    assert result.exit_code == 0
    summary, counts = result.output.splitlines()
    assert re.fullmatch(r"1 seeds, 0\.\d hours of virtual time in \d+ s: 0 with violations", summary)
    assert f"results {run_scenario(Scenario.of_seed(SHORT)).counts['results']}" in counts


def test_what_all_seeds_saw_is_added_up(no_processes: Processes) -> None:
    result = run("--seeds", "10:14")
    assert result.exit_code == 0
    assert no_processes.seeds == [10, 11, 12, 13]
    assert "4 seeds, 2.0 hours of virtual time" in result.output
    assert "fragments 8" in result.output


def test_by_default_all_cores_run_fifty_seeds_of_any_size(no_processes: Processes) -> None:
    run()
    assert no_processes.seeds == list(range(50))
    assert no_processes.jobs == available_cores()
    assert no_processes.size == Size(None, None)
    assert no_processes.within_s == math.inf


def test_what_is_asked_for_is_passed_on(no_processes: Processes) -> None:
    run("--seeds", "0:3", "--jobs", "8", "--streams", "5", "--hours", "0.5", "--within", "7.5")
    assert no_processes.jobs == 3  # there is no work for more
    assert no_processes.size == Size(5, 0.5)
    assert no_processes.within_s == 7.5


@pytest.mark.slow
def test_where_there_is_no_time_nothing_is_run() -> None:
    result = run("--seeds", "0:100000", "--within", "0")
    assert result.exit_code == 0
    assert result.output.startswith("0 seeds, 0.0 hours of virtual time")


@pytest.mark.slow
@pytest.mark.usefixtures("bug")
def test_a_failing_seed_is_shown_with_what_led_to_it(no_processes: Processes) -> None:
    no_processes.reports[SHORT] = Report(SHORT, ["the first thing", "another thing"])
    result = run("--seeds", f"{SHORT}:{SHORT + 2}")
    assert result.exit_code == 1
    assert f"seed {SHORT}: 2 violations, the first: the first thing\n" in result.output
    assert "2 seeds" in result.output
    assert "1 with violations" in result.output
    events = list(run_scenario(Scenario.of_seed(SHORT)).trace.lines())
    first = next(number for number, event in enumerate(events) if VIOLATED in event)
    led_to_it = events[max(0, first + 1 - SHOWN_EVENTS) : first + 1]
    heading = f"seed {SHORT}, {len(led_to_it)} of {len(events)} events (`--seed {SHORT} --trace` shows all):\n"
    assert f"{heading}{''.join(led_to_it)}  VIOLATED  s0, session 0: the result of" in result.output


@pytest.mark.slow
def test_many_failing_seeds_are_named_and_a_few_are_shown(no_processes: Processes) -> None:
    seeds = range(SHORT, SHORT + SHOWN_FAILURES + 2)
    no_processes.reports.update({seed: Report(seed, ["wrong"]) for seed in reversed(seeds)})
    result = run("--seeds", f"{seeds[0]}:{seeds[-1] + 1}", "--streams", "1", "--hours", "0.01")
    assert [int(seed) for seed in re.findall(r"seed (\d+): 1 violations", result.output)] == list(seeds)
    shown = re.findall(r"seed (\d+), \d+ of \d+ events", result.output)
    assert [int(seed) for seed in shown] == list(seeds)[:SHOWN_FAILURES]


def test_a_run_that_did_not_end_is_not_begun_again(no_processes: Processes) -> None:
    no_processes.reports[7] = Report(7, ["did not end within 300 s of real time"], has_ended=False)
    result = run("--seeds", "6:9")
    assert result.exit_code == 1
    assert "seed 7: 1 violations, the first: did not end within 300 s of real time\n" in result.output
    assert "events" not in result.output


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds 5", "'5' is not two numbers with a colon between them, such as 0:500"),
        ("--seeds a:b", "'a:b' is not two numbers"),
        ("--seeds 1:2:3", "'1:2:3' is not two numbers"),
        ("--seeds 9:3", "'9:3' has no seed in it"),
        ("--seeds 3:3", "'3:3' has no seed in it"),
        ("--seed x", "'x' is not a valid integer"),
        ("--trace", "--trace shows one run: give --seed"),
        ("--trace --seeds 0:2", "--trace shows one run: give --seed"),
        ("--seed 1 --seeds 0:2", "--seed and --seeds: give one of them"),
        ("--streams 0", "0 is not in the range"),
        ("--hours 0", "0.0 is not in the range"),
        ("--jobs 0", "0 is not in the range"),
        ("--within -1", "-1.0 is not in the range"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: str, message: str) -> None:
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert message in result.output
