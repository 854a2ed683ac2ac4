"""The order of results (contract, "Order, retries, resume"). Pure: no clock, no trio.

First results leave in sequence_number order, whatever finished first. The rules, on the number whose turn it is:

* The first accepted fragment sets where the stream starts.
* A number in progress is waited for. Its own deadline bounds that wait.
* A number nobody has sent, while later ones are done, is a gap: the owner of the clock waits for it, then calls
  `skip_gap`. What was given up never comes back.
* A refused number is passed over as soon as a later one is done. Until then, the fragment sent again takes its place;
  after that it is a retry, and late: order is promised for first results only.

Memory is bounded by what is in flight, plus `MAX_RETRYABLE` numbers that may come again.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, Generic, TypeVar

from attrs import define, field

from protocol.errors import ErrorCode, PayloadError

T = TypeVar("T")

MAX_RETRYABLE: Final = 4_096
"""Numbers remembered as "may come again". At one fragment in six seconds these are the last seven hours."""

MAX_LISTED: Final = 100
"""Missing numbers listed in a warning; a worker that jumps by a billion must not make us list a billion."""


class Turn(Enum):
    """When an admitted fragment's result leaves."""

    IN_ORDER = auto()
    LATE = auto()  # when it is ready: its number has passed, without a result
    AGAIN = auto()  # likewise, but what passed was a result, a failure


@define
class ResultOrder(Generic[T]):
    """Which results may leave now. `T` is whatever stands for a finished fragment.

    Attributes:
        next_number: the first number that has not left or been passed over; None before the first fragment.
    """

    next_number: int | None = field(default=None, init=False)
    _open: dict[int, str] = field(factory=dict, init=False)  # accepted, not left: number -> fragment_id
    _parked: dict[int, T] = field(factory=dict, init=False)  # of these, the finished ones
    _retryable: dict[int, tuple[str, Turn]] = field(factory=dict, init=False)
    # refused, or failed for now: number -> fragment_id, and what it is when its number has passed

    @property
    def longest_parked(self) -> T | None:
        """Of the finished results that wait, the one that has waited longest."""
        return next(iter(self._parked.values()), None)

    def admit(self, fragment_id: str, number: int) -> Turn:
        """Take a fragment in, and say when its result leaves.

        Raises:
            PayloadError: `INVALID_SEQUENCE`: the number was passed, or another fragment uses it.
        """
        if self.next_number is None:
            self.next_number = number
        if number < self.next_number:
            retryable_id, turn = self._retryable.get(number, (None, Turn.LATE))
            if retryable_id != fragment_id:
                raise _invalid(f"{number} has passed, the next one is {self.next_number}")
            del self._retryable[number]
            return turn
        if number in self._open:
            raise _invalid(f"{number} is used by fragment {self._open[number]}")
        self._retryable.pop(number, None)
        self._open[number] = fragment_id
        return Turn.IN_ORDER

    def pass_over(self, fragment_id: str, number: int) -> None:
        """A fragment was refused: its number holds nobody up, and it may be sent again.

        A refusal changes nothing about a number that has passed, or that another fragment uses.
        """
        if number not in self._open and (self.next_number is None or number >= self.next_number):
            self._allow(fragment_id, number, Turn.LATE)

    def allow_retry(self, fragment_id: str, number: int) -> None:
        """A fragment's result was a failure that may pass: it may be sent again."""
        self._allow(fragment_id, number, Turn.AGAIN)

    def _allow(self, fragment_id: str, number: int, turn: Turn) -> None:
        self._retryable[number] = (fragment_id, turn)
        if len(self._retryable) > MAX_RETRYABLE:
            forgotten = next(iter(self._retryable))
            del self._retryable[forgotten]
            if forgotten == self.next_number:  # it must not become a gap
                self.next_number += 1

    def finish(self, number: int, result: T) -> None:
        """A fragment that was admitted in order has its result."""
        assert number in self._open, "only what was admitted can finish"
        self._parked[number] = result

    def pop_ready(self) -> list[T]:
        """The results whose turn has come, in order."""
        ready = []
        while self._parked and not self.gap():
            first = min(self._open)
            if first not in self._parked:
                break
            ready.append(self._parked.pop(first))
            del self._open[first]
            self.next_number = first + 1
        return ready

    def gap(self) -> list[int]:
        """The numbers that hold up finished results because nobody sent them; at most `MAX_LISTED` of them."""
        if not self._parked or self.next_number is None:
            return []
        first = min(self._open)
        passed_over = sum(1 for number in self._retryable if self.next_number <= number < first)
        if first - self.next_number == passed_over:
            return []
        missing: list[int] = []
        for number in range(self.next_number, first):
            if number not in self._retryable:
                missing.append(number)
                if len(missing) == MAX_LISTED:
                    break
        return missing

    def skip_gap(self) -> list[int]:
        """Give the missing numbers up, for good, and return them."""
        missing = self.gap()
        if missing:
            self.next_number = min(self._open)
        return missing


def _invalid(reason: str) -> PayloadError:
    return PayloadError(ErrorCode.INVALID_SEQUENCE, "sequence_number", reason)
