"""The stages of one stream, joined by bounded memory channels in one nursery.

    source -> [take in] -> [decode] -> [asr] -> [translation] -> [tts] -> [encode] -> sink

Closing the source drains the chain: each step closes the channel behind it when its last worker is done, so the sink
ends when everything that went in has come out. Cancelling the nursery drops everything at once.

The rules that hold for every fragment:

* Something to play in place of speech is begun first, beside everything else (`fallback.py`).
* Its deadline runs over all stages. At the deadline it stops waiting wherever it is, fails with ``TIMEOUT`` in that
  stage, and goes on to its fallback audio, for which it gets `FALLBACK_GRACE_S` more and no longer.
* After a failure no further stage touches it.
* It always comes out.

Deadlines hold although a channel has no clock, because no fragment waits in a channel past its own: decode and ASR
take fragments one at a time, in the order in which they got their deadlines, and let each go at its deadline; the
later steps have a worker for each fragment that can be in process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import frozen
from structlog.contextvars import bound_contextvars

from protocol.errors import ErrorCode, Stage

from ..engines.base import EngineFailure
from .assets import Fragment
from .stages import Stages

FALLBACK_GRACE_S = 0.08
"""What fallback audio that is not ready gets after the deadline. A worker has its TIMEOUT 100 ms after it at the
latest, and this leaves some of that for writing it."""

log = structlog.get_logger(__name__)


@frozen
class _Step:
    stage: Stage
    action: Callable[[Fragment], Awaitable[None]]
    workers: int


class Pipeline:
    """The chain of one stream.

    Args:
        max_inflight: how many fragments can be in the chain at once.
        new_error_id: makes the id that leads from an ``INTERNAL_ERROR`` to its traceback in the log.
    """

    def __init__(self, stages: Stages, max_inflight: int, new_error_id: Callable[[], str]) -> None:
        self._stages = stages
        self._width = max_inflight
        self._new_error_id = new_error_id

    async def run(self, source: trio.MemoryReceiveChannel[Fragment], sink: trio.MemorySendChannel[Fragment]) -> None:
        """Carry fragments from `source` to `sink` until the source is closed and all have come out."""
        stages = self._stages
        steps = (
            _Step(Stage.DECODE, stages.decode, 1),
            _Step(Stage.ASR, stages.transcribe, 1),  # one at a time and in order: it has state
            _Step(Stage.TRANSLATION, stages.translate, self._width),
            _Step(Stage.TTS, stages.speak, self._width),
            _Step(Stage.ENCODE, stages.encode, self._width),
        )
        async with trio.open_nursery() as beside:
            async with trio.open_nursery() as chain:
                outbox, inbox = trio.open_memory_channel[Fragment](self._width)
                chain.start_soon(self._take_in, source, outbox, beside)
                source = inbox
                for step in steps[:-1]:
                    outbox, inbox = trio.open_memory_channel[Fragment](self._width)
                    chain.start_soon(self._run_step, step, source, outbox)
                    source = inbox
                chain.start_soon(self._run_step, steps[-1], source, sink)
            beside.cancel_scope.cancel()

    async def _take_in(
        self, inbox: trio.MemoryReceiveChannel[Fragment], outbox: trio.MemorySendChannel[Fragment], beside: trio.Nursery
    ) -> None:
        async with inbox, outbox:
            async for fragment in inbox:
                beside.start_soon(self._expect, fragment)
                await outbox.send(fragment)

    async def _expect(self, fragment: Fragment) -> None:
        with trio.move_on_at(fragment.deadline + FALLBACK_GRACE_S):
            await self._stages.fallback.expect(fragment)

    async def _run_step(
        self, step: _Step, inbox: trio.MemoryReceiveChannel[Fragment], outbox: trio.MemorySendChannel[Fragment]
    ) -> None:
        async with inbox, outbox, trio.open_nursery() as workers:
            for _ in range(step.workers):
                workers.start_soon(self._work, step, inbox, outbox)

    async def _work(
        self, step: _Step, inbox: trio.MemoryReceiveChannel[Fragment], outbox: trio.MemorySendChannel[Fragment]
    ) -> None:
        async for fragment in inbox:
            with bound_contextvars(fragment_id=fragment.id, sequence_number=fragment.number):
                if fragment.error is None:
                    await self._perform(step, fragment)
                if step.stage is Stage.ENCODE:
                    if fragment.error is not None:
                        await self._fall_back(fragment)
                    fragment.shed()
            await outbox.send(fragment)

    async def _perform(self, step: _Step, fragment: Fragment) -> None:
        """Do the step's work on `fragment` within its deadline; whatever goes wrong ends up in the fragment."""
        began = trio.current_time()
        try:
            with trio.CancelScope(deadline=fragment.deadline) as scope:
                await step.action(fragment)
            if scope.cancelled_caught:
                spent_ms = round((trio.current_time() - fragment.started_at) * 1000)
                fragment.fail(step.stage, ErrorCode.TIMEOUT, f"{step.stage} had not finished after {spent_ms} ms")
                log.warning("fragment_timed_out", stage=step.stage, spent_ms=spent_ms)
        except EngineFailure as failure:
            fragment.fail(step.stage, failure.code, str(failure))
            log.warning("fragment_failed", stage=step.stage, code=failure.code, reason=str(failure))
        except Exception:
            # A defect of ours costs this fragment, not its stream: one bad fragment never harms the next.
            error_id = self._new_error_id()
            log.exception("internal_error", stage=step.stage, error_id=error_id)
            fragment.fail(step.stage, ErrorCode.INTERNAL_ERROR, f"internal error {error_id}")
        fragment.timings_ms[step.stage] = round((trio.current_time() - began) * 1000)

    async def _fall_back(self, fragment: Fragment) -> None:
        """A failed fragment's worker still has something to play, unless even that cannot be made in time."""
        by = max(fragment.deadline, trio.current_time()) + FALLBACK_GRACE_S
        with trio.move_on_at(by) as scope:
            try:
                await self._stages.fall_back(fragment)
            except EngineFailure as failure:
                log.warning("no_fallback_audio", code=failure.code, reason=str(failure))
            except Exception:
                log.exception("no_fallback_audio")  # the fragment's own failure is what its worker is told
        if scope.cancelled_caught:
            log.warning("no_fallback_audio", reason="not encoded in time")
