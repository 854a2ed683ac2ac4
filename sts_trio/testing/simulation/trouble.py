"""What befalls a worker's connections, and how long that excuses what it sees."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field, frozen

from ..network import Line
from ..worker import WireWorker
from .scenario import Trouble

AFTERMATH_S: Final = 20.0
"""So long after the network's trouble a lost connection is still its doing."""

GARBAGE_S: Final = 10.0
"""For a server to be done with whoever sends garbage."""


@frozen
class Attachment:
    """One connection of the worker."""

    wire: WireWorker
    line: Line


@define(eq=False)
class Troubles:
    """One worker's troubles, one after the other.

    Attributes:
        since: when the present or last one began.
    """

    plan: Trouble
    chance: random.Random
    counts: Counter[str]
    since: float = field(default=-math.inf, init=False)
    _until: float = field(default=-math.inf, init=False)

    def begin(self) -> None:
        """From now on the server may notice something."""
        self.since, self._until = trio.current_time(), math.inf

    def end(self) -> None:
        """All is well again; the aftermath begins."""
        self._until = trio.current_time()

    @property
    def excuse(self) -> bool:
        """Whether a connection that is lost now may be lost to them."""
        return trio.current_time() < self._until + AFTERMATH_S

    async def befall(self, attachment: Callable[[], Attachment | None], ended: Callable[[str], None]) -> None:
        """Go on for ever.

        Args:
            attachment: the connection there is now.
            ended: called when one is over, with its kind.
        """
        while self.plan.every_s < math.inf:
            await trio.sleep(self.chance.expovariate(1 / self.plan.every_s))
            victim = attachment()
            if victim is not None and not victim.wire.lost.is_set():
                kind = self.chance.choice(self.plan.kinds)
                self.counts[kind] += 1
                self.begin()
                await self._meet(kind, victim.wire, victim.line)
                self.end()
                ended(kind)

    async def _meet(self, kind: str, wire: WireWorker, line: Line) -> None:
        match kind:
            case "cut":
                line.cut()
                await trio.lowlevel.checkpoint()
            case "kill":
                wire.vanish()
                await trio.lowlevel.checkpoint()
            case "stall":
                line.stall()
                await trio.sleep(self.chance.choice((0.5, 3.0, 20.0)))
                line.go_on()
            case "half_open":
                line.stall()
                await trio.sleep(self.chance.choice((1.0, 12.0, 50.0)))  # it notices before the server, or after
                wire.vanish()
            case "garbage":
                wire.send_garbage()
                with trio.move_on_after(GARBAGE_S):
                    await wire.lost.wait()  # as a rule it is not talked to any further
            case "slow":
                wire.stop_reading()
                await trio.sleep(self.chance.choice((1.0, 10.0, 50.0)))
                wire.go_on_reading()
            case _:
                raise ValueError(f"no such trouble: {kind}")
