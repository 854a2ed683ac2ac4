"""The rules of cancellation, held against anybody's engine.

    async def test_mine_can_be_cancelled():
        await check_engine(MyEngine(), SpeechRequest("hola", "es", "default"), thread_offload(1))

On real time with a real engine, on virtual time with one that only sleeps. The rules follow from `engines.base`:

1. A call that is cancelled ends within `ends_within_s`, wherever it was.
2. It ends as `trio.Cancelled`, or with its answer where it had that already. An error or an `EngineFailure` says that
   the cancel was taken for a fault; no answer, or too many, that it was swallowed. An answer that is well formed and
   wrong is known by `same` alone.
3. The next call of the same instance works, and gives what it gave before.
4. After `open`, however it ended, no task and no child process more than before is left, not even one that has ended
   and was not reaped. And no thread that trio lent goes on when its caller has ended (`abandon_on_cancel`): the next
   call would use the model at the same time. A thread that has another owner than trio is not looked for.

A call that never ends is waited for, as trio waits for any task: a check that hangs has found a broken first rule.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeGuard, TypeVar

import trio
from attrs import define, field, frozen

from ..engines.base import Engine, EngineFailure, Instance
from ..offload import Offload

Req = TypeVar("Req")
Res = TypeVar("Res")
Answer = TypeVar("Answer")

MOST_AWAITS: Final = 20
"""A call is cancelled in each of its first so many awaits; what comes later is met by time only."""

PARTS: Final = (0.1, 0.5, 0.9)
"""Of the time that a call takes: when it is cancelled, too."""

ROUNDING_S: Final = 1e-6

THREAD_ENDS_S: Final = 0.05
"""Of real time. So long a thread may take that was at its end: with a name that is looked up, say."""

UNCANCELLED_S: Final = 300.0
"""For a call that nobody cancels."""


class Nonconformance(AssertionError):
    """An engine breaks a rule; the message says which, and when it was cancelled."""


async def check_engine(
    engine: Engine[Req, Res],
    request: Req,
    offload: Offload,
    *,
    ends_within_s: float = 1.0,
    same: Callable[[Res, Res], bool] = lambda first, again: True,
) -> None:
    """Cancel an engine's calls in each of their awaits and at several times, and its opening in each of its awaits.

    Args:
        request: one that works; the longer it takes, the more there is to cancel.
        offload: what the engine is opened with: `thread_offload`, or `inline_offload` on virtual time.
        ends_within_s: from a cancel to the call's end: as long as the engine may go without a check.
        same: whether an answer is as good as the first one; by default any is.

    Raises:
        Nonconformance
    """
    broken: Nonconformance | None = None
    try:
        await _check(engine, request, offload, ends_within_s, same)
    except* Nonconformance as group:  # an engine that opens a nursery makes a group of it
        broken = _first(group)
    if broken is not None:
        raise Nonconformance(f"{engine.name}: {broken}") from broken


def _first(group: BaseExceptionGroup[Nonconformance]) -> Nonconformance:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


async def _check(
    engine: Engine[Req, Res],
    request: Req,
    offload: Offload,
    ends_within_s: float,
    same: Callable[[Res, Res], bool],
) -> None:
    async with engine.open(offload) as instance:
        await _work(instance, request, "at first")
    before = _Alive.now()  # what a library starts once for all, such as multiprocessing's resource tracker, is there
    async with engine.open(offload) as instance:
        took_s = await _check_calls(instance, request, ends_within_s, same)
    before.check("an orderly end")

    with trio.CancelScope() as owner:
        async with engine.open(offload) as instance:
            owner.deadline = trio.current_time() + took_s / 2
            await instance([request])
    before.check("an end in the middle of a call")

    async def only_open() -> None:
        async with engine.open(offload):
            pass

    for moment in map(_Moment, range(-1, MOST_AWAITS)):
        was_cancelled = await _cancel(only_open, moment, UNCANCELLED_S, lambda answer: answer is None)
        before.check(f"an opening that was cancelled {moment}")
        if not was_cancelled:
            break


async def _check_calls(
    instance: Instance[Req, Res], request: Req, ends_within_s: float, same: Callable[[Res, Res], bool]
) -> float:
    """Cancel calls of one instance, with one in between that is not; returns what such a one takes, in seconds."""
    began = trio.current_time()
    first = await _work(instance, request, "of a second instance")
    took_s = trio.current_time() - began

    def is_as_good(answers: Sequence[Res | EngineFailure]) -> bool:
        return _is_one_result(answers) and same(first, answers[0])

    for moments in (map(_Moment, range(-1, MOST_AWAITS)), (_Moment(after_s=part * took_s) for part in PARTS)):
        for moment in moments:
            if not await _cancel(lambda: instance([request]), moment, ends_within_s, is_as_good):
                break
            after = f"after one that was cancelled {moment}"
            again = await _work(instance, request, after)
            if not same(first, again):
                raise Nonconformance(f"a call gives another answer {after}: {again!r}")
    return took_s


def child_processes() -> set[int]:
    """The processes that this one has started and not reaped, by id; of Linux."""
    children = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the command, which is in brackets and may contain anything: state, parent (proc(5)).
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if int(parent) == os.getpid():
            children.add(int(stat.parent.name))
    return children


@frozen
class _Moment:
    """When something is cancelled: in its await of this number (-1: before it begins), or after a time."""

    in_await: int | None = None
    after_s: float = 0.0

    def __str__(self) -> str:
        if self.in_await is None:
            return f"after {self.after_s:.3f} s"
        return f"in its await number {self.in_await}" if self.in_await >= 0 else "before it began"

    @contextmanager
    def of(self, scope: trio.CancelScope) -> Iterator[_Canceller]:
        """Have what this task does inside cancelled at this moment."""
        canceller = _Canceller(scope, trio.lowlevel.current_task(), self.in_await)
        if self.in_await is None:
            scope.deadline = canceller.deadline = trio.current_time() + self.after_s
        trio.lowlevel.add_instrument(canceller)
        try:
            if self.in_await == -1:
                canceller.cancel()
            yield canceller
        finally:
            trio.lowlevel.remove_instrument(canceller)


@define(eq=False)
class _Canceller(trio.abc.Instrument):
    """Cancels a scope while its task waits the n-th time, or knows that its deadline does."""

    scope: trio.CancelScope
    task: trio.lowlevel.Task
    awaits: int | None
    deadline: float = field(default=math.inf, init=False)
    _cancelled_at: float | None = field(default=None, init=False)
    _step_began: float = field(default=math.inf, init=False)
    _longest_step_s: float = field(default=0.0, init=False)

    @property
    def cancelled_at(self) -> float | None:
        """When it was cancelled; None: not yet."""
        return self.deadline if trio.current_time() >= self.deadline else self._cancelled_at

    @property
    def longest_step_s(self) -> float:
        """Of any task, the present step included, in real time: how long nobody else had the event loop."""
        return max(self._longest_step_s, time.monotonic() - self._step_began)

    def cancel(self) -> None:
        self.scope.cancel()
        self._cancelled_at = trio.current_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step_began = time.monotonic()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._longest_step_s = self.longest_step_s
        if task is self.task and self.awaits is not None:
            if self.awaits == 0:
                self.cancel()
            self.awaits -= 1


async def _work(instance: Instance[Req, Res], request: Req, when: str) -> Res:
    """Have the instance answer a request that works."""
    try:
        with trio.fail_after(UNCANCELLED_S):
            answers = await instance([request])
    except Exception as failure:
        raise Nonconformance(f"a call does not work {when}: {failure!r}") from failure
    if not _is_one_result(answers):
        raise Nonconformance(f"a call does not work {when}: {answers!r}")
    return answers[0]


def _is_one_result(answers: Sequence[Res | EngineFailure]) -> TypeGuard[Sequence[Res]]:
    """Whether this answers one request."""
    return isinstance(answers, Sequence) and len(answers) == 1 and not isinstance(answers[0], EngineFailure)


async def _cancel(
    call: Callable[[], Awaitable[Answer]], moment: _Moment, ends_within_s: float, is_right: Callable[[Answer], bool]
) -> bool:
    """Call and cancel.

    Args:
        is_right: of what the call returned although it was cancelled.

    Returns:
        whether it was cancelled; False: it had ended before.

    Raises:
        Nonconformance: it broke a rule.
    """
    threads = _busy_threads()
    scope = trio.CancelScope()
    with moment.of(scope) as canceller:
        try:
            with scope:
                answer = await call()
        except Exception as error:
            if canceller.cancelled_at is None:
                raise
            raise Nonconformance(f"a call that was cancelled {moment} raised {error!r}") from error
        if canceller.cancelled_at is None:
            return False
    if (late_s := trio.current_time() - canceller.cancelled_at) > ends_within_s + ROUNDING_S:
        why = f"; it held the event loop for {(step_s := canceller.longest_step_s):.2f} s, past `offload`"
        raise Nonconformance(
            f"a call that was cancelled {moment} ended {late_s:.2f} s later, which is over {ends_within_s:.2f} s"
            f" (ends_within_s){why if step_s > late_s / 2 else ''}"
        )
    if not scope.cancelled_caught and not is_right(answer):
        raise Nonconformance(f"a call that was cancelled {moment} answered {answer!r}")
    if left := _abandoned_since(threads):
        raise Nonconformance(f"a call that was cancelled {moment} has abandoned threads: {left}")
    return True


def _busy_threads() -> set[threading.Thread]:
    """Those that `trio.to_thread` has lent to a function: it names them after both until that returns."""
    return {thread for thread in threading.enumerate() if " from " in thread.name}


def _abandoned_since(before: set[threading.Thread]) -> list[str]:
    """The threads that are busy, were not, and do not end. Blocks: a clock that jumps would not wait for them."""
    give_up_at = time.monotonic() + THREAD_ENDS_S
    while (left := _busy_threads() - before) and time.monotonic() < give_up_at:
        time.sleep(THREAD_ENDS_S / 50)
    return sorted(thread.name for thread in left)


@frozen
class _Alive:
    """Tasks, processes and busy threads that there were."""

    tasks: int
    children: set[int]
    threads: set[threading.Thread]

    @classmethod
    def now(cls) -> _Alive:
        return cls(trio.lowlevel.current_statistics().tasks_living, child_processes(), _busy_threads())

    def check(self, when: str) -> None:
        """
        Raises:
            Nonconformance: there are more now.
        """
        now = self.now()
        if now.tasks > self.tasks:
            raise Nonconformance(f"{now.tasks - self.tasks} tasks are left after {when}")
        if left := now.children - self.children:
            raise Nonconformance(f"child processes are left after {when}: {sorted(left)}")
        if abandoned := _abandoned_since(self.threads):
            raise Nonconformance(f"threads are abandoned after {when}: {abandoned}")
