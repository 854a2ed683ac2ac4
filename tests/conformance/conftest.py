"""The application that these tests talk to, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from ..server.memory import Server
from .app import Options, serving


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """With timers so long that none of them can be what closed a session."""
    expect_virtual_time()
    async with serving(Options(ping_interval_ms=10_000, ping_timeout_ms=10_000, connect_timeout_ms=45_000)) as server:
        yield server


@pytest.fixture
async def hasty_server() -> AsyncIterator[Server]:
    """Pings each 300 ms, to be answered in 200 ms; a second to CONNECT."""
    expect_virtual_time()
    async with serving(Options()) as server:
        yield server


def expect_virtual_time() -> None:
    """pytest-trio takes the clock from a test's own arguments, not from those of its fixtures."""
    assert isinstance(trio.lowlevel.current_clock(), MockClock), "the test has to take autojump_clock"
