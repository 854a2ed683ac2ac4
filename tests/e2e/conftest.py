"""A real server process with the embedded engines, and a real worker's client library against it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 45.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up:
        assert process.poll() is None, "the server ended while it started"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not become healthy")


@contextmanager
def server_process(log: Path, **environment: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """`sts-trio serve --profile embedded` on a free port, healthy; ended and checked to end well."""
    port = free_port()
    env = os.environ | {"STS_HOST": "127.0.0.1", "STS_PORT": str(port), "METRICS_PORT": ""} | environment
    with log.open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "sts_trio", "serve", "--profile", "embedded"], env=env, stdout=lines, stderr=lines
        )
        try:
            wait_until_healthy(port, process)
            yield port, process
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_TIMEOUT_S) == 0
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that all end-to-end tests share."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with server_process(log) as (port, _):
        yield port
    assert b'"level":"error"' not in log.read_bytes(), log.read_text()
