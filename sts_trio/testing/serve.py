"""The real server with engines that cost next to nothing and go wrong as often as you say.

    STS_PORT=8000 python -m sts_trio.testing.serve --failures 0.05 --hangs 0.01 --delay 0.1:2

For testing a worker against every fault that a model can have, without a model: sockets, threads, the codec's work,
settings from the environment, /health, /metrics and SIGTERM are those of ``sts-trio serve``. Send tones, and the
transcripts say which pitch was heard (`faulty`). `proxy` has the faults of a network.

/metrics says more here than in production, to show that nothing is left behind: ``sts_testing_tasks`` (of trio),
``sts_testing_threads`` and ``sts_testing_allocated_blocks`` (of Python's memory).
"""

from __future__ import annotations

import sys
import threading

import click
import trio
from prometheus_client import Gauge

from ..config import ConfigError, Settings
from ..observe import logs
from ..observe.metrics import Metrics
from ..server import app
from .faulty import Faults, faulty_models


def spread(text: str) -> tuple[float, float]:
    """``LOW:HIGH``, or one number for both."""
    try:
        low, high = (float(number) for number in (text if ":" in text else f"{text}:{text}").split(":"))
    except ValueError:
        raise click.BadParameter(f"not two numbers with a colon between: {text}") from None
    if not 0 <= low <= high:
        raise click.BadParameter(f"not from a lower to a higher number: {text}")
    return low, high


_share = click.FloatRange(0, 1)


@click.command()
@click.option("--seed", default=0, show_default=True, help="Of the delays and faults.")
@click.option("--delay", type=spread, default="0.02:0.08", show_default=True, help="Seconds that a call takes.")
@click.option("--speech", type=spread, default="0.8:1.15", show_default=True, help="Length of speech, to its slot.")
@click.option("--failures", type=_share, default=0.0, help="Share of calls that fail with a code of the contract.")
@click.option("--hangs", type=_share, default=0.0, help="Share of calls that hang until their fragment times out.")
@click.option("--defects", type=_share, default=0.0, help="Share of calls that fail with INTERNAL_ERROR.")
def main(
    seed: int, delay: tuple[float, float], speech: tuple[float, float], failures: float, hangs: float, defects: float
) -> None:
    """A server for testing workers. Its port and everything else comes from the environment, as in production."""
    faults = Faults(seed=seed, delay_s=delay, speech=speech, failures=failures, hangs=hangs, defects=defects)
    try:
        settings = Settings.load()
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    logs.configure(settings.log_level, settings.log_format)
    metrics = Metrics()
    count_what_lives(metrics)
    sys.exit(0 if trio.run(app.serve, settings, faulty_models(faults), metrics) else 1)


def count_what_lives(metrics: Metrics) -> None:
    """Publish what must not grow. For a server that runs in one thread of trio; a scrape counts its own task."""
    for name, documentation, count in (
        ("tasks", "Tasks of trio.", lambda: trio.lowlevel.current_statistics().tasks_living),
        ("threads", "Threads, those that wait for work included.", threading.active_count),
        ("allocated_blocks", "Blocks of memory that Python holds.", sys.getallocatedblocks),
    ):
        Gauge(f"sts_testing_{name}", documentation, registry=metrics.registry).set_function(count)


if __name__ == "__main__":
    main()
