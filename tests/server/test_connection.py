"""One worker's connection, in memory and on virtual time: order, heartbeat to the millisecond, bounds and ends."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import structlog.testing
import trio
import trio.testing
from attrs import define, field, fields
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection

from protocol.engineio import CloseReason
from protocol.socketio import NotJoined
from sts_trio.server.connection import ConnectionSettings
from sts_trio.server.sockets import LEAVE_S, REFUSALS, Peer, Refusal, SocketSettings
from sts_trio.server.websocket import PIECE

from .memory import CLIENT_ADDRESS, Pair, Server, SlowLink, serving

ids = itertools.count()


def new_id() -> str:
    return f"id-{next(ids)}"


@define
class Recorder:
    """An application that notes what it is told, echoes ``echo``, and does what a test tells it to."""

    peers: list[Peer] = field(factory=list)
    auths: list[dict[str, Any]] = field(factory=list)
    events: list[tuple[str, tuple[Any, ...]]] = field(factory=list)
    gone: list[tuple[str, CloseReason]] = field(factory=list)
    refusal: Refusal | None = None
    on_event: Callable[[Peer, str, tuple[Any, ...]], tuple[object, ...]] | None = None
    on_connect: Callable[[Peer], None] | None = None
    on_welcome: Callable[[Peer], None] | None = None

    def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
        self.auths.append(auth)
        if self.on_connect is not None:
            self.on_connect(peer)
        if self.refusal is None:
            self.peers.append(peer)
        return self.refusal

    def welcome(self, peer: Peer, auth: dict[str, Any]) -> None:
        if self.on_welcome is not None:
            self.on_welcome(peer)

    def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        self.events.append((event, args))
        if self.on_event is not None:
            return self.on_event(peer, event, args)
        if event == "echo":
            peer.emit("echo", args[0])
        return ()

    def disconnected(self, peer: Peer, reason: CloseReason) -> None:
        self.gone.append((peer.id, reason))


@define
class Worker:
    """A client that speaks in frames, so that it can also say what no library would."""

    websocket: WebSocketConnection

    async def send(self, *frames: str | bytes) -> None:
        for frame in frames:
            await self.websocket.send_message(frame)

    async def frame(self) -> str | bytes:
        frame: str | bytes = await self.websocket.get_message()
        return frame

    async def open_packet(self) -> dict[str, Any]:
        frame = await self.frame()
        assert isinstance(frame, str)
        assert frame[0] == "0"
        packet: dict[str, Any] = orjson.loads(frame[1:])
        return packet

    async def join(self, auth: str = "") -> None:
        await self.open_packet()
        await self.send(f"40{auth}")
        answer = await self.frame()
        assert isinstance(answer, str)
        assert answer.startswith('40{"sid":')

    async def wait_closed(self) -> int | None:
        """Read until the server closes; the close code, None where the connection was cut."""
        try:
            while True:
                await self.websocket.get_message()
        except ConnectionClosed as closed:
            return None if closed.reason is None else int(closed.reason.code)


@define
class Scene:
    server: Server
    worker: Worker
    application: Recorder


@asynccontextmanager
async def connected(
    application: Recorder | None = None, *, pair: Pair = memory_stream_pair, **settings: Any
) -> AsyncIterator[Scene]:
    """`settings` of connections or of Socket.IO, whoever has them."""
    application = application or Recorder()
    settings["new_id"] = new_id
    of_connection, of_sockets = (
        cls(**{name: value for name, value in settings.items() if name in {a.name for a in fields(cls)}})
        for cls in (ConnectionSettings, SocketSettings)
    )
    async with serving(application, settings=of_connection, sockets=of_sockets) as server:
        worker = Worker(await server.websocket(pair=pair))
        yield Scene(server, worker, application)


# -------------------------------------------------------------------------------------- joining


async def test_the_open_packet_says_what_the_settings_promise(autojump_clock: MockClock) -> None:
    async with connected(max_message_bytes=12_345) as scene:
        packet = await scene.worker.open_packet()
    assert packet | {"sid": ""} == {
        "sid": "",
        "upgrades": [],
        "pingInterval": 25_000,
        "pingTimeout": 10_000,
        "maxPayload": 12_345,
    }


async def test_a_worker_joins_with_its_auth_and_gets_a_sid_that_is_not_the_secret_one(
    autojump_clock: MockClock,
) -> None:
    async with connected() as scene:
        packet = await scene.worker.open_packet()
        await scene.worker.send('40{"token":"t"}')
        answer = await scene.worker.frame()
        [peer] = scene.application.peers
        assert answer == f'40{{"sid":"{peer.id}"}}'
        assert peer.id != packet["sid"]
        assert peer.address == CLIENT_ADDRESS
        assert not peer.closed
        assert scene.application.auths == [{"token": "t"}]


async def test_a_refused_worker_learns_why_and_may_ask_again(autojump_clock: MockClock) -> None:
    application = Recorder(refusal=Refusal("wrong token", {"code": "AUTH_FAILED"}))
    async with connected(application) as scene:
        await scene.worker.open_packet()
        await scene.worker.send("40")
        assert await scene.worker.frame() == '44{"message":"wrong token","data":{"code":"AUTH_FAILED"}}'
        application.refusal = None
        await scene.worker.send("40")
        assert str(await scene.worker.frame()).startswith("40")
    assert [reason for _, reason in application.gone] == [CloseReason.TRANSPORT_CLOSE]


async def test_no_connection_may_guess_on_and_on(autojump_clock: MockClock) -> None:
    async with connected(Recorder(refusal=Refusal("wrong token"))) as scene:
        await scene.worker.open_packet()
        await scene.worker.send(*['40{"token":"guess"}'] * (REFUSALS + 1))
        for _ in range(REFUSALS):
            assert await scene.worker.frame() == '44{"message":"wrong token"}'
        assert await scene.worker.wait_closed() == 1000
        assert trio.current_time() == 0
    assert len(scene.application.auths) == REFUSALS


async def test_who_has_not_joined_may_send_nothing_large(autojump_clock: MockClock) -> None:
    def connect(size: int) -> str:
        return '40{"token":"' + "a" * (size - 14) + '"}'

    async with connected() as scene:
        await scene.worker.open_packet()
        await scene.worker.send(connect(ConnectionSettings().stranger_message_bytes))
        assert str(await scene.worker.frame()).startswith("40")
        await scene.worker.send('42["now","' + "a" * ConnectionSettings().stranger_message_bytes + '"]')
        await trio.sleep(1)
        assert len(scene.application.events) == 1
    async with connected() as scene:
        await scene.worker.open_packet()
        await scene.worker.send(connect(ConnectionSettings().stranger_message_bytes + 1))
        assert await scene.worker.wait_closed() == 1009
    assert scene.application.auths == []


async def test_other_namespaces_do_not_exist(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.open_packet()
        await scene.worker.send("40/admin,")
        assert await scene.worker.frame() == '44/admin,{"message":"Invalid namespace"}'
        await scene.worker.send("40")
        assert str(await scene.worker.frame()).startswith("40")


async def test_nothing_can_be_sent_to_a_worker_that_was_not_let_in_yet(autojump_clock: MockClock) -> None:
    raised: list[BaseException] = []

    def emit_too_early(peer: Peer) -> None:
        try:
            peer.emit("early", {})
        except NotJoined as error:
            raised.append(error)

    async with connected(Recorder(on_connect=emit_too_early)) as scene:
        await scene.worker.join()
    assert len(raised) == 1


async def test_a_worker_that_leaves_and_joins_again_is_a_new_peer(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        await scene.worker.send("41")
        await trio.sleep(1)
        [first] = scene.application.peers
        assert scene.application.gone == [(first.id, CloseReason.CLIENT_CLOSE)]
        assert first.closed
        first.emit("into the void", {})
        await scene.worker.send("40")
        answer = await scene.worker.frame()
        second = scene.application.peers[-1]
        assert answer == f'40{{"sid":"{second.id}"}}'
        assert second.id != first.id


# -------------------------------------------------------------------------------------- events


async def test_events_reach_the_application_in_order(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        for number in range(20):
            await scene.worker.send(f'42["n",{number}]')
        await trio.sleep(5)
        assert scene.application.events == [("n", (number,)) for number in range(20)]


async def test_a_burst_of_emits_arrives_whole_and_in_order(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        for number in range(500):
            scene.application.peers[0].emit("n", number)
        assert [await scene.worker.frame() for _ in range(500)] == [f'42["n",{number}]' for number in range(500)]


async def test_bytes_travel_both_ways_as_attachments(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        await scene.worker.send('451-["echo",{"data":{"_placeholder":true,"num":0}}]', b"\x00\xff")
        assert await scene.worker.frame() == '451-["echo",{"data":{"_placeholder":true,"num":0}}]'
        assert await scene.worker.frame() == b"\x00\xff"
    assert scene.application.events == [("echo", ({"data": b"\x00\xff"},))]


@pytest.mark.parametrize(
    ("answer", "frames"),
    [
        (({"ok": True},), ['437[{"ok":true}]']),
        ((), ["437[]"]),
        ((1, "two"), ['437[1,"two"]']),
        ((b"\x01",), ['461-7[{"_placeholder":true,"num":0}]', b"\x01"]),
    ],
)
async def test_a_callback_gets_what_the_application_returns(
    autojump_clock: MockClock, answer: tuple[object, ...], frames: list[str | bytes]
) -> None:
    async with connected(Recorder(on_event=lambda peer, event, args: answer)) as scene:
        await scene.worker.join()
        await scene.worker.send('42["no callback"]', '427["callback"]')
        assert [await scene.worker.frame() for _ in frames] == frames


async def test_large_messages_of_text_and_bytes_arrive_whole(autojump_clock: MockClock) -> None:
    text = "é" * 300_000
    async with connected() as scene:
        await scene.worker.join()
        scene.application.peers[0].emit("big", text)
        scene.application.peers[0].emit("blob", b"\x07" * 200_000)
        assert await scene.worker.frame() == f'42["big","{text}"]'
        assert await scene.worker.frame() == '451-["blob",{"_placeholder":true,"num":0}]'
        assert await scene.worker.frame() == b"\x07" * 200_000


async def test_a_message_of_any_size_up_to_the_limit_is_taken_and_one_over_it_ends_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with connected(max_message_bytes=100_000) as scene:
        await scene.worker.join()
        await scene.worker.send('42["x","' + "a" * (100_000 - 10) + '"]')
        await trio.sleep(1)
        assert len(scene.application.events) == 1
        await scene.worker.send('42["x","' + "a" * 100_000 + '"]')
        assert await scene.worker.wait_closed() == 1009
        await scene.server.network.accepted[0].closed.wait()
    assert len(scene.application.events) == 1


# -------------------------------------------------------------------------------------- heartbeat


async def test_a_ping_leaves_every_interval_after_the_last_answer(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        assert await scene.worker.frame() == "2"
        assert trio.current_time() == 25
        await trio.sleep(9.999)
        await scene.worker.send("3")
        assert await scene.worker.frame() == "2"
        assert trio.current_time() == pytest.approx(34.999 + 25, abs=1e-9)


async def test_a_worker_that_does_not_answer_a_ping_is_gone_to_the_millisecond(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        assert await scene.worker.frame() == "2"
        await trio.sleep(9.999)
        assert scene.application.gone == []
        await trio.sleep(0.001)
        assert await scene.worker.wait_closed() == 1006
        assert trio.current_time() == 35
    assert scene.application.gone == [(scene.application.peers[0].id, CloseReason.PING_TIMEOUT)]


async def test_an_answer_just_in_time_counts(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        for _ in range(10):
            assert await scene.worker.frame() == "2"
            await trio.sleep(9.999)
            await scene.worker.send("3")
        assert scene.application.gone == []


async def test_events_are_no_answer_to_a_ping(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        await trio.sleep(30)
        await scene.worker.send('42["x"]')
        await scene.worker.wait_closed()
        assert trio.current_time() == 35


async def test_a_ping_overtakes_what_a_slow_reader_has_not_read(autojump_clock: MockClock) -> None:
    async with connected(pair=lockstep_stream_pair) as scene:
        await scene.worker.join()
        peer = scene.application.peers[0]
        for number in range(10):
            peer.emit("n", number)
        await trio.sleep(26)  # trio-websocket holds one message, and one more is on its way
        frames = [await scene.worker.frame() for _ in range(6)]
        assert "2" in frames
        assert [frame for frame in frames if frame != "2"] == [f'42["n",{number}]' for number in range(5)]


async def test_a_worker_that_takes_long_for_a_message_has_its_time_for_the_ping_behind_it(
    autojump_clock: MockClock,
) -> None:
    async with connected(pair=lambda: SlowLink.pair(30_000)) as scene:
        await scene.worker.join()
        await trio.sleep(24 - trio.current_time())
        scene.application.peers[0].emit("slow", "a" * 900_000)
        assert len(await scene.worker.frame()) > 900_000
        assert trio.current_time() > 24 + 30
        assert await scene.worker.frame() == "2"
        pinged = trio.current_time()
        await trio.sleep(9)
        await scene.worker.send("3")
        assert await scene.worker.frame() == "2"
        assert trio.current_time() == pytest.approx(pinged + 9 + 25, abs=0.01)
        await scene.worker.wait_closed()
        assert trio.current_time() == pytest.approx(pinged + 9 + 25 + 10, abs=0.01)
    assert [reason for _, reason in scene.application.gone] == [CloseReason.PING_TIMEOUT]


async def test_what_is_sent_after_a_ping_gives_no_more_time_for_its_answer(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        peer = scene.application.peers[0]

        async def emit_every_second() -> None:
            while True:
                peer.emit("n", 1)
                await trio.sleep(1)

        scene.server.nursery.start_soon(emit_every_second)
        with trio.fail_after(60):
            await scene.worker.wait_closed()
        assert trio.current_time() == 35


async def test_who_takes_nothing_while_a_ping_waits_is_gone(autojump_clock: MockClock) -> None:
    async with connected(pair=lockstep_stream_pair) as scene:
        await scene.worker.join()
        for _ in range(3):  # trio-websocket holds one message, and reads one
            scene.application.peers[0].emit("large", "a" * PIECE)
        await scene.server.network.accepted[0].closed.wait()
        assert trio.current_time() == 35
    assert [reason for _, reason in scene.application.gone] == [CloseReason.PING_TIMEOUT]


# -------------------------------------------------------------------------------------- bounds


async def test_a_reader_too_slow_for_the_queue_is_disconnected_and_not_buffered_for(
    autojump_clock: MockClock,
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with connected(pair=lockstep_stream_pair, send_queue_bytes=1_000_000) as scene:
            await scene.worker.join()
            peer = scene.application.peers[0]
            emitted = 0
            while not peer.closed:
                peer.emit("x", "a" * 9_900)
                emitted += 1
                await trio.sleep(0.01)
            assert 95 <= emitted <= 105
            peer.emit("x", "nothing more")
            await scene.server.network.accepted[0].closed.wait()
            assert trio.current_time() < 5
            assert await scene.worker.wait_closed() == 1006  # no close frame: it would fall into a frame cut off
    assert scene.application.gone == [(peer.id, CloseReason.SLOW_READER)]
    [line] = [line for line in logs if line["event"] == "connection_closed"]
    assert (line["reason"], line["detail"].split()[1:]) == ("slow reader", ["bytes", "wait", "to", "be", "sent"])


async def test_small_frames_are_bounded_by_the_memory_they_take(autojump_clock: MockClock) -> None:
    async with connected(pair=lockstep_stream_pair, send_queue_bytes=100_000) as scene:
        await scene.worker.join()
        peer = scene.application.peers[0]
        emitted = 0
        while not peer.closed:
            peer.emit("x", 1)
            emitted += 1
        assert emitted < 2_000


async def test_what_was_sent_makes_room_for_more(autojump_clock: MockClock) -> None:
    async with connected(send_queue_bytes=100_000) as scene:
        await scene.worker.join()
        for _ in range(50):
            scene.application.peers[0].emit("x", "a" * 50_000)
            await scene.worker.frame()
        assert scene.application.gone == []


async def test_who_never_joins_is_disconnected_after_45_s(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.open_packet()
        await scene.worker.send("40/other,")
        await scene.worker.frame()
        await scene.worker.frame()
        await scene.worker.send("3")
        assert await scene.worker.wait_closed() == 1000
        assert trio.current_time() == 45


async def test_attachments_have_ten_seconds_from_the_packet_that_announced_them(autojump_clock: MockClock) -> None:
    placeholders = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'
    async with connected() as scene:
        await scene.worker.join()
        await scene.worker.send(f'452-["x",{placeholders}]', b"0", b"1")
        await trio.sleep(5)
        await scene.worker.send(f'452-["x",{placeholders}]')
        await trio.sleep(9)
        await scene.worker.send(b"0")
        assert await scene.worker.wait_closed() == 1000
        assert trio.current_time() == 15
    assert scene.application.gone == [(scene.application.peers[0].id, CloseReason.ATTACHMENTS_TIMEOUT)]


# -------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    "frames",
    [
        ["9"],  # no such packet
        [""],
        ["2"],  # only servers ping
        ["47"],
        ["42{}"],
        ["42[]"],
        ['42["x"'],
        ['42["connect"]'],
        ["40"],  # joined already
        ["44{}"],
        [b"nobody announced this"],
        ['451-["x",{"_placeholder":true,"num":0}]', '42["text between"]'],
        ['451-["x",{"_placeholder":true,"num":1}]', b""],
        ['42/other,["x"]'],
    ],
)
async def test_breaking_the_protocol_ends_the_connection_at_once(
    autojump_clock: MockClock, frames: list[str | bytes]
) -> None:
    async with connected() as scene:
        await scene.worker.join()
        await scene.worker.send(*frames)
        assert await scene.worker.wait_closed() == 1000
        assert trio.current_time() == 0
    assert scene.application.gone == [(scene.application.peers[0].id, CloseReason.PARSE_ERROR)]
    assert scene.application.events == []


@pytest.mark.slow
@given(frame=st.one_of(st.text(max_size=20), st.binary(max_size=20), st.from_regex(r"\A4[0-6][-0-9/,\[\]{}\"a]*\Z")))
def test_no_frame_does_more_than_end_its_own_connection(frame: str | bytes) -> None:
    async def main() -> None:
        async with connected() as scene:
            await scene.worker.join()
            await scene.worker.send(frame)
            bystander = Worker(await scene.server.websocket())
            await bystander.join()
            await bystander.send('42["echo","still here"]')
            assert await bystander.frame() == '42["echo","still here"]'

    with structlog.testing.capture_logs() as logs:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert "connection_crashed" not in [line["event"] for line in logs]


async def test_a_worker_that_says_goodbye_is_gone_at_once(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        await scene.worker.send("1")
        assert await scene.worker.wait_closed() == 1000
    assert scene.application.gone == [(scene.application.peers[0].id, CloseReason.CLIENT_CLOSE)]


async def test_a_websocket_that_closes_or_breaks_is_gone_at_once(autojump_clock: MockClock) -> None:
    for end in ("close", "cut"):
        async with connected() as scene:
            await scene.worker.join()
            if end == "close":
                await scene.worker.websocket.aclose()
            else:
                await trio.aclose_forcefully(scene.worker.websocket._stream)
            await scene.server.network.accepted[0].closed.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert scene.application.gone == [(scene.application.peers[0].id, CloseReason.TRANSPORT_CLOSE)]
            assert scene.application.peers[0].closed


async def test_a_peer_closed_by_the_application_gets_what_is_queued_and_a_disconnect_first(
    autojump_clock: MockClock,
) -> None:
    async with connected() as scene:
        await scene.worker.join()
        peer = scene.application.peers[0]
        for number in range(50):
            peer.emit("n", number)
        peer.close()
        peer.close()
        assert peer.closed
        peer.emit("n", "too late")
        frames = [await scene.worker.frame() for _ in range(51)]
        assert frames == [*(f'42["n",{number}]' for number in range(50)), "41"]
        await scene.worker.send('42["echo","ignored"]')
        assert await scene.worker.wait_closed() == 1000
        assert trio.current_time() == LEAVE_S  # for its client to close it: some would else come back
    assert scene.application.gone == [(peer.id, CloseReason.SERVER_CLOSE)]
    assert scene.application.events == []


async def test_a_client_that_was_sent_away_ends_the_connection_itself(autojump_clock: MockClock) -> None:
    async with connected(recovery_s=60) as scene:
        await scene.worker.join()
        (peer,) = scene.application.peers
        peer.close()
        assert await scene.worker.frame() == "41"
        await scene.worker.websocket.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert scene.application.gone == [(peer.id, CloseReason.SERVER_CLOSE)]  # and it cannot come back
        assert trio.current_time() == 0


async def test_a_client_that_was_sent_away_and_joins_again_at_once_is_a_new_peer(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        scene.application.peers[0].close()
        await scene.worker.send("40", '42["echo",1]')
        assert await scene.worker.frame() == "41"
        assert str(await scene.worker.frame()).startswith("40{")
        assert await scene.worker.frame() == '42["echo",1]'
        first, second = scene.application.peers
        assert scene.application.gone == [(first.id, CloseReason.SERVER_CLOSE)]
        await trio.sleep(2 * LEAVE_S)
        assert not second.closed


async def test_a_client_is_sent_away_from_one_namespace_and_stays_in_another(autojump_clock: MockClock) -> None:
    async with connected(namespaces=("/", "/other")) as scene:
        await scene.worker.join()
        await scene.worker.send("40/other,")
        assert str(await scene.worker.frame()).startswith("40/other,")
        main, other = scene.application.peers
        other.close()
        assert await scene.worker.frame() == "41/other,"
        await trio.sleep(2 * LEAVE_S)
        assert other.closed
        main.emit("n", 1)
        assert await scene.worker.frame() == '42["n",1]'


async def test_a_closed_peer_that_does_not_read_is_cut_off(autojump_clock: MockClock) -> None:
    async with connected(pair=lockstep_stream_pair, flush_timeout_s=5) as scene:
        await scene.worker.join()
        peer = scene.application.peers[0]
        for number in range(50):
            peer.emit("n", number)
        peer.close()
        await scene.server.network.accepted[0].closed.wait()
        assert trio.current_time() == LEAVE_S + 5
    assert scene.application.gone == [(peer.id, CloseReason.SERVER_CLOSE)]


async def test_what_the_application_raises_ends_that_connection_and_is_logged(autojump_clock: MockClock) -> None:
    def fail(peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        raise RuntimeError("defect")

    with structlog.testing.capture_logs() as logs:
        async with connected(Recorder(on_event=fail)) as scene:
            await scene.worker.join()
            other = Worker(await scene.server.websocket())
            await other.join()
            await scene.worker.send('42["x"]')
            await scene.worker.wait_closed()
            assert len(scene.application.gone) == 1
            await trio.sleep(20)
            assert not scene.application.peers[1].closed
    assert [line["log_level"] for line in logs if line["event"] == "connection_crashed"] == ["error"]


async def test_cancelling_the_server_cuts_every_connection_and_tells_the_application(
    autojump_clock: MockClock,
) -> None:
    async with connected() as scene:
        await scene.worker.join()
    assert len(scene.application.gone) == 1
    assert scene.server.network.accepted[0].closed.is_set()
    assert trio.current_time() == 0


async def test_shutting_down_sends_what_is_queued_and_refuses_new_workers(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        scene.application.peers[0].emit("last", 1)
        scene.server.nursery.start_soon(scene.server.engine.disconnect_all)
        assert await scene.worker.frame() == '42["last",1]'
        assert await scene.worker.wait_closed() == 1001
        assert (await scene.server.get("/health")).status == 200
        late = await scene.server.request(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert late.status == 503
    assert [reason for _, reason in scene.application.gone] == [CloseReason.SHUTTING_DOWN]


async def test_shutting_down_takes_no_longer_than_its_bounds(autojump_clock: MockClock) -> None:
    async with connected(pair=lockstep_stream_pair) as scene:
        await scene.worker.join()
        for number in range(50):
            scene.application.peers[0].emit("n", number)
        await scene.server.engine.disconnect_all()
        assert trio.current_time() <= 8


async def test_connections_are_counted(autojump_clock: MockClock) -> None:
    async with connected() as scene:
        await scene.worker.join()
        assert b"sts_connections 1.0" in scene.server.metrics.render()[0]
        await scene.worker.websocket.aclose()
        await trio.sleep(2)
        assert b"sts_connections 0.0" in scene.server.metrics.render()[0]
        assert b'sts_connections_closed_total{reason="transport close"} 1.0' in scene.server.metrics.render()[0]
