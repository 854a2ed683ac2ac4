"""A real server process with the embedded engines, which all end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sts_trio.testing.process import server_process


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Its port. It must have logged no error in the end."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with server_process(log) as running:
        yield running.port
    assert b'"level":"error"' not in log.read_bytes(), log.read_text()
