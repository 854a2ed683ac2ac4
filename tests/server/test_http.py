"""Plain HTTP through the door: what is answered, and that hypercorn's insides are what the adapter takes them for.

All of it in memory and on virtual time: a test that waits for a deadline takes no time.
"""

from __future__ import annotations

import trio
from attrs import evolve
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from trio.testing import MockClock, lockstep_stream_pair

from sts_trio.observe.metrics import Metrics
from sts_trio.server import exchange, http

from .memory import HEALTHY, serving


async def test_health_is_200_with_the_state_of_the_service(autojump_clock: MockClock) -> None:
    async with serving() as server:
        answer = await server.get("/health")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {
        "status": "healthy",
        "version": "1.0",
        "engines": {"asr": "scripted"},
        "active_streams": 2,
        "uptime_s": 12.5,
        "pools": {"asr": {"slots": 2, "hung": 0}},
    }


async def test_health_is_503_before_the_engines_are_warm_and_while_draining(autojump_clock: MockClock) -> None:
    health = evolve(HEALTHY, status=http.Status.STARTING)
    async with serving(routes=http.operations(lambda: health, Metrics())) as server:
        starting = await server.get("/health")
        health = evolve(HEALTHY, status=http.Status.DRAINING)
        draining = await server.get("/health")
    assert (starting.status, starting.json) == (503, {"status": "starting"})
    assert (draining.status, draining.json["status"]) == (503, "draining")


async def test_health_is_200_while_one_slot_hangs_and_503_when_a_pool_has_no_other(autojump_clock: MockClock) -> None:
    health = HEALTHY

    def with_hung(asr: int) -> http.Health:
        pools = {"asr": http.PoolHealth(2, asr), "tts": http.PoolHealth(1, 0)}
        return evolve(HEALTHY, status=http.judge(pools.values()), pools=pools)

    async with serving(routes=http.operations(lambda: health, Metrics())) as server:
        answers = []
        for hung in (0, 1, 2):
            health = with_hung(hung)
            answers.append(await server.get("/health"))
    assert [(answer.status, answer.json["status"]) for answer in answers] == [
        (200, "healthy"),
        (200, "degraded"),
        (503, "failed"),
    ]
    assert answers[1].json["pools"] == {"asr": {"slots": 2, "hung": 1}, "tts": {"slots": 1, "hung": 0}}


async def test_metrics_are_prometheus_text(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    metrics.streams_active.set(3)
    async with serving(metrics=metrics) as server:
        answer = await server.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"sts_streams_active 3.0" in answer.body


async def test_unknown_paths_and_methods_are_refused_in_json(autojump_clock: MockClock) -> None:
    async with serving() as server:
        missing = await server.get("/nothing")
        wrong = await server.request(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert (missing.status, missing.json) == (404, {"error": "Not Found"})
    assert (wrong.status, wrong.json) == (405, {"error": "Method Not Allowed"})
    assert "GET" in wrong.headers["allow"]


async def test_a_defect_of_a_handler_is_a_500_and_nothing_of_it_is_shown(autojump_clock: MockClock) -> None:
    async def broken(request: Request) -> Response:
        raise RuntimeError("secret detail")

    async with serving(routes=[Route("/broken", broken)]) as server:
        answer = await server.get("/broken")
    assert (answer.status, answer.json) == (500, {"error": "Internal Server Error"})


async def test_http_1_0_and_head_are_answered(autojump_clock: MockClock) -> None:
    async with serving() as server:
        old = await server.request(b"GET /health HTTP/1.0\r\n\r\n")
        assert (old.status, old.json["status"]) == (200, "healthy")
        stream = server.network.connect()
        await stream.send_all(b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while data := await stream.receive_some():
            received += data
        assert received.startswith(b"HTTP/1.1 200")
        assert received.endswith(b"\r\n\r\n")


async def test_a_client_that_half_closes_after_its_request_is_answered(autojump_clock: MockClock) -> None:
    async with serving() as server:
        stream = server.network.connect()
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.send_eof()
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


async def test_a_body_that_does_not_come_is_not_waited_for(autojump_clock: MockClock) -> None:
    async def swallow(request: Request) -> Response:
        await request.body()
        return Response()

    async with serving(routes=[Route("/", swallow, methods=["POST"])]) as server:
        stream = server.network.connect()
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        await server.network.accepted[0].closed.wait()
        assert exchange.READ_TIMEOUT_S <= trio.current_time() <= exchange.READ_TIMEOUT_S + 2


async def test_a_client_that_does_not_read_is_given_up(autojump_clock: MockClock) -> None:
    async with serving() as server:
        stream = server.network.connect(lockstep_stream_pair)
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.network.accepted[0].closed.wait()
        assert exchange.WRITE_TIMEOUT_S <= trio.current_time() <= exchange.WRITE_TIMEOUT_S + 2


async def test_shutdown_does_not_wait_for_a_client_that_does_not_read(autojump_clock: MockClock) -> None:
    async with serving() as server:
        stream = server.network.connect(lockstep_stream_pair)
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.sleep(1)
        assert not server.network.accepted[0].closed.is_set()
    assert trio.current_time() == 1


async def test_an_upgrade_that_hypercorn_sees_is_refused(autojump_clock: MockClock) -> None:
    """The door lets none through; were one to come, the application would say no."""
    sent: list[dict[str, object]] = []
    app = http.create_app(http.operations(lambda: HEALTHY, Metrics()))

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    await app({"type": "websocket", "path": "/socket.io/", "headers": [], "query_string": b""}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
