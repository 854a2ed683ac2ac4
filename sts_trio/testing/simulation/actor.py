"""A worker of a scenario: it dubs one stream to its end, with its manners, through all its trouble."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any, Final

import trio
from attrs import define, field

from ..ledger import Ledger
from ..network import Network
from ..payloads import fragment, stream_init
from ..terms import Terms
from ..worker import NotLetIn, WireWorker
from .content import level_of, mistaken, pcm
from .presence import ANSWER_S, Presence
from .scenario import SLOT_MS, Scenario, WorkerPlan
from .trace import Trace

STUCK_S: Final = 600.0
"""More than any stream needs to complete."""

COMPLETES_S: Final = 10.0
"""For a stream of nothing."""

FRESH_ENOUGH: Final = 20
"""Of what was sent, the last so many are sent again."""


@define(eq=False)
class Actor:
    """One worker."""

    plan: WorkerPlan
    scenario: Scenario
    network: Network
    trace: Trace
    counts: Counter[str]
    draining: trio.Event
    _chance: random.Random = field(init=False)
    _presence: Presence = field(init=False)
    _number: int = field(default=0, init=False)
    _held_back: list[int] = field(factory=list, init=False)
    _sent: list[tuple[str, int]] = field(factory=list, init=False)
    _delay_s: float = field(default=0.0, init=False)  # as backpressure asks

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(f"{self.scenario.seed} {self.plan.stream_id}")
        self._presence = Presence(
            self.plan,
            self.scenario,
            self.network,
            self.trace,
            self.counts,
            self.draining,
            self._chance,
            hear=self._hear,
            begin=self._begin,
        )

    @property
    def ledgers(self) -> list[Ledger]:
        """Of the sessions it has had, the present one last."""
        return self._presence.ledgers

    @property
    def problems(self) -> list[str]:
        """What is wrong beside what the ledgers say."""
        return self._presence.problems

    @property
    def terms(self) -> Terms:
        """What it and the server agree on."""
        return self._presence.terms

    def hear_of_drain(self) -> None:
        """The server is about to be stopped."""
        self._presence.hear_of_drain()

    # ------------------------------------------------------------------------------------ its life

    async def run(self) -> None:
        """Dub the stream; returns when it is complete, or cannot be any more."""
        await trio.sleep(self.plan.start_s)
        self._number = self._chance.choice((0, 0, 7))
        async with trio.open_nursery() as nursery:
            await nursery.start(self._presence.run)
            stays = True
            try:
                with trio.fail_after(self._longest_s):
                    stays = await self._dub()
            except trio.TooSlowError:
                self.problems.append(f"stuck, without {self._ledger.owes[:3] if self.ledgers else 'a session'}")
            self._presence.close()
            nursery.cancel_scope.cancel()
        if stays:
            self._presence.check_completed()

    @property
    def _longest_s(self) -> float:
        """Many times what it has to send, and what its troubles may take."""
        is_troubled = self.plan.trouble.every_s < math.inf
        return STUCK_S + (100 if is_troubled else 20) * self.plan.pace_s * self.plan.fragments

    @property
    def _ledger(self) -> Ledger:
        return self._presence.ledger

    async def _dub(self) -> bool:
        """Send everything, and see it completed; False where it leaves its stream instead."""
        plan, presence = self.plan, self._presence
        for _ in range(plan.fragments):
            if not await presence.attached():
                return True
            if self._chance.random() < plan.manners.deserts:
                self.counts["deserters"] += 1
                return False
            await self._turn()
            await trio.sleep(self._chance.choice((plan.pace_s, self._chance.expovariate(1 / plan.pace_s))))
            await trio.sleep(self._delay_s)
        while await presence.attached():
            self._ledger.ends()
            presence.emit("stream:end", {"stream_id": plan.stream_id}, owed=len(self._ledger.owes))
            if self._chance.random() < plan.manners.deserts:
                self.counts["deserters"] += 1
                return False
            await presence.until(lambda: presence.is_over)
        return True

    async def _turn(self) -> None:
        chance, manners = self._chance, self.plan.manners
        if chance.random() < manners.rivals:
            await self._be_rivalled()
        if chance.random() < manners.pauses:
            await self._pause()
        if chance.random() < manners.restarts:
            await self._presence.open(resume=False)
        elif chance.random() < manners.leaves:
            await self._presence.leave()
        else:
            for _ in range(chance.randint(2, 12) if chance.random() < manners.bursts else 1):
                self._send_something()

    # ------------------------------------------------------------------------------------ what it sends

    def _send_something(self) -> None:
        chance, manners = self._chance, self.plan.manners
        if self._sent and chance.random() < manners.repeats:
            self.counts["repeats"] += 1
            self._send(*chance.choice(self._sent[-FRESH_ENOUGH:]))
        elif chance.random() < manners.retries and (again := self._ledger.retryable()):
            self.counts["retries"] += 1
            self._send(*chance.choice(again[-FRESH_ENOUGH:]))
        elif self._held_back and chance.random() < 0.5:
            self._send_new(self._held_back.pop())
        else:
            if chance.random() < manners.skips:
                self.counts["gaps"] += 1
                self._number += chance.choice((1, 1, 3))
            if chance.random() < manners.swaps:
                self._held_back.append(self._number)
                self._number += 1
            self._number += 1
            self._send_new(self._number - 1)

    def _send_new(self, number: int) -> None:
        self.counts["fragments"] += 1
        self._send(f"{self.plan.stream_id}-{number}", number)

    def _send(self, fragment_id: str, number: int) -> None:
        chance, manners = self._chance, self.plan.manners
        metadata = {"pts_ns": number * 1_000_000_000}
        body = fragment(
            number,
            self.plan.stream_id,
            SLOT_MS,
            sound=pcm(level_of(fragment_id), SLOT_MS * self.terms.sample_rate_hz // 1000),
            binary=self.plan.binary,
            fragment_id=fragment_id,
            metadata=metadata,
        )
        is_valid = chance.random() >= manners.malformed
        if not is_valid:
            body["timestamp"] = chance.choice(("soon", -1, None, [1]))
        elif chance.random() < manners.undecodable:
            body["audio"] = body["audio"] | {"format": "m4a"}
        if self._presence.emit("fragment:data", body, fragment_id=fragment_id, valid=is_valid):
            self._sent.append((fragment_id, number))
            self._ledger.sends(fragment_id, number, valid=is_valid, metadata=metadata)

    async def _pause(self) -> None:
        if not self._presence.emit("stream:pause", {"stream_id": self.plan.stream_id}):
            return
        self.counts["pauses"] += 1
        self._ledger.pauses()
        self._send_something()
        await trio.sleep(self._chance.choice((0.0, 2.0)))
        if not self._presence.is_lost:
            self._ledger.goes_on()
            self._presence.emit("stream:resume", {"stream_id": self.plan.stream_id})

    async def _be_rivalled(self) -> None:
        """Another worker asks for the stream; while ours is there, it must not get it."""
        self.counts["rivals"] += 1
        answers, answered = list[str](), trio.Event()

        def hear(event: str, body: dict[str, Any]) -> None:
            answers.append(body.get("code", event))
            answered.set()

        wire = WireWorker(hear)
        async with trio.open_nursery() as nursery:
            try:
                end, _ = self.network.connect(self.plan.quality)
                await nursery.start(wire.run, end)
            except (NotLetIn, ConnectionRefusedError):
                return
            wire.emit("stream:init", stream_init(self.plan.stream_id, "rival"))
            with trio.move_on_after(ANSWER_S):
                await answered.wait()
            if "stream:ready" in answers:
                if not self._presence.is_lost and not self._presence.troubles.excuse:
                    self.problems.append("another worker has got the stream")
                wire.emit("stream:end", {"stream_id": self.plan.stream_id})
                await trio.sleep(COMPLETES_S)
            wire.vanish()

    # ------------------------------------------------------------------------------------ what it hears

    def _hear(self, event: str, body: dict[str, Any]) -> None:
        manners = self.plan.manners
        if event == "fragment:processed":
            self.problems.extend(mistaken(body))
        if event == "fragment:processed" and self._chance.random() < manners.acknowledges:
            name = body["fragment_id"]
            if self._presence.emit("fragment:ack", {"fragment_id": name, "status": "applied"}, fragment_id=name):
                self._ledger.acknowledges(name)
        elif event == "backpressure" and manners.obeys:
            self._delay_s = body["recommended_delay_ms"] / 1000

    def _begin(self) -> None:
        """A new session knows nothing of what was sent before."""
        self._sent.clear()
        self._held_back.clear()
        self._delay_s = 0.0
