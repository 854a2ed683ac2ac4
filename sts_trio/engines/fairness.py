"""Who is next at a pool: streams take turns, and within a stream the earliest deadline goes first.

Pure: no clock, no trio. One stream's backlog never starves another, because a turn is one request, however many a
stream has waiting.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from attrs import define, field

T = TypeVar("T")


@define
class FairQueue(Generic[T]):
    """Waiting requests of all streams. Holds nothing of a stream that has none waiting."""

    _turns: dict[str, list[tuple[float, int, T]]] = field(factory=dict, init=False)  # in order of whose turn it is
    _arrivals: int = field(default=0, init=False)

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._turns.values())

    def push(self, stream: str, deadline: float, item: T) -> None:
        """Add `item`; a stream that had nothing waiting takes its turn behind all that have."""
        self._arrivals += 1
        self._turns.setdefault(stream, []).append((deadline, self._arrivals, item))

    def pop(self) -> T:
        """Take the next item.

        Raises:
            IndexError: nothing is waiting.
        """
        if not self._turns:
            raise IndexError("nothing is waiting")
        stream = next(iter(self._turns))
        waiting = self._turns.pop(stream)
        earliest = min(waiting, key=lambda entry: entry[:2])
        waiting.remove(earliest)
        if waiting:
            self._turns[stream] = waiting  # behind everybody else
        return earliest[2]

    def discard(self, stream: str, item: T) -> None:
        """Forget `item`, whoever waits for it has left; no effect where it is not waiting."""
        remaining = [entry for entry in self._turns.get(stream, []) if entry[2] is not item]
        if remaining:
            self._turns[stream] = remaining
        else:
            self._turns.pop(stream, None)
