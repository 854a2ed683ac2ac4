"""How a worker's connection ends, whoever ends it."""

from __future__ import annotations

from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, lockstep_stream_pair

from protocol.engineio import CloseReason
from sts_trio.server.application import Peer
from sts_trio.server.sockets import LEAVE_S

from .recorder import Recorder, Worker, connected


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
        assert scene.application.gone == [(other.id, CloseReason.SERVER_CLOSE)]
        main.emit("n", 1)
        assert await scene.worker.frame() == '42["n",1]'


async def test_a_client_that_was_sent_away_out_of_the_blue_has_no_more_time(autojump_clock: MockClock) -> None:
    """Not only where an event of its own had it sent away: nothing else would look at the time."""
    async with connected() as scene:
        await scene.worker.join()
        await trio.testing.wait_all_tasks_blocked()
        scene.application.peers[0].close()
        assert await scene.worker.wait_closed() == 1000
        assert trio.current_time() == LEAVE_S


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
