"""A worker that does what a test tells it to, against the real server on a network in memory."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from sts_trio.config import Settings
from sts_trio.testing.engines import ScriptedTts, Step, scripted_models, tone
from sts_trio.testing.network import WINDOW_BYTES, Line, Quality
from sts_trio.testing.payloads import fragment, stream_init
from sts_trio.testing.virtual import VirtualServer, virtual_server
from sts_trio.testing.worker import HANDSHAKE_TIMEOUT_S, NotLetIn, WireWorker

PERFECT = Quality()


@define
class Ears:
    """What a worker heard."""

    heard: list[tuple[str, dict[str, Any]]] = field(factory=list)

    def __call__(self, event: str, payload: dict[str, Any]) -> None:
        self.heard.append((event, payload))

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.heard]


async def connect(server: VirtualServer, nursery: trio.Nursery, worker: WireWorker, quality: Quality) -> Line:
    end, line = server.network.connect(quality)
    await nursery.start(worker.run, end)
    return line


async def join(server: VirtualServer, nursery: trio.Nursery, *, quality: Quality = PERFECT) -> tuple[WireWorker, Ears]:
    worker = WireWorker(ears := Ears())
    await connect(server, nursery, worker, quality)
    return worker, ears


def counted(server: VirtualServer, name: str, **labels: str) -> float | None:
    return server.server.metrics.registry.get_sample_value(name, labels)


def connections(server: VirtualServer) -> float | None:
    return counted(server, "sts_connections")


# -------------------------------------------------------------------------------------- it joins, says and hears


async def test_it_is_joined_when_it_has_started_and_dubs_a_stream(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker, ears = await join(server, nursery)
        assert connections(server) == 1
        assert worker.emit("stream:init", stream_init())
        assert worker.emit("fragment:data", fragment(0))
        assert worker.emit("stream:end", {"stream_id": "s"})
        with trio.fail_after(60):
            await worker.lost.wait()  # the server closes behind the last word
        assert ears.events == ["stream:ready", "fragment:ack", "fragment:processed", "stream:complete"]
        assert ears.heard[2][1]["transcript"] == "hello"


async def test_what_it_hears_is_heard_when_it_comes(autojump_clock: MockClock) -> None:
    times: list[float] = []
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker = WireWorker(lambda event, payload: times.append(trio.current_time()))
        await connect(server, nursery, worker, Quality(latency_s=0.25))
        asked = trio.current_time()
        worker.emit("stream:init", stream_init())
        await trio.sleep(1)
        assert times == [asked + 0.5]
        worker.vanish()


async def test_it_answers_pings_by_itself(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker, _ = await join(server, nursery)
        await trio.sleep(600)
        assert not worker.lost.is_set()
        worker.vanish()


async def test_what_is_wrong_goes_out_as_it_is(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker, ears = await join(server, nursery)
        worker.emit("stream:init", [None])
        worker.emit("nonsense", 7)
        worker.emit("fragment:data", {"fragment_id": "f"})
        await trio.sleep(1)
        assert [(event, body["code"]) for event, body in ears.heard] == [
            ("error", "INVALID_CONFIG"),
            ("error", "INVALID_FRAGMENT"),
        ]
        worker.vanish()


# -------------------------------------------------------------------------------------- it is not let in


@pytest.mark.parametrize("auth", [None, {"token": "wrong"}], ids=["no token", "a wrong one"])
async def test_without_the_token_it_is_refused(autojump_clock: MockClock, auth: dict[str, str] | None) -> None:
    async with virtual_server(settings=Settings(api_key="secret")) as server, trio.open_nursery() as nursery:
        worker = WireWorker(ears := Ears(), auth)
        with pytest.raises(NotLetIn, match="token missing or wrong"):
            await connect(server, nursery, worker, PERFECT)
        assert worker.lost.is_set()
        assert not worker.emit("stream:init", stream_init())
        assert ears.events == []


async def test_with_the_token_it_is_let_in(autojump_clock: MockClock) -> None:
    async with virtual_server(settings=Settings(api_key="secret")) as server, trio.open_nursery() as nursery:
        worker = WireWorker(Ears(), {"token": "secret"})
        await connect(server, nursery, worker, PERFECT)
        worker.vanish()


async def test_an_answer_that_is_no_websocket_lets_nobody_in(autojump_clock: MockClock) -> None:
    async with virtual_server(settings=Settings(max_connections=1)) as server, trio.open_nursery() as nursery:
        first, _ = await join(server, nursery)
        with pytest.raises(NotLetIn):
            await join(server, nursery)
        first.vanish()


async def test_a_server_that_does_not_answer_lets_nobody_in(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker = WireWorker(Ears())
        end, line = server.network.connect()
        line.stall()
        with pytest.raises(NotLetIn, match="ended"):
            await nursery.start(worker.run, end)
        assert trio.current_time() == HANDSHAKE_TIMEOUT_S


async def test_who_vanishes_before_it_has_joined_is_not_let_in(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker = WireWorker(Ears())
        nursery.start_soon(_vanish_after, worker, 0.5)
        with pytest.raises(NotLetIn, match="ended"):
            await connect(server, nursery, worker, Quality(latency_s=0.25))
        await trio.sleep(1)
        assert connections(server) == 0


async def _vanish_after(worker: WireWorker, delay_s: float) -> None:
    await trio.sleep(delay_s)
    worker.vanish()


async def test_before_it_has_joined_it_can_say_nothing(autojump_clock: MockClock) -> None:
    async with virtual_server() as server:
        worker = WireWorker(Ears())
        assert not worker.emit("stream:init", stream_init())
        assert connections(server) == 0


# -------------------------------------------------------------------------------------- it is gone


async def test_who_vanishes_is_gone_at_once_and_says_no_more(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker, ears = await join(server, nursery)
        worker.emit("stream:init", stream_init())
        await trio.sleep(1)
        before = trio.current_time()
        worker.emit("fragment:data", fragment(0))
        worker.vanish()
        await worker.lost.wait()
        assert trio.current_time() == before
        assert not worker.emit("fragment:data", fragment(1))
        await trio.sleep(1)
        assert ears.events == ["stream:ready"]
        assert connections(server) == 0


async def test_who_leaves_does_so_when_all_that_it_said_was_sent(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker, _ = await join(server, nursery, quality=Quality(bytes_per_s=10_000))
        worker.emit("stream:init", stream_init())
        for number in range(5):
            worker.emit("fragment:data", fragment(number))
        worker.leave()
        assert not worker.emit("fragment:data", fragment(5))
        await trio.sleep(60)
        assert counted(server, "sts_fragments_total", status="success") == 5
        worker.vanish()


async def test_who_leaves_twice_or_when_it_is_gone_disturbs_nobody(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker, _ = await join(server, nursery)
        worker.leave()
        worker.leave()
        worker.vanish()
        await worker.lost.wait()
        worker.leave()
        worker.vanish()


@pytest.mark.parametrize("loss", ["cut", "drain"])
async def test_a_connection_that_ends_is_lost(autojump_clock: MockClock, loss: str) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker = WireWorker(Ears())
        line = await connect(server, nursery, worker, PERFECT)
        if loss == "cut":
            line.cut()
        else:
            await server.stop()
        with trio.fail_after(1):
            await worker.lost.wait()
        assert not worker.emit("stream:init", stream_init())


async def test_a_line_that_is_silent_for_ever_is_not_a_loss_until_somebody_says_so(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker = WireWorker(Ears())
        line = await connect(server, nursery, worker, PERFECT)
        line.stall()
        await trio.sleep(600)
        assert not worker.lost.is_set()
        worker.vanish()
        await worker.lost.wait()


# -------------------------------------------------------------------------------------- it does not read


async def test_what_it_does_not_read_waits_on_the_network(autojump_clock: MockClock) -> None:
    async with virtual_server() as server, trio.open_nursery() as nursery:
        worker, ears = await join(server, nursery)
        worker.emit("stream:init", stream_init())
        await trio.sleep(1)
        worker.stop_reading()
        worker.emit("fragment:data", fragment(0))
        worker.emit("fragment:data", fragment(1))
        await trio.sleep(5)
        assert len(ears.events) <= 2  # the message that it was waiting for already
        worker.go_on_reading()
        await trio.sleep(1)
        assert ears.events.count("fragment:processed") == 2
        worker.vanish()


async def test_who_never_reads_again_is_lost_by_its_server(autojump_clock: MockClock) -> None:
    long = stream_init(chunk_duration_ms=10_000)
    models = scripted_models(tts=ScriptedTts(script=lambda request: Step(tone(10 / request.rate))))
    async with virtual_server(models) as server, trio.open_nursery() as nursery:
        worker, _ = await join(server, nursery)
        worker.emit("stream:init", long)
        await trio.sleep(1)
        worker.stop_reading()
        for number in range(WINDOW_BYTES // 160_000 + 3):
            worker.emit("fragment:data", fragment(number, duration_ms=10_000))
        await trio.sleep(60)
        assert connections(server) == 0
        worker.vanish()


# -------------------------------------------------------------------------------------- it comes back


@pytest.mark.parametrize(("away_s", "recovered"), [(5.0, True), (60.0, False)])
async def test_it_comes_back_to_what_it_missed_in_time(
    autojump_clock: MockClock, away_s: float, recovered: bool
) -> None:
    models = scripted_models(tts=ScriptedTts(script=lambda request: Step(tone(1 / request.rate), 2.0)))
    settings = Settings(recovery_s=30.0)
    notes: list[str] = []

    def hear(event: str, payload: dict[str, Any]) -> None:
        notes.append(event)

    async with virtual_server(models, settings) as server, trio.open_nursery() as nursery:
        first = WireWorker(hear)
        await connect(server, nursery, first, PERFECT)
        first.emit("stream:init", stream_init())
        first.emit("fragment:data", fragment(0))
        await trio.sleep(1)
        first.vanish()
        await trio.sleep(away_s)
        assert notes == ["stream:ready", "fragment:ack"]
        second = WireWorker(hear, recover=first, on_recovery=lambda: notes.append("recovered"))
        await connect(server, nursery, second, PERFECT)
        assert second.recovered is recovered
        await trio.sleep(1)
        assert notes[2:] == (["recovered", "fragment:processed"] if recovered else [])
        second.vanish()


async def test_it_is_not_recovered_where_nobody_asked(autojump_clock: MockClock) -> None:
    async with virtual_server(settings=Settings(recovery_s=30.0)) as server, trio.open_nursery() as nursery:
        first, _ = await join(server, nursery)
        first.vanish()
        second, _ = await join(server, nursery)
        assert not second.recovered
        second.vanish()
