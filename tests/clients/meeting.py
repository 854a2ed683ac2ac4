"""Servers and clients as processes, brought together once for all tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field

from . import npm

ROOT: Final = Path(__file__).parents[2]

START_TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 30.0
"""Until all clients that are to see their server stop have connected."""
PLAY_TIMEOUT_S: Final = 90.0
"""Until a program has done all. Over the scenarios' own time-outs."""
EXIT_TIMEOUT_S: Final = 10.0
"""Until a program that has done all, or a server that was told to stop, has ended."""

CALM: Final = ("--ping-interval-ms=25000", "--ping-timeout-ms=20000", "--connect-timeout-ms=45000")
"""Pings so rare that no ping timeout can be what ended a connection."""
LIVELY: Final = ("--ping-interval-ms=2000", "--ping-timeout-ms=2000", "--connect-timeout-ms=5000")

CONFORMANCE: Final = (sys.executable, "-m", "tests.conformance")
APPLICATION: Final = (sys.executable, "-m", f"{__package__}.application")
RESTARTING: Final = "restarting"

SERVERS: Final = {
    "calm": (*CONFORMANCE, *CALM),
    "lively": (*CONFORMANCE, *LIVELY),
    "recovering": (*CONFORMANCE, *CALM, "--recovery"),
    "strict": APPLICATION,
    RESTARTING: APPLICATION,
}
"""Their commands."""


@define
class Meeting:
    """What came of it."""

    seen: dict[str, dict[str, dict[str, dict[str, Any]]]] = field(factory=dict)
    """By client, by transport, by scenario."""
    exit_codes: dict[str, int | None] = field(factory=dict)
    """Of the clients' programs, and of the server that was told to stop; None where one did not end."""
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

    async def end(self, meeting: Meeting) -> None:
        with trio.move_on_after(EXIT_TIMEOUT_S):
            await self.process.wait()
        meeting.exit_codes[self.name] = self.process.returncode


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


@define
class _Programme:
    """A program of clients that plays all scenarios."""

    name: str
    command: tuple[str, ...]
    connected: trio.Event = field(factory=trio.Event, init=False)

    async def play(self, urls: dict[str, str], folder: Path, meeting: Meeting) -> None:
        async with _running(self.name, (*self.command, json.dumps(urls)), folder) as program:
            with trio.fail_after(PLAY_TIMEOUT_S):
                while (line := await program.line()) == "connected":
                    self.connected.set()
            meeting.seen |= json.loads(line)
            await program.end(meeting)


@define
class _Servers:
    folder: Path
    meeting: Meeting
    programmes: list[_Programme]
    urls: dict[str, str] = field(factory=dict, init=False)

    @asynccontextmanager
    async def serving(self, name: str, port: int = 0) -> AsyncIterator[_Process]:
        """Once it has printed its address."""
        async with _running(name, (*SERVERS[name], f"--port={port}"), self.folder) as server:
            with trio.fail_after(START_TIMEOUT_S):
                self.urls[name] = await server.line()
            yield server

    async def serve(self, name: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. One is stopped when all clients have connected that wait for it, and started again."""
        async with self.serving(name) as server:
            task_status.started()
            if name != RESTARTING:
                await trio.sleep_forever()
            with trio.move_on_after(CONNECT_TIMEOUT_S):
                for programme in self.programmes:
                    await programme.connected.wait()
            server.process.terminate()
            await server.end(self.meeting)
        async with self.serving(name, port=int(self.urls[name].rpartition(":")[2])):
            await trio.sleep_forever()


async def meet(folder: Path) -> Meeting:
    """Let everybody do everything, at the same time; what they write to standard error is in files of `folder`."""
    programmes = [_Programme("python-socketio", (sys.executable, "-m", f"{__package__}.python_scenarios"))]
    if npm.MISSING is None:
        folder_of_packages = npm.install()
        for module in Path(__file__).parent.glob("*.mjs"):
            shutil.copy(module, folder_of_packages)
        programmes.append(
            _Programme("socket.io-client", ("node", str(folder_of_packages / "javascript_scenarios.mjs")))
        )
    meeting = Meeting()
    servers = _Servers(folder, meeting, programmes)
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:
            for name in SERVERS:
                starting.start_soon(nursery.start, servers.serve, name)
        async with trio.open_nursery() as playing:
            for programme in programmes:
                playing.start_soon(programme.play, servers.urls, folder, meeting)
        nursery.cancel_scope.cancel()
    meeting.server_logs = {name: (folder / name).read_text() for name in SERVERS}
    return meeting
