"""A server process that speaks TLS, and clients of every kind that find it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import socketio
from attrs import frozen

from sts_trio.client.media import read_media
from sts_trio.server.tls import PLAIN_ANSWER
from sts_trio.testing.process import free_port, server_process

from ..server.test_tls import Identity
from .test_process import refused_to_start

pytestmark = pytest.mark.slow


@frozen
class Running:
    """A server with TLS, and the certificate of who signed its own."""

    port: int
    metrics_port: int
    identity: Identity
    authority: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, metrics_port = tmp_path_factory.mktemp("tls"), free_port()
    identity = Identity.make(folder)
    identity.authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    files = {"STS_TLS_CERT": str(identity.certificate), "STS_TLS_KEY": str(identity.key)}
    with server_process(folder / "log", METRICS_PORT=str(metrics_port), **files) as running:
        yield Running(running.port, metrics_port, identity, folder / "authority.pem")
    assert '"level":"error"' not in (folder / "log").read_text()


def test_plain_http_is_told_that_the_port_speaks_tls(server: Running) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as answer, direct.open(f"http://127.0.0.1:{server.port}/", timeout=5):
        pass
    with answer.value:
        assert (answer.value.code, answer.value.read().decode()) == (400, PLAIN_ANSWER)


def test_health_is_plain_on_its_own_port(server: Running) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{server.metrics_port}/health", timeout=5) as answer:
        assert answer.status == 200


def test_an_answer_ends_with_close_notify(server: Running) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain,
        server.identity.client.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as encrypted,
    ):
        assert encrypted.version() == "TLSv1.3"
        encrypted.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + b"a" * 1_000)
        answer = b""
        while data := encrypted.recv(4_096):  # raises where it ends without
            answer += data
    assert answer.startswith(b"HTTP/1.1 404")


def test_a_worker_of_another_library_connects_by_https(server: Running) -> None:
    async def connect(context: ssl.SSLContext) -> str:
        try:
            return await ask(context)
        finally:
            await asyncio.sleep(0.25)  # aiohttp leaves closing TLS to the loop (its documentation, "Graceful shutdown")

    async def ask(context: ssl.SSLContext) -> str:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            client = socketio.AsyncClient(http_session=session, reconnection=False)
            answers: asyncio.Queue[dict[str, str]] = asyncio.Queue()
            client.on("error", answers.put)
            try:
                await client.connect(server.url, transports=["websocket"])
                await client.emit("stream:init", {})
                async with asyncio.timeout(10):
                    return (await answers.get())["code"]
            finally:
                await client.disconnect()

    assert asyncio.run(connect(server.identity.client)) == "INVALID_CONFIG"
    with pytest.raises(socketio.exceptions.ConnectionError):
        asyncio.run(connect(ssl.create_default_context()))


def test_dub_goes_through_https(server: Running, tmp_path: Path) -> None:
    spoken, dubbed = tmp_path / "spoken.wav", tmp_path / "dubbed.wav"
    subprocess.run(["espeak-ng", "-w", spoken, "The minister will speak about the new budget."], check=True)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "sts_trio",
        "dub",
        spoken,
        "-o",
        dubbed,
        "--to",
        "es",
        "--url",
        server.url,
    ]
    done = subprocess.run(
        command, env={"SSL_CERT_FILE": str(server.authority)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_media(dubbed).samples.shape == read_media(spoken).samples.shape


def test_a_certificate_that_cannot_be_used_keeps_it_from_starting(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    files = {"STS_TLS_CERT": str(tmp_path / "empty.pem"), "STS_TLS_KEY": str(tmp_path / "empty.pem")}
    embedded = {"ASR_MODEL": "pocketsphinx", "TRANSLATION_PROVIDER": "apertium", "TTS_MODEL": "espeak-ng"}
    assert "STS_TLS_CERT: " + files["STS_TLS_CERT"] in refused_to_start(**files, **embedded)
