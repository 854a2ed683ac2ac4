"""`sts-trio simulate`: whole servers in memory, with everything going wrong that can, from seeds."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click
import trio

from ..offload import available_cores

if TYPE_CHECKING:
    from ..testing.simulation import Outcome, Scenario

DEFAULT_SEEDS: Final = range(50)

SHOWN_EVENTS: Final = 100
"""Lines of a failing seed's trace that are shown, those before the first violation; ``--seed N --trace`` shows all."""

SHOWN_FAILURES: Final = 5
"""Failing seeds that are shown with a trace; the others are named."""


class _Seeds(click.ParamType[range]):
    """``A:B``, from A to before B."""

    name = "A:B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        first, _, last = str(value).partition(":")
        try:
            seeds = range(int(first), int(last))
        except ValueError:
            self.fail(f"{value!r} is not two numbers with a colon between them, such as 0:500", param, ctx)
        if not seeds:
            self.fail(f"{value!r} has no seed in it", param, ctx)
        return seeds


@click.command()
@click.option("--seeds", type=_Seeds(), help="Run those from A to before B (default 0:50).")
@click.option("--seed", type=int, help="Run this one alone.")
@click.option("--trace", is_flag=True, help="With --seed: show everything that happened.")
@click.option("--streams", type=click.IntRange(1, 100), help="Streams of a run (default: the seed decides).")
@click.option("--hours", type=click.FloatRange(0.01, 1_000), help="How long streams are (default: the seed decides).")
@click.option("--jobs", type=click.IntRange(1, 256), help="Processes (default: one for each core).")
@click.option("--within", "within_s", type=click.FloatRange(0), default=math.inf, help="Begin no seed after so many s.")
def simulate(
    seeds: range | None,
    seed: int | None,
    trace: bool,
    streams: int | None,
    hours: float | None,
    jobs: int | None,
    within_s: float,
) -> None:
    """Run the real server on a network in memory, with scripted engines and workers, in virtual time.

    A seed decides what engines, network and workers do: delays, failures, hangs, lost connections, duplicates, gaps,
    floods, drains. All that a worker hears is held against the contract, and afterwards nothing may be left behind.
    The exit status is 1 where anything was violated. A seed's run is the same each time, event for event.
    """
    if seed is not None and seeds is not None:
        raise click.UsageError("--seed and --seeds: give one of them")
    if trace and seed is None:
        raise click.UsageError("--trace shows one run: give --seed")
    if seed is not None:
        sys.exit(_run_one(seed, streams, hours, trace))
    sys.exit(_run_many(seeds or DEFAULT_SEEDS, streams, hours, jobs or available_cores(), within_s))


def _run_one(seed: int, streams: int | None, hours: float | None, trace: bool) -> int:
    scenario, outcome = _run(seed, streams, hours)
    if trace:
        for line in scenario.lines():
            click.echo(line)
        for line in outcome.trace.lines():
            click.echo(line, nl=False)
    verdict = f"{len(outcome.violations) or 'no'} violations"
    click.echo(f"seed {seed}: {outcome.virtual_s:.0f} s of virtual time, {len(outcome.trace)} events, {verdict}")
    _show_violations(outcome)
    return 1 if outcome.violations else 0


def _run(seed: int, streams: int | None, hours: float | None) -> tuple[Scenario, Outcome]:
    from ..testing.simulation import Scenario, simulate  # here: the engines' child processes import this module, too

    scenario = Scenario.of_seed(seed, streams=streams, hours=hours)
    return scenario, simulate(scenario)


def _show_violations(outcome: Outcome) -> None:
    for violation in outcome.violations:
        click.echo(f"  VIOLATED  {violation}")


def _run_many(seeds: range, streams: int | None, hours: float | None, jobs: int, within_s: float) -> int:
    from ..testing.simulation.processes import Report, Size, simulate_many

    counts: Counter[str] = Counter()
    failed: list[Report] = []
    done, virtual_s, began = 0, 0.0, time.monotonic()

    def take(report: Report) -> None:
        nonlocal done, virtual_s
        done, virtual_s = done + 1, virtual_s + report.virtual_s
        counts.update(report.counts)
        if report.violations:
            failed.append(report)
            click.echo(f"seed {report.seed}: {len(report.violations)} violations, the first: {report.violations[0]}")

    size = Size(streams, hours)
    trio.run(lambda: simulate_many(seeds, size, processes=min(jobs, len(seeds)), within_s=within_s, take=take))
    for seed in sorted(report.seed for report in failed if report.has_ended)[:SHOWN_FAILURES]:
        _show_failure(seed, streams, hours)
    click.echo(
        f"{done} seeds, {virtual_s / 3600:.1f} hours of virtual time in {time.monotonic() - began:.0f} s: "
        f"{len(failed)} with violations"
    )
    click.echo("  " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return 1 if failed else 0


def _show_failure(seed: int, streams: int | None, hours: float | None) -> None:
    """A failing seed is run again, which is the same run, for its trace."""
    from ..testing.simulation.trace import VIOLATED

    _, outcome = _run(seed, streams, hours)
    lines = list(outcome.trace.lines())
    end = next((number for number, line in enumerate(lines, 1) if VIOLATED in line), len(lines))
    shown = lines[max(0, end - SHOWN_EVENTS) : end]
    click.echo(f"\nseed {seed}, {len(shown)} of {len(lines)} events (`--seed {seed} --trace` shows all):")
    click.echo("".join(shown), nl=False)
    _show_violations(outcome)
