"""Events at the gateway: who may open what, and how everything that is wrong is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from sts_trio.config import Settings
from sts_trio.engines.base import Transcript
from sts_trio.server.application import Refusal
from sts_trio.testing.engines import HANG, ScriptedAsr, Step, scripted_models
from sts_trio.testing.memory import MemoryWorker, memory_server
from sts_trio.testing.payloads import fragment, stream_init


def last_error(worker: MemoryWorker) -> dict[str, Any]:
    return worker.got("error")[-1]


# ---------------------------------------------------------------- letting workers in


async def test_without_a_key_no_token_is_asked_for(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        assert MemoryWorker(server.gateway).connect() is None


@pytest.mark.parametrize("token", [None, "wrong", "", "sécret", "righ", "rightly"])
async def test_a_wrong_token_is_refused(token: str | None, autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(api_key="right")) as server:
        refusal = MemoryWorker(server.gateway).connect(token)
        assert isinstance(refusal, Refusal)
        assert refusal.data == {"code": "AUTH_FAILED"}


async def test_the_right_token_is_let_in(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(api_key="right")) as server:
        assert MemoryWorker(server.gateway).connect("right") is None


# ---------------------------------------------------------------- opening streams


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"source_language": "xx"}, "UNSUPPORTED_LANGUAGE", "does not transcribe xx"),
        ({"target_language": "en"}, "UNSUPPORTED_LANGUAGE", "en-en"),
        ({"target_language": "fi"}, "UNSUPPORTED_LANGUAGE", "does not speak fi"),
        ({"voice_profile": "nobody"}, "INVALID_VOICE_PROFILE", "config.voice_profile"),
        ({"sample_rate_hz": 7_999}, "INVALID_CONFIG", "config.sample_rate_hz"),
        ({"timeout_ms": 999}, "INVALID_CONFIG", "timeout_ms"),
        ({"resume": {"session_id": "gone"}}, "STREAM_NOT_FOUND", "start afresh"),
    ],
)
async def test_a_stream_that_cannot_be_opened_is_refused_by_name(
    changes: dict[str, Any], code: str, names: str, autojump_clock: MockClock
) -> None:
    async with memory_server() as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init(**changes))
        assert last_error(worker)["code"] == code
        assert last_error(worker)["stream_id"] == "s"
        assert names in last_error(worker)["message"]
        assert server.gateway.active_streams == 0


async def test_another_worker_cannot_take_a_stream(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        first, second = server.worker("first"), server.worker("second")
        await first.say("stream:init", stream_init())
        await second.say("stream:init", stream_init(worker_id="thief"))
        assert last_error(second)["code"] == "STREAM_EXISTS"
        await first.say("fragment:data", fragment(0))
        await first.wait_for("fragment:processed")


async def test_a_stream_that_has_ended_is_free_for_another_worker_at_once(autojump_clock: MockClock) -> None:
    for ticks in range(50):  # around the very moment
        async with memory_server() as server:
            first, second = server.worker("first"), server.worker("second")
            await first.say("stream:init", stream_init())
            await first.say("stream:end", {"stream_id": "s"})
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            complete = bool(first.got("stream:complete"))
            answer = await second.say("stream:init", stream_init(worker_id="other"))
            assert answer.get("code") == (None if complete else "STREAM_EXISTS"), ticks


async def test_a_worker_whose_stream_was_started_afresh_elsewhere_is_told(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        old, new = server.worker("old"), server.worker("new")
        await old.say("stream:init", stream_init())
        await new.say("stream:init", stream_init())
        assert (last_error(old)["code"], last_error(old)["severity"]) == ("STREAM_EXISTS", "fatal")
        assert new.got("error") == []


async def test_one_stream_too_many_is_refused_and_may_come_again(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(max_concurrent_streams=2)) as server:
        worker = server.worker()
        for name in "abc":
            await worker.say("stream:init", stream_init(name))
        assert (last_error(worker)["code"], last_error(worker)["retryable"]) == ("TOO_MANY_STREAMS", True)
        await worker.say("stream:init", stream_init("a"))  # its own stream again takes no more room
        assert len(worker.got("stream:ready")) == 3


async def test_a_connection_with_another_stream_is_not_closed_when_one_completes(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init("a"))
        await worker.say("stream:init", stream_init("b"))
        await worker.say("stream:end", {"stream_id": "a"})
        await worker.wait_for("stream:complete")
        await trio.sleep(10)
        assert not worker.closed


async def test_the_successor_of_a_half_dead_connection_takes_its_stream_over(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        old, new = server.worker("old"), server.worker("new")
        await old.say("stream:init", stream_init())
        session_id = old.got("stream:ready")[0]["session_id"]
        await new.say("stream:init", stream_init(resume={"session_id": session_id}))
        await old.say("fragment:data", fragment(0))
        assert last_error(old)["code"] == "STREAM_NOT_FOUND"
        old.disconnect()
        await new.say("fragment:data", fragment(0))
        await new.wait_for("fragment:processed")


# ---------------------------------------------------------------- events of other streams, and unknown ones


@pytest.mark.parametrize("event", ["stream:pause", "stream:resume", "stream:end"])
async def test_an_event_for_a_stream_of_somebody_else_is_refused(event: str, autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        mine, theirs = server.worker("mine"), server.worker("theirs")
        await theirs.say("stream:init", stream_init())
        await mine.say(event, {"stream_id": "s"})
        assert last_error(mine)["code"] == "STREAM_NOT_FOUND"
        await theirs.say("fragment:data", fragment(0))
        await theirs.wait_for("fragment:processed")


async def test_a_refusal_for_somebody_elses_stream_passes_over_none_of_its_numbers(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(gap_timeout_ms=3_000)) as server:
        mine, theirs = server.worker("mine"), server.worker("theirs")
        await theirs.say("stream:init", stream_init())
        await theirs.say("fragment:data", fragment(0))
        await mine.say("fragment:data", fragment(1))
        await theirs.say("fragment:data", fragment(2))
        await theirs.wait_for("fragment:processed", 2)
        assert theirs.times("fragment:processed") == [0, 3]


async def test_a_lost_connection_takes_none_of_its_streams_with_it(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(resume_grace_s=2)) as server:
        worker = server.worker()
        for name in "ab":
            await worker.say("stream:init", stream_init(name))
        worker.disconnect()
        await trio.sleep(1.9)
        assert server.gateway.active_streams == 2
        await trio.sleep(0.2)
        assert server.gateway.active_streams == 0


async def test_an_unknown_event_is_ignored(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = server.worker()
        assert await worker.say("stream:future", {"stream_id": "s"}) is None
        assert worker.received == []


async def test_a_fragment_over_the_size_limit_is_refused_and_passed_over(autojump_clock: MockClock) -> None:
    async with memory_server(settings=Settings(max_fragment_bytes=20_000)) as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init())
        await worker.say("fragment:data", fragment(0))
        await worker.say("fragment:data", fragment(1, duration_ms=2_000))
        await worker.say("fragment:data", fragment(2))
        await worker.wait_for("fragment:processed", 2)
        assert (last_error(worker)["code"], last_error(worker)["fragment_id"]) == ("FRAGMENT_TOO_LARGE", "f1")
        assert trio.current_time() == 0


async def test_an_answer_also_goes_to_a_callback(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = server.worker()
        assert await worker.say("stream:init", stream_init()) == worker.got("stream:ready")[0]
        assert await worker.say("fragment:data", fragment(0)) == worker.got("fragment:ack")[0]
        refused = await worker.say("fragment:data", {"fragment_id": "f1", "stream_id": "s"})
        assert refused == last_error(worker)


# ---------------------------------------------------------------- draining


async def test_draining_completes_what_is_in_flight_and_lets_nobody_in(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), 2))
    async with memory_server(scripted_models(asr)) as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init())
        await worker.say("fragment:data", fragment(0))
        await trio.sleep(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.gateway.drain)
            await trio.testing.wait_all_tasks_blocked()
            await worker.say("fragment:data", fragment(1))
            assert (last_error(worker)["fragment_id"], last_error(worker)["code"]) == ("f1", "TEMPORARY_UNAVAILABLE")
            await worker.say("stream:init", stream_init("other"))
            assert last_error(worker)["code"] == "TEMPORARY_UNAVAILABLE"
            assert isinstance(MemoryWorker(server.gateway).connect(), Refusal)
        assert trio.current_time() == 2
        assert [name for _, name, _ in worker.received[-2:]] == ["fragment:processed", "stream:complete"]


async def test_what_is_in_flight_is_acknowledged_again_while_draining(autojump_clock: MockClock) -> None:
    """A worker that asks whether its fragment has arrived is not told that it was refused."""
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), 1.0))
    async with memory_server(scripted_models(asr)) as server, trio.open_nursery() as nursery:
        worker = server.worker()
        await worker.say("stream:init", stream_init())
        await worker.say("fragment:data", fragment(0))
        nursery.start_soon(server.gateway.drain)
        await trio.sleep(0.5)
        assert (await worker.say("fragment:data", fragment(0)))["queue_position"] == 0
        assert (await worker.say("fragment:data", fragment(1)))["code"] == "TEMPORARY_UNAVAILABLE"
        await worker.wait_for("stream:complete")
        assert len(worker.got("fragment:processed")) == 1


async def test_draining_does_not_wait_for_a_worker_that_is_away(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init())
        worker.disconnect()
        await trio.sleep(1)
        await server.gateway.drain()
        assert trio.current_time() == 1


async def test_draining_does_not_wait_for_a_worker_that_leaves_meanwhile(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), 2))
    async with memory_server(scripted_models(asr)) as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init())
        await worker.say("fragment:data", fragment(0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.gateway.drain)
            await trio.sleep(1)
            worker.disconnect()
        assert trio.current_time() == 1


async def test_what_is_in_flight_when_the_time_for_draining_is_over_fails_by_name(autojump_clock: MockClock) -> None:
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), HANG))
    async with memory_server(scripted_models(asr)) as server:
        worker = server.worker()
        await worker.say("stream:init", stream_init(max_inflight=1, timeout_ms=30_000))
        for number in range(3):
            await worker.say("fragment:data", fragment(number))
        with trio.move_on_after(5):
            await server.gateway.drain()
        server.gateway.abandon()
        results = worker.got("fragment:processed")
        assert [result["error"]["code"] for result in results] == ["TEMPORARY_UNAVAILABLE"] * 3
        assert [result["error"]["stage"] for result in results] == ["asr", "decode", "decode"]
        assert [result["dubbed_audio"]["duration_ms"] for result in results] == [1_000] * 3  # silence that was ready
        assert worker.received[-1][1] == "stream:complete"
        await trio.testing.wait_all_tasks_blocked()
        assert server.in_flight == 0
        assert server.gateway.active_streams == 0


async def test_what_was_still_to_be_sent_again_when_the_time_for_draining_is_over_leaves_at_once(
    autojump_clock: MockClock,
) -> None:
    class SlowReader(MemoryWorker):
        async def drained(self) -> None:
            await trio.sleep(60)

    steps = iter([*[Step(Transcript("hello"))] * 3, Step(Transcript("hello"), HANG)])
    async with memory_server(scripted_models(ScriptedAsr(script=lambda _: next(steps)))) as server:
        worker = server.worker()
        ready = await worker.say("stream:init", stream_init(timeout_ms=30_000))
        for number in range(3):
            await worker.say("fragment:data", fragment(number))
        await worker.wait_for("fragment:processed", 3)
        worker.disconnect()
        back = SlowReader(server.gateway, "back")
        assert back.connect() is None
        await back.say("stream:init", stream_init(resume={"session_id": ready["session_id"]}))
        await back.say("fragment:data", fragment(3))
        with trio.move_on_after(5):
            await server.gateway.drain()
        server.gateway.abandon()
        assert [result["sequence_number"] for result in back.got("fragment:processed")] == [0, 1, 2, 3]
        assert back.received[-1][1] == "stream:complete"


async def test_a_stream_that_crashes_gives_every_fragment_its_result_and_harms_no_other(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asr = ScriptedAsr(script=lambda _: Step(Transcript("hello"), 1))
    async with memory_server(scripted_models(asr)) as server:
        worker, other = server.worker("worker"), server.worker("other")
        await worker.say("stream:init", stream_init())
        await other.say("stream:init", stream_init("other"))

        def crash(order: object) -> None:
            raise ZeroDivisionError("secret")

        await worker.say("fragment:data", fragment(0))
        await worker.say("fragment:data", fragment(1))
        with monkeypatch.context() as patch:
            patch.setattr("sts_trio.stream.order.ResultOrder.pop_ready", crash)
            await trio.sleep(1.5)
        results = worker.got("fragment:processed")
        assert [result["fragment_id"] for result in results] == ["f0", "f1"]
        assert last_error(worker)["code"] == "INTERNAL_ERROR"
        assert "secret" not in str(worker.received)
        assert server.in_flight == 0
        await other.say("fragment:data", fragment(0, "other"))
        await other.wait_for("fragment:processed")


async def test_the_connection_stays_open_for_the_last_stream_that_completes(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = server.worker()
        for name, pause in (("a", 4.9), ("b", 0.0)):
            await worker.say("stream:init", stream_init(name))
            await worker.say("stream:end", {"stream_id": name})
            await trio.sleep(pause)
        await trio.sleep(4.9)
        assert not worker.closed


async def test_streams_that_complete_together_close_their_connection_once(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        for _ in range(20):  # who of them wakes first is a matter of chance
            worker = server.worker()
            for name in "abc":
                await worker.say("stream:init", stream_init(name))
            for name in "abc":
                await worker.say("stream:end", {"stream_id": name})
            await worker.wait_for("stream:complete", 3)
            await trio.sleep(6)
            assert worker.closed


async def test_an_acknowledgement_can_name_its_stream(autojump_clock: MockClock) -> None:
    async with memory_server() as server:
        worker = server.worker()
        for name in "ab":
            await worker.say("stream:init", stream_init(name))
            await worker.say("fragment:data", fragment(0, name))
        await worker.wait_for("fragment:processed", 2)
        await worker.say("fragment:ack", {"fragment_id": "f0", "status": "applied", "timestamp": 1, "stream_id": "a"})
        await worker.say("fragment:data", fragment(0, "b"))  # still kept: sent again
        assert len(worker.got("fragment:processed")) == 3
        await worker.say("fragment:data", fragment(0, "a"))  # not kept, and its number has passed
        assert last_error(worker)["code"] == "INVALID_SEQUENCE"


# ---------------------------------------------------------------- whatever a worker may send

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)

VALID: dict[str, dict[str, Any]] = {
    "stream:init": stream_init("other"),
    "fragment:data": fragment(1, fragment_id="odd"),
    "fragment:ack": {"fragment_id": "f0", "status": "received", "timestamp": 1},
    "stream:pause": {"stream_id": "other"},
    "stream:resume": {"stream_id": "other"},
    "stream:end": {"stream_id": "other"},
}


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[str, Any]:
    """An event with one of its fields, at any depth, replaced or missing; or with a payload of any kind."""
    event = draw(st.sampled_from(sorted(VALID)))
    body = copy.deepcopy(VALID[event])
    target: Any = body
    while True:
        key = draw(st.sampled_from(sorted(target)))
        if isinstance(target[key], dict) and draw(st.booleans()):
            target = target[key]
            continue
        break
    match draw(st.sampled_from(["replace", "remove", "anything"])):
        case "replace":
            target[key] = draw(json_values)
        case "remove":
            del target[key]
        case _:
            return event, draw(json_values)
    return event, body


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(spoiled(), min_size=1, max_size=4))
def test_whatever_is_sent_is_answered_by_name_and_disturbs_nobody(events: list[tuple[str, Any]]) -> None:
    async def scenario() -> None:
        async with memory_server() as server:
            hostile, honest = server.worker("hostile"), server.worker("honest")
            await honest.say("stream:init", stream_init("honest"))
            await honest.say("fragment:data", fragment(0, "honest"))
            for event, body in events:
                before = len(hostile.received)
                await hostile.say(event, body)
                if event == "fragment:data" or (event.startswith("stream:") and not isinstance(body, dict)):
                    assert len(hostile.received) > before, f"{event} was not answered"
                for _, name, answer in hostile.received[before:]:
                    if name == "error":
                        assert answer["code"] != "INTERNAL_ERROR"
                        named = body.get("fragment_id") if isinstance(body, dict) else None
                        if isinstance(named, str) and event.startswith("fragment:"):
                            assert answer["fragment_id"] == named[:256]
            await honest.say("fragment:data", fragment(1, "honest"))
            await honest.say("stream:end", {"stream_id": "honest"})
            await honest.wait_for("stream:complete")
            assert [result["status"] for result in honest.got("fragment:processed")] == ["success", "success"]
            assert honest.got("error") == []

    trio.run(scenario, clock=MockClock(autojump_threshold=0))
