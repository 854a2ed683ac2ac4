"""The simulator finds bugs: each of these, planted into the server, is found within `SEEDS` seeds.

A planted bug is a function that patches the real code. What a bug does to a worker, or leaves behind, is found by the
rules of `Ledger` and by the checks at a run's end, none of which knows of the bug.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from attrs import evolve

from protocol.dubbing import FragmentData, readable_id
from sts_trio.engines.pool import Pool
from sts_trio.server import gateway
from sts_trio.server.gateway import Gateway
from sts_trio.stream.assets import Fragment
from sts_trio.stream.delivery import Delivery
from sts_trio.stream.flow import FlowControl
from sts_trio.stream.memory import StreamMemory
from sts_trio.stream.order import ResultOrder
from sts_trio.stream.pipeline import Pipeline
from sts_trio.stream.reporting import Reporter
from sts_trio.stream.results import ResultBuffer
from sts_trio.stream.session import StreamSession
from sts_trio.stream.stages import Stages
from sts_trio.testing.simulation import Scenario, simulate

pytestmark = pytest.mark.slow

SEEDS = 200

FIRST = {"keep_results_without_bound": 50, "forget_that_a_slowed_worker_may_go_on": 30, "outlive_the_grace": 15}
"""Seeds before these do not show the bug: they would only take their time."""

Plant = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Plant] = {}


def bug(plant: Plant) -> Plant:
    BUGS[plant.__name__] = plant
    return plant


@bug
def drop_a_token(patch: pytest.MonkeyPatch) -> None:
    def finish(self: StreamSession, fragment: Fragment) -> None:
        if fragment.error is None:
            self._tokens.release_on_behalf_of(fragment.token)
        if fragment.id in self._accepted:
            fragment.finished_at = trio.current_time()
            self._delivery.finish(fragment)

    patch.setattr(StreamSession, "_finish", finish)


@bug
def swallow_a_cancelled(patch: pytest.MonkeyPatch) -> None:
    speak = Stages.speak

    async def swallow(self: Stages, fragment: Fragment) -> None:
        with suppress(trio.Cancelled):
            await speak(self, fragment)

    patch.setattr(Stages, "speak", swallow)


@bug
def emit_early(patch: pytest.MonkeyPatch) -> None:
    def pop_ready(self: ResultOrder[Any]) -> list[Any]:
        ready = list(self._parked.values())
        for number in self._parked:
            del self._open[number]
            self.next_number = max(self.next_number or 0, number + 1)
        self._parked.clear()
        return ready

    patch.setattr(ResultOrder, "pop_ready", pop_ready)


@bug
def forget_a_refusals_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gateway, "readable_id", lambda args, key: None if key == "fragment_id" else readable_id(args, key))


@bug
def leak_a_session(patch: pytest.MonkeyPatch) -> None:
    kept: list[StreamSession] = []
    init = StreamSession.__init__

    def keep(self: StreamSession, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        kept.append(self)

    patch.setattr(StreamSession, "__init__", keep)


@bug
def send_a_result_twice(patch: pytest.MonkeyPatch) -> None:
    deliver = Delivery.deliver

    def twice(self: Delivery, fragment: Fragment) -> None:
        deliver(self, fragment)
        if fragment.error is not None:
            self.tell(self._report.result(fragment))

    patch.setattr(Delivery, "deliver", twice)


@bug
def ignore_a_deadline(patch: pytest.MonkeyPatch) -> None:
    perform = Pipeline._perform

    async def patient(self: Pipeline, step: Any, fragment: Fragment) -> None:
        fragment.deadline = math.inf
        await perform(self, step, fragment)

    patch.setattr(Pipeline, "_perform", patient)


@bug
def keep_results_without_bound(patch: pytest.MonkeyPatch) -> None:
    keep = ResultBuffer.keep

    def hoard(self: ResultBuffer, result: Any) -> None:
        self.used_bytes = 0
        keep(self, result)

    patch.setattr(ResultBuffer, "keep", hoard)


@bug
def replay_what_was_acknowledged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Delivery, "acknowledge", lambda self, fragment_id: None)


@bug
def replay_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Delivery, "replay", lambda self, next_number: None)


@bug
def wait_for_a_gap_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Delivery, "_watch_gap", lambda self: None)


@bug
def wait_for_what_was_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ResultOrder, "pass_over", lambda self, fragment_id, number: None)


@bug
def complete_too_early(patch: pytest.MonkeyPatch) -> None:
    end = StreamSession.end

    def hasty(self: StreamSession) -> None:
        end(self)
        self._delivery.complete()
        self.cancel()

    patch.setattr(StreamSession, "end", hasty)


@bug
def outlive_the_grace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamSession, "detach", lambda self: self._delivery.detach())


@bug
def refuse_a_resume_within_the_grace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamSession, "detach", StreamSession.cancel)


@bug
def let_another_worker_take_a_stream(patch: pytest.MonkeyPatch) -> None:
    init = StreamSession.__init__

    def nameless(self: StreamSession, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.worker_id = "rival"

    patch.setattr(StreamSession, "__init__", nameless)


@bug
def work_for_the_dead(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pool, "_give_up", lambda self, ticket: None)


@bug
def process_a_duplicate_again(patch: pytest.MonkeyPatch) -> None:
    receive = StreamSession.receive

    def forgetful(self: StreamSession, data: FragmentData) -> Any:
        self._delivery._order.allow_retry(data.fragment_id, data.sequence_number)
        self._delivery._results.forget(data.fragment_id)
        return receive(self, data)

    patch.setattr(StreamSession, "receive", forgetful)


@bug
def admit_without_bound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FlowControl, "admits", lambda self, *args: True)


@bug
def tell_every_change_of_the_load(patch: pytest.MonkeyPatch) -> None:
    update = StreamSession._update_flow

    def chatty(self: StreamSession) -> None:
        update(self)
        self._tell_level()

    patch.setattr(StreamSession, "_update_flow", chatty)


@bug
def leave_a_failure_without_audio(patch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Pipeline, fragment: Fragment) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Pipeline, "_fall_back", nothing)


@bug
def cut_the_audio_short(patch: pytest.MonkeyPatch) -> None:
    deliver = Stages._deliver
    patch.setattr(Stages, "_deliver", lambda self, fragment, data: deliver(self, fragment, data[:-2]))


@bug
def forget_streams_when_draining(patch: pytest.MonkeyPatch) -> None:
    async def forget(self: Gateway) -> None:
        await trio.lowlevel.checkpoint()
        self._closed_because = "the server is shutting down"
        for link in self._links.values():
            link.session.cancel()

    patch.setattr(Gateway, "drain", forget)


@bug
def take_fragments_while_paused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamSession, "pause", lambda self: None)


@bug
def never_tell_the_load(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamSession, "_tell_level", lambda self: None)


@bug
def forget_that_a_slowed_worker_may_go_on(patch: pytest.MonkeyPatch) -> None:
    attach = StreamSession.attach

    def forget(self: StreamSession, *args: Any) -> Any:
        self._was_slowed = False
        return attach(self, *args)

    patch.setattr(StreamSession, "attach", forget)


@bug
def give_up_a_gap_without_a_word(patch: pytest.MonkeyPatch) -> None:
    def silently(self: Delivery) -> None:
        self._order.skip_gap()
        self._emit_ready()

    patch.setattr(Delivery, "_give_up_gap", silently)


@bug
def never_process_a_failure_again(patch: pytest.MonkeyPatch) -> None:
    def stubborn(self: Delivery, fragment_id: str) -> Any:
        kept = self._results.get(fragment_id)
        return kept and self._tell_kept(kept)

    patch.setattr(Delivery, "tell_again", stubborn)


@bug
def mix_up_a_batch(patch: pytest.MonkeyPatch) -> None:
    next_batch = Pool._next_batch

    async def swapped(self: Pool[Any, Any]) -> list[Any]:
        batch = await next_batch(self)
        requests = [ticket.request for ticket in batch]
        for ticket, request in zip(batch, reversed(requests), strict=True):
            ticket.request = request
        return batch

    patch.setattr(Pool, "_next_batch", swapped)


@bug
def lose_the_metadata(patch: pytest.MonkeyPatch) -> None:
    result = Reporter.result

    def bare(self: Reporter, fragment: Fragment) -> Any:
        whole = result(self, fragment)
        return evolve(whole, metadata={key: whole.metadata[key] for key in whole.metadata if key != "pts_ns"})

    patch.setattr(Reporter, "result", bare)


@bug
def count_what_has_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamMemory, "remove", lambda self, fragment_id: None)


@bug
def tell_every_result_late(patch: pytest.MonkeyPatch) -> None:
    finish = Delivery.finish

    def slowly(self: Delivery, fragment: Fragment) -> None:
        trio.lowlevel.spawn_system_task(later, self, fragment)

    async def later(delivery: Delivery, fragment: Fragment) -> None:
        await trio.sleep(2.0)
        if fragment.id in delivery._order._open.values() or fragment.late:
            finish(delivery, fragment)

    patch.setattr(Delivery, "finish", slowly)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[name](monkeypatch)
    assert any(simulate(Scenario.of_seed(seed)).violations for seed in range(FIRST.get(name, 0), SEEDS)), (
        f"{SEEDS} seeds did not find it"
    )
