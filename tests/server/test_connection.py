"""One worker's connection, in memory and on virtual time: joining and events."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol.engineio import CloseReason
from protocol.socketio import NotJoined
from sts_trio.server.application import Peer, Refusal
from sts_trio.server.connection import ConnectionSettings
from sts_trio.server.sockets import REFUSALS

from .memory import CLIENT_ADDRESS
from .recorder import Recorder, connected

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
