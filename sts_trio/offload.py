"""Blocking calls off the event loop: the one way to make them.

Only engine pools and samplers offload, through an `Offload` they are handed: threads in production, inline where a
test runs on virtual time (a clock that jumps does not wait for threads).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")


class Offload(Protocol):
    """Runs a blocking function away from the event loop."""

    def __call__(self, function: Callable[..., T], /, *args: object) -> Awaitable[T]: ...


def thread_offload(threads: int) -> Offload:
    """Run blocking functions in at most `threads` threads at once; what runs is never abandoned.

    The function may call `check_cancelled` to stop early. An abandoned model call that still runs
    when the interpreter ends aborts the process, so a cancelled caller waits for its function to return.
    """
    limiter = trio.CapacityLimiter(threads)

    async def offload(function: Callable[..., T], /, *args: object) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=limiter)

    return offload


def check_cancelled() -> None:
    """Stop an offloaded function whose caller was cancelled. Cheap: for between the steps of a long computation.

    Where the offload runs functions inline, on the event loop's own thread, nothing can have been cancelled meanwhile,
    and this does nothing.

    Raises:
        trio.Cancelled: the calling thread's task was cancelled; not to be swallowed.
        RuntimeError: the thread is not one of trio's.
    """
    if not trio.lowlevel.in_trio_run():
        trio.from_thread.check_cancelled()


def available_cores() -> int:
    """The CPU's cores that this process may use, where the system can tell; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
