"""A process that runs the seeds it is given, one per line, and answers each with a line of JSON."""

from __future__ import annotations

import sys

import orjson
from attrs import asdict

from .processes import Report, Size
from .run import simulate
from .scenario import Scenario


def main() -> None:
    size = Size(**orjson.loads(sys.argv[1]))
    for line in sys.stdin:
        outcome = simulate(Scenario.of_seed(int(line), streams=size.streams, hours=size.hours))
        report = Report(outcome.seed, list(outcome.violations), dict(outcome.counts), outcome.virtual_s)
        sys.stdout.buffer.write(orjson.dumps(asdict(report)) + b"\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):  # who asks has gone, or was interrupted with this process
        sys.exit(1)
