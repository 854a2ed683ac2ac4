"""Servers and clients as processes, brought together once for all tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field

from . import npm

ROOT: Final = Path(__file__).parents[2]

START_TIMEOUT_S: Final = 30.0
PLAY_TIMEOUT_S: Final = 100.0
"""Until a program has done all. Over the scenarios' own time-outs."""
EXIT_TIMEOUT_S: Final = 10.0
"""Until a program that has done all, or a server that was told to stop, has ended."""

CALM: Final = ("--ping-interval-ms=25000", "--ping-timeout-ms=20000", "--connect-timeout-ms=45000")
"""Pings so rare that no ping timeout can be what ended a connection."""
LIVELY: Final = ("--ping-interval-ms=3000", "--ping-timeout-ms=3000", "--connect-timeout-ms=10000")

CONFORMANCE: Final = (sys.executable, "-m", "tests.conformance")
APPLICATION: Final = (sys.executable, "-m", f"{__package__}.application")
RESTARTING: Final = "restarting"

SERVERS: Final = {
    "calm": (*CONFORMANCE, *CALM),
    "lively": (*CONFORMANCE, *LIVELY),
    "recovering": (*CONFORMANCE, *CALM, "--recovery"),
    "strict": APPLICATION,
}
"""Those of all, by their commands."""


@define
class Meeting:
    """What came of it."""

    seen: dict[str, dict[str, dict[str, dict[str, Any]]]] = field(factory=dict)
    """By client, by transport, by scenario."""
    exit_codes: dict[str, int | None] = field(factory=dict)
    """Of the clients' programs, and of servers that were told to stop; None where one did not end."""
    server_logs: dict[str, str] = field(factory=dict)
    """What the servers wrote to standard error: warnings and worse."""


@define
class _Process:
    """A child whose lines are read as they come."""

    name: str
    process: trio.Process
    _buffer: bytes = field(default=b"", init=False)

    async def line(self) -> str:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            if not (data := await self.process.stdout.receive_some()):
                raise EOFError(f"{self.name} ended with exit status {await self.process.wait()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    async def address(self) -> str:
        """Of a server that listens now."""
        with trio.fail_after(START_TIMEOUT_S):
            return await self.line()

    async def end(self) -> int | None:
        with trio.move_on_after(EXIT_TIMEOUT_S):
            await self.process.wait()
        return self.process.returncode


@asynccontextmanager
async def _running(name: str, command: Sequence[str], folder: Path) -> AsyncIterator[_Process]:
    with (folder / name).open("ab") as log:
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
    assert process.stdout is not None
    async with process.stdout:
        try:
            yield _Process(name, process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def _play(program: str, command: tuple[str, ...], urls: dict[str, str], folder: Path, meeting: Meeting) -> None:
    """Let a program of clients play all scenarios, with a server of its own that it sees stop and start again."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(_running(RESTARTING, (*APPLICATION, "--port=0"), folder))
        url = await server.address()
        arguments = json.dumps(urls | {RESTARTING: url})
        clients = await stack.enter_async_context(_running(program, (*command, arguments), folder))
        with trio.fail_after(PLAY_TIMEOUT_S):
            while (line := await clients.line()) == "connected":
                server.process.terminate()
                meeting.exit_codes[f"server of {program}"] = await server.end()
                again = (*APPLICATION, "--port=" + url.rpartition(":")[2])
                server = await stack.enter_async_context(_running(RESTARTING, again, folder))
        meeting.seen |= json.loads(line)
        meeting.exit_codes[program] = await clients.end()


async def meet(folder: Path) -> Meeting:
    """Let everybody do everything, at the same time; what they write to standard error is in files of `folder`."""
    programs: dict[str, tuple[str, ...]] = {
        "python-socketio": (sys.executable, "-m", f"{__package__}.python_scenarios")
    }
    if npm.MISSING is None:
        packages = npm.install()
        for module in Path(__file__).parent.glob("*.mjs"):
            shutil.copy(module, packages)
        programs["socket.io-client"] = ("node", str(packages / "javascript_scenarios.mjs"))
    meeting = Meeting()
    async with AsyncExitStack() as stack:
        servers = {
            name: await stack.enter_async_context(_running(name, (*command, "--port=0"), folder))
            for name, command in SERVERS.items()
        }
        urls = {name: await server.address() for name, server in servers.items()}
        async with trio.open_nursery() as nursery:
            for program, command in programs.items():
                nursery.start_soon(_play, program, command, urls, folder, meeting)
    meeting.server_logs = {name: (folder / name).read_text() for name in (*SERVERS, RESTARTING)}
    return meeting
