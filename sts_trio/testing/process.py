"""A real server process on a free port of this machine, for demos and end-to-end tests. Blocking: no trio here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

START_TIMEOUT_S: Final = 180.0
"""Large models take a minute or more; a server that fails ends, and is not waited for."""

STOP_TIMEOUT_S: Final = 45.0
"""Over the server's own `DRAIN_TIMEOUT_S`."""


class ServerProcessError(Exception):
    """The server did not start, or did not stop in order; the message has the end of its log."""


@frozen
class ServerProcess:
    """A healthy server."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server_process(
    log: Path, *, profile: str = "embedded", faults: Sequence[str] | None = None, **environment: str
) -> Iterator[ServerProcess]:
    """`sts-trio serve`, from healthy until the context ends; then it must stop in order.

    Args:
        log: file that takes what the server writes.
        faults: where given, the server is `sts_trio.testing.serve` with these options, and `profile` means nothing.
        environment: variables to set for it; with TLS, a METRICS_PORT too, which is asked whether it is healthy.

    Raises:
        ServerProcessError
    """
    port = free_port()
    here = {"STS_HOST": "127.0.0.1", "STS_PORT": str(port), "METRICS_PORT": ""}
    health = f"http://127.0.0.1:{environment.get('METRICS_PORT') or port}/health"
    command = ("sts_trio", "serve", "--profile", profile) if faults is None else ("sts_trio.testing.serve", *faults)
    with log.open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | here | environment,
            stdout=lines,
            stderr=lines,
        )
        try:
            server = ServerProcess(process, port)
            _wait_until_healthy(process, health, log)
            yield server
            process.send_signal(signal.SIGTERM)
            if (code := process.wait(STOP_TIMEOUT_S)) != 0:
                raise ServerProcessError(f"the server ended with exit status {code}; see {log}")
        finally:
            process.kill()
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise ServerProcessError(f"the server did not start:\n{log.read_text(errors='replace')[-2_000:]}")
        try:
            with direct.open(health, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:  # URLError is one
            pass  # not listening yet, or still loading its models (503)
        time.sleep(0.1)
    raise ServerProcessError(f"the server was not healthy within {START_TIMEOUT_S:.0f} s; see {log}")
