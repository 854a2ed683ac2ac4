"""A whole server on real sockets with scripted engines: start, health, stop, what its exit leaves behind."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import trio

from sts_trio.config import Settings
from sts_trio.engines.base import EngineUnavailable
from sts_trio.engines.suite import Models
from sts_trio.offload import thread_offload
from sts_trio.server.app import Server
from sts_trio.server.http import Status
from sts_trio.testing.engines import ScriptedAsr, scripted_models

pytestmark = pytest.mark.slow


def local(**changes: Any) -> Settings:
    return Settings(host="127.0.0.1", port=0, **changes)


async def get(port: int, path: str) -> tuple[int, bytes]:
    def fetch() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    return await trio.to_thread.run_sync(fetch)


async def test_health_says_starting_until_the_engines_are_warm() -> None:
    models = scripted_models(ScriptedAsr(load_s=0.5))
    server = Server(local(), models)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        while not server.port:  # noqa: ASYNC110 - a server has no event for this, only people who are curious do
            await trio.sleep(0.01)
        assert await get(server.port, "/health") == (503, b'{"status":"starting"}')
        while server.status is Status.STARTING:  # noqa: ASYNC110
            await trio.sleep(0.01)
        status, body = await get(server.port, "/health")
        assert status == 200
        report = json.loads(body)
        assert report["status"] == "healthy"
        assert report["engines"] == {
            "asr": "scripted-asr",
            "translation": "scripted-translation",
            "tts": "scripted-tts",
        }
        status, body = await get(server.port, "/metrics")
        assert status == 200
        assert b"sts_fragments_in_flight 0.0" in body
        server.stop.set()


async def test_models_are_built_while_health_says_starting_and_off_the_event_loop() -> None:
    threads = thread_offload(4)
    gate, built_in = trio.Event(), []

    async def offload(function: Callable[..., Any], /, *args: object) -> Any:
        if function != Models.build:
            return await threads(function, *args)
        await gate.wait()

        def build() -> Any:
            built_in.append(threading.current_thread())
            return scripted_models()

        return await threads(build)

    server = Server(local(), offload=offload)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        while not server.port:  # noqa: ASYNC110 - as above
            await trio.sleep(0.01)
        assert await get(server.port, "/health") == (503, b'{"status":"starting"}')
        gate.set()
        while server.status is Status.STARTING:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert json.loads((await get(server.port, "/health"))[1])["engines"]["asr"] == "scripted-asr"
        server.stop.set()
    assert built_in
    assert built_in[0] is not threading.main_thread()


async def test_models_that_cannot_run_here_end_the_start() -> None:
    server = Server(local(asr_model="magic"))
    with pytest.RaisesGroup(pytest.RaisesExc(EngineUnavailable, match="magic"), flatten_subgroups=True):
        await server.run()


async def test_health_and_metrics_can_have_a_port_of_their_own() -> None:
    (spare,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    other = spare.socket.getsockname()[1]
    await spare.aclose()
    server = Server(local(metrics_port=other), scripted_models())
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.run)
        assert (await get(other, "/health"))[0] == 200
        assert (await get(other, "/metrics"))[0] == 200
        assert (await get(port, "/health"))[0] == 404
        assert (await get(port, "/metrics"))[0] == 404
        server.stop.set()


async def test_stopping_leaves_no_instance_open() -> None:
    asr = ScriptedAsr()
    server = Server(local(), scripted_models(asr))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        assert asr.open_instances == server.settings.asr_slots
        server.stop.set()
    assert asr.open_instances == 0
    assert server.status is Status.DRAINING


async def test_a_port_that_is_taken_is_an_error_at_start() -> None:
    (taken,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with taken:
        with pytest.raises(OSError, match="in use"):
            await Server(Settings(host="127.0.0.1", port=taken.socket.getsockname()[1]), scripted_models()).run()


async def test_an_engine_that_cannot_be_loaded_ends_the_start() -> None:
    class Broken(ScriptedAsr):
        def open(self, offload: object) -> Any:
            raise EngineUnavailable("no model: install it")

    server = Server(local(asr_slots=1), scripted_models(Broken()))
    with pytest.RaisesGroup(pytest.RaisesExc(EngineUnavailable, match="install it"), flatten_subgroups=True):
        await server.run()
