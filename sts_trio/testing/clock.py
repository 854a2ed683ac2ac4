"""Virtual time and seeded scheduling: a run that can be repeated, event for event.

Trio runs what is ready in an order that it shuffles anew in every tick, so that nobody relies on one. Here the shuffle
comes from a seed: other seeds try other orders, the same seed the same. The clock jumps to the next deadline whenever
nothing can run, so an hour costs what is computed in it.

What a run must not touch to be repeatable: threads and real sockets (a clock that jumps does not wait for them), the
wall clock, and random numbers that are not from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
import trio.testing

T = TypeVar("T")


def run_seeded(main: Callable[..., Awaitable[T]], *args: object, seed: int) -> T:
    """Run a trio program on virtual time, scheduled by `seed`.

    trio has no public switch for this; that of its own tests and of hypothesis-trio is used.
    """
    core: Any = trio._core._run
    before = core._ALLOW_DETERMINISTIC_SCHEDULING, core._r
    # With the switch alone tasks are in order of their creation when the shuffle begins.
    core._ALLOW_DETERMINISTIC_SCHEDULING = True
    core._r = random.Random(seed)
    try:
        return trio.run(main, *args, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        core._ALLOW_DETERMINISTIC_SCHEDULING, core._r = before
