"""The application that these tests talk to, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from ..server.memory import Server
from .app import Options, serving


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """With timers so long that none of them can be what closed a session."""
    options = Options(ping_interval_ms=10_000, ping_timeout_ms=10_000, connect_timeout_ms=45_000)
    async with watched(options) as server:
        yield server


@pytest.fixture
async def hasty_server() -> AsyncIterator[Server]:
    """Pings each 300 ms, to be answered in 200 ms; a second to CONNECT."""
    async with watched(Options()) as server:
        yield server


@asynccontextmanager
async def watched(options: Options) -> AsyncIterator[Server]:
    """The application, on virtual time, and with nothing to complain about: what a client does is no error of ours."""
    # pytest-trio takes the clock from a test's own arguments, not from those of its fixtures
    assert isinstance(trio.lowlevel.current_clock(), MockClock), "the test has to take autojump_clock"
    with capture_logs() as logs:
        async with serving(options) as server:
            yield server
    assert [entry for entry in logs if entry["log_level"] in ("warning", "error", "critical")] == []
