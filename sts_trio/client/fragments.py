"""What has become of each fragment of a stream. Pure: no connection, and times are seconds by the caller's clock.

Every fragment that was sent is in one of three places, and moves one way:

    outstanding  due (to be sent, now or later) or sent (the server has it)
    finished     its last result is here, nobody has taken it yet
    taken        whoever iterates has it; asking for the next one applies it

The rules: what failed or was refused in a way that may pass becomes due again, a bounded number of times. After a
reconnection everything that the server had becomes due again. An applied result is acknowledged.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Final

import structlog
from attrs import define, evolve

from protocol.dubbing import ErrorEvent, FragmentData, FragmentError, FragmentProcessed, StageTimings
from protocol.errors import ErrorCode, Stage

MAX_ATTEMPTS: Final = 3
"""How often a fragment is processed before its failure counts."""

MAX_ATTEMPTS_IN_OUTAGES: Final = 10
"""The same where somebody is down, and will be back: over half a minute, beyond any circuit breaker's first tries."""

OUTAGES: Final = frozenset(
    {ErrorCode.NETWORK_ERROR, ErrorCode.TEMPORARY_UNAVAILABLE, ErrorCode.RATE_LIMIT_EXCEEDED, ErrorCode.GPU_OOM}
)

MAX_REFUSALS: Final = 20
"""How often a fragment is refused for now before that counts as its failure."""

LONGEST_DELAY_S: Final = 8.0
"""Between two attempts at anything."""

_FIRST_DELAY_S: Final = 0.5

log = structlog.get_logger(__name__)


@define
class Fragment:
    """An outstanding one."""

    data: FragmentData
    due: float | None  # when to send it; None: the server has it
    attempts: int = 1
    refusals: int = 0


class Fragments:
    """A stream's fragments; as many as `len` says are in one of the three places.

    Attributes:
        next_number: the sequence number of the fragment that is added next.
        acks: ids of fragments whose results are to be acknowledged.
    """

    def __init__(self) -> None:
        self.next_number = 0
        self.acks: deque[str] = deque()
        self._outstanding: dict[str, Fragment] = {}
        self._finished: deque[FragmentProcessed] = deque()
        self._taken: str | None = None

    def __len__(self) -> int:
        return len(self._outstanding) + len(self._finished) + (self._taken is not None)

    @property
    def first_number(self) -> int:
        """The lowest sequence number that has no result."""
        numbers = (fragment.data.sequence_number for fragment in self._outstanding.values())
        return min(numbers, default=self.next_number)

    @property
    def server_has_some(self) -> bool:
        return any(fragment.due is None for fragment in self._outstanding.values())

    def add(self, data: FragmentData, now: float) -> None:
        """The programme's next fragment, which is due at once."""
        self._outstanding[data.fragment_id] = Fragment(data, due=now)
        self.next_number += 1

    def take(self) -> FragmentProcessed | None:
        """The next result, if there is one; the one before it is applied."""
        if not self._finished:
            return None
        result = self._finished.popleft()
        self._taken = result.fragment_id
        return result

    def apply_taken(self) -> None:
        """The result that was taken last has found its place, if one was."""
        if self._taken is not None:
            self.acks.append(self._taken)
            self._taken = None

    def next_due(self, now: float) -> tuple[float, Fragment] | None:
        """When to send which fragment: of those that are due the first of the programme, else the one due first."""
        due = [(max(f.due, now), f) for f in self._outstanding.values() if f.due is not None]
        return min(due, key=lambda entry: (entry[0], entry[1].data.sequence_number), default=None)

    def reconnected(self, now: float, *, new_session: bool) -> None:
        """What the server had becomes due. A new session starts with the number it gets first: the lowest we have."""
        for fragment in self._outstanding.values():
            if new_session or fragment.due is None:
                fragment.due = now

    def on_result(self, result: FragmentProcessed, now: float) -> bool:
        """The server has processed a fragment, well or not.

        Returns:
            Whether it was waited for; else it was sent again after a reconnection.
        """
        fragment = self._outstanding.get(result.fragment_id)
        if fragment is None:  # we have it, and say so
            if result.fragment_id != self._taken and all(result.fragment_id != f.fragment_id for f in self._finished):
                self.acks.append(result.fragment_id)
            return False
        number = fragment.data.sequence_number
        if result.sequence_number != number:  # the id says which fragment it is; its place in the programme is ours
            log.warning("wrong_sequence_number", sent=number, received=result.sequence_number)
            result = evolve(result, sequence_number=number)
        if result.status == "failed" and result.error is not None and result.error.retryable:
            if fragment.due is not None:  # the failure we know already, sent again
                return True
            if fragment.attempts < (MAX_ATTEMPTS_IN_OUTAGES if result.error.code in OUTAGES else MAX_ATTEMPTS):
                fragment.due = now + backoff_s(fragment.attempts - 1)
                fragment.attempts += 1
                return True
        self._finish(fragment, result)
        return True

    def on_refusal(self, error: ErrorEvent, now: float, delay_s: float) -> None:
        """The server does not take a fragment; if that may pass, it is due again after `delay_s` or later.

        One that has its result already may be refused again, which changes nothing.
        """
        fragment = self._outstanding.get(error.fragment_id or "")
        if fragment is None:
            return
        if error.retryable and fragment.refusals < MAX_REFUSALS:
            fragment.due = now + max(delay_s, backoff_s(fragment.refusals))
            fragment.refusals += 1
            return
        self._finish(fragment, _refused(fragment.data, error))

    def _finish(self, fragment: Fragment, result: FragmentProcessed) -> None:
        del self._outstanding[fragment.data.fragment_id]
        self._finished.append(result)


def _refused(data: FragmentData, error: ErrorEvent) -> FragmentProcessed:
    """A refusal as a result: the fragment failed before the first stage."""
    return FragmentProcessed(
        fragment_id=data.fragment_id,
        stream_id=data.stream_id,
        sequence_number=data.sequence_number,
        status="failed",
        processing_time_ms=0,
        stage_timings=StageTimings(),
        error=FragmentError(error.code, error.message, Stage.DECODE, error.retryable),
        metadata={"original_duration_ms": data.audio.duration_ms},
    )


def backoff_s(failures: int) -> float:
    """Doubling, with jitter: workers that lost the same server must not all return in the same moment."""
    longest: float = min(LONGEST_DELAY_S, _FIRST_DELAY_S * 2**failures)
    return longest * random.uniform(0.5, 1.0)
