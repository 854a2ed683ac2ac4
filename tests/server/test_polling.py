"""Long-polling where it meets the network and the application: slow clients, overtaking, limits, stopping, CORS."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol.engineio import CloseReason
from sts_trio.server.admission import Admission, AdmissionLimits
from sts_trio.server.connection import OVERTAKING_S, ConnectionSettings

from .memory import Answer, Server, SlowLink, read_answer, serving
from .polling_client import TARGET, Client, joined, request
from .recorder import Recorder


async def test_a_worker_may_stay_on_long_polling(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        assert client.opened["upgrades"] == ["websocket"]
        assert (await client.post('42["echo","ñ"]'.encode())).status == 200
        answer = await client.poll()
        assert answer.body.decode() == '42["echo","ñ"]'
        assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
        assert answer.headers["cache-control"] == "no-store"
        application.peers[0].emit("blob", b"\x00\xff")
        assert (await client.poll()).body == b'451-["blob",{"_placeholder":true,"num":0}]\x1ebAP8='


async def test_a_goodbye_that_overtakes_the_poll_leaves_it_answered(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        answers: dict[str, Answer] = {}

        async def leave() -> None:
            answers["post"] = await client.post(b"41\x1e1")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            await trio.sleep(OVERTAKING_S / 2)
            answers["poll"] = await client.poll()
        assert (answers["post"].body, answers["poll"].body) == (b"ok", b"6")
        assert (await client.poll()).status == 400
        assert [reason for _, reason in application.gone] == [CloseReason.CLIENT_CLOSE]


async def test_a_goodbye_without_a_poll_ends_the_session_all_the_same(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        started = trio.current_time()
        assert (await client.post(b"1")).body == b"ok"
        assert trio.current_time() <= started + OVERTAKING_S + 0.001
        assert (await client.poll()).json == {"code": 1, "message": "Session ID unknown"}
        assert len(application.gone) == 1


async def test_a_client_that_takes_long_for_an_answer_is_not_dead(autojump_clock: MockClock) -> None:
    """The ping is in the middle of an answer that takes a minute at 20 kB/s."""
    async with joined(settings=ConnectionSettings(ping_interval_s=5, ping_timeout_s=10)) as (client, application):
        application.peers[0].emit("big", "x" * 1_200_000)
        slow = client.server.network.connect(lambda: SlowLink.pair(20_000))
        await slow.send_all(request("GET", client.target))
        started = trio.current_time()
        answer = await read_answer(slow)
        assert trio.current_time() - started > 55
        assert len(answer.body) > 1_200_000
        ping = await client.poll()
        assert ping.body == b"2"
        assert (await client.post(b"3")).status == 200
        assert application.gone == []


async def test_a_client_that_does_not_read_its_answer_is_dead(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        application.peers[0].emit("big", "x" * 1_200_000)
        stream = client.server.network.connect(trio.testing.lockstep_stream_pair)
        await stream.send_all(request("GET", client.target))
        await trio.sleep(60)
        assert [reason for _, reason in application.gone] == [CloseReason.TRANSPORT_CLOSE]


async def test_a_post_that_is_broken_off_ends_the_session_and_frees_its_poll(autojump_clock: MockClock) -> None:
    async with joined() as (client, application), trio.open_nursery() as nursery:
        held: list[Answer] = []

        async def hold() -> None:
            held.append(await client.poll())

        nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        stream = client.server.network.connect()
        await stream.send_all(request("POST", client.target, body=b"42[" + b"1" * 1_000)[:-500])
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [answer.body for answer in held] == [b"1"]
        assert [reason for _, reason in application.gone] == [CloseReason.TRANSPORT_CLOSE]


async def test_a_session_that_ends_does_not_wait_for_a_slow_post(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        stream = client.server.network.connect()
        await stream.send_all(request("POST", client.target, body=b"4x" * 100)[:-1])
        await trio.testing.wait_all_tasks_blocked()
        application.peers[0].close()
        assert (await client.poll()).body == b"41"
        assert (await client.poll()).body == b"1"
        assert (await read_answer(stream)).status == 400


async def test_a_large_post_gives_others_their_turn(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            before = turns
            answer = await client.post(b"\x1e".join(b'42["n",%d]' % number for number in range(5_000)))
            assert turns - before > 100
            nursery.cancel_scope.cancel()
        assert answer.body == b"ok"
        assert application.events == [("n", (number,)) for number in range(5_000)]


async def test_an_event_that_has_the_client_sent_away_was_taken(autojump_clock: MockClock) -> None:
    """A 400 would make the client drop what its poll has just brought: the last words."""

    def leave(peer: Any, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        peer.emit("farewell")
        peer.close()
        return ()

    async with joined() as (client, application), trio.open_nursery() as nursery:
        application.on_event = leave
        held: list[Answer] = []

        async def hold() -> None:
            held.append(await client.poll())

        nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.post(b'42["leave"]\x1e' + b"\x1e".join([b'42["n"]'] * 100))).body == b"ok"
        await trio.testing.wait_all_tasks_blocked()
        assert [answer.body for answer in held] == [b'42["farewell"]\x1e41']
        assert (await client.poll()).body == b"1"
        assert [event for event, _ in application.events] == ["leave"]


async def test_what_the_application_raises_ends_the_session_and_frees_its_poll(autojump_clock: MockClock) -> None:
    def fail(peer: Any, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        raise RuntimeError("defect")

    async with joined() as (client, application):
        application.on_event = fail
        assert (await client.post(b'42["x"]')).status == 200  # the client has done nothing wrong
        assert (await client.poll()).status == 400
        assert [reason for _, reason in application.gone] == [CloseReason.SERVER_CLOSE]


async def test_shutting_down_answers_polls_with_what_is_queued_and_sends_nobody_away(autojump_clock: MockClock) -> None:
    async with joined() as (client, application), trio.open_nursery() as nursery:
        application.peers[0].emit("last", 1)
        nursery.start_soon(client.server.engine.disconnect_all)
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.poll()).body == b'42["last",1]'
        assert (await client.poll()).body == b"6"
        assert trio.current_time() < 1
        refused = Client(client.server)
        assert (await refused.poll()).status == 503
    assert [reason for _, reason in application.gone] == [CloseReason.SHUTTING_DOWN]


async def test_shutting_down_does_not_wait_long_for_who_does_not_poll(autojump_clock: MockClock) -> None:
    async with joined() as (client, application):
        started = trio.current_time()
        await client.server.engine.disconnect_all()
        assert trio.current_time() - started == pytest.approx(5)
        assert len(application.gone) == 1


async def test_sessions_are_limited_although_they_hold_no_connection(autojump_clock: MockClock) -> None:
    admission = Admission(AdmissionLimits(connections=10, connections_per_address=2))
    async with serving(Recorder(), admission=admission) as server:
        first, second, third = Client(server), Client(server), Client(server)
        await first.open()
        await second.open()
        await trio.sleep(1)  # that its handshake is not the one too many
        refused = await third.poll()
        assert refused.status == 429
        assert refused.headers["retry-after"] == "10"
        assert (await first.post(b"1")).status == 200
        await third.open()
        assert admission.sessions == 2


async def test_a_stranger_may_post_nothing_large_and_lives_on(autojump_clock: MockClock) -> None:
    async with serving(Recorder()) as server:
        client = Client(server)
        await client.open()
        assert (await client.post(b"4" + b"x" * 2**16)).status == 413
        await client.post(b"40")
        assert (await client.poll()).body.startswith(b"40")
        assert (await client.post(b'42["echo","' + b"x" * 2**16 + b'"]')).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD"])
async def test_only_get_and_post_are_spoken(autojump_clock: MockClock, method: str) -> None:
    async with joined() as (client, application):
        stream = client.server.network.connect()
        await stream.send_all(request(method, client.target))
        received = await stream.receive_some()
        assert received.startswith(b"HTTP/1.1 405")
        assert application.gone == []


async def test_a_stranger_may_be_refused_a_few_times_only(autojump_clock: MockClock) -> None:
    async with serving(Recorder()) as server:
        client = Client(server)
        await client.open()
        await client.post(b"\x1e".join([b"40/nowhere,"] * 10))
        assert (await client.poll()).body.count(b"Invalid namespace") == 3
        assert (await client.poll()).body == b"1"


# -------------------------------------------------------------------------------------- pages of other origins


async def ask(server: Server, method: str, origin: str, headers: str = "") -> Answer:
    return await server.request(request(method, TARGET, f"Origin: {origin}\r\n{headers}"))


async def test_without_configuration_no_page_of_another_origin_may_read(autojump_clock: MockClock) -> None:
    async with serving(Recorder()) as server:
        answer = await ask(server, "GET", "https://page.example")
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await ask(server, "OPTIONS", "https://page.example")).status == 400


async def test_configured_pages_may_and_others_are_refused(autojump_clock: MockClock) -> None:
    async with serving(Recorder(), origins=("https://page.example",)) as server:
        answer = await ask(server, "GET", "https://page.example")
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert answer.headers["vary"] == "Origin"
        preflight = await ask(
            server, "OPTIONS", "https://page.example", "Access-Control-Request-Headers: X-Stream-ID\r\n"
        )
        assert (preflight.status, preflight.body) == (204, b"")
        assert preflight.headers["access-control-allow-methods"] == "GET, POST"
        assert preflight.headers["access-control-allow-headers"] == "X-Stream-ID"
        for method in ("GET", "OPTIONS"):
            refused = await ask(server, method, "https://other.example")
            assert (refused.status, refused.json) == (403, {"code": 4, "message": "Forbidden"})
            assert "access-control-allow-origin" not in refused.headers
        websocket = await server.request(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nOrigin: https://other.example\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert websocket.status == 403
        assert (await server.request(request("GET", TARGET))).status == 200  # who is no page has no origin


async def test_any_page_may_where_that_is_configured(autojump_clock: MockClock) -> None:
    async with serving(Recorder(), origins=("*",)) as server:
        answer = await ask(server, "GET", "https://page.example")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")
