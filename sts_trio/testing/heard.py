"""What a worker was told, to be looked at and waited for: the same over a connection and without one."""

from __future__ import annotations

from typing import Any, Final

import trio
from attrs import define, field

VIRTUAL_HOUR_S: Final = 3_600.0
"""No event of a test is further away: what does not come by then never comes."""

SHOWN_EVENTS: Final = 5


@define(eq=False)
class Heard:
    """A worker's ears.

    Attributes:
        received: (time, event, payload) in the order in which they came.
        closed: nothing more comes.
    """

    received: list[tuple[float, str, dict[str, Any]]] = field(factory=list, init=False)
    closed: bool = field(default=False, init=False)
    _news: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)

    def got(self, event: str) -> list[dict[str, Any]]:
        """Payloads of every `event` received so far."""
        return [payload for _, name, payload in self.received if name == event]

    def times(self, event: str) -> list[float]:
        """When each `event` was received."""
        return [time for time, name, _ in self.received if name == event]

    async def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until `count` such events were received in all, and return them.

        Raises:
            AssertionError: the connection has ended before, or they do not come; the message has what came instead.
        """
        with trio.move_on_after(VIRTUAL_HOUR_S):
            while len(self.got(event)) < count and not self.closed:
                await self._news.park()
        if len(got := self.got(event)) < count:
            why = "the connection has ended" if self.closed else "nothing more came"
            last = [(name, payload.get("message", "")) for _, name, payload in self.received[-SHOWN_EVENTS:]]
            raise AssertionError(f"{len(got)} of {count} {event} when {why}; the last that came: {last}")
        return got

    def _hear(self, event: str, payload: dict[str, Any]) -> None:
        self.received.append((trio.current_time(), event, payload))
        self._news.unpark_all()

    def _hear_the_end(self) -> None:
        self.closed = True
        self._news.unpark_all()
