"""Hostile bytes against every layer: nothing but the protocol's own errors, in bounded time and memory.

    python -m tests.protocol.fuzz [--seconds 60] [--seed N]
    python -m tests.protocol.fuzz --case BASE64        one case again

A case is bytes: the first picks who is attacked, the rest are steps with 0xff between them, and the first byte of
a step is what happens: a frame, a POST, a poll, time. `run` takes any bytes, so a coverage-guided
fuzzer can be given it as it is.
"""

from __future__ import annotations

import argparse
import base64
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from attrs import define

from protocol.dubbing import SERVER_EVENTS, WORKER_EVENTS, parse
from protocol.engineio import (
    ClientConnection,
    Closed,
    CloseReason,
    ConnectionClosed,
    EngineError,
    Handshake,
    HandshakeRefused,
    MessageReceived,
    ServerConnection,
    Transport,
    TransportMisused,
    check_handshake,
)
from protocol.errors import PayloadError
from protocol.socketio import (
    ClientSocket,
    ConnectRequested,
    EventReceived,
    Limits,
    RecoveryLog,
    RecoveryRequest,
    RecoveryState,
    ServerSocket,
    SocketError,
)

from .cases import STEP, Target, cases

LIMITS: Final = Limits(packet_bytes=300_000, values=2_000, nesting=16, namespace_characters=40)
QUEUE_BYTES: Final = 200_000

CASE_SECONDS: Final = 2.0  # of processor time; the slowest takes a twentieth
CASE_MEMORY: Final = 32 * 2**20


class TooMuch(Exception):
    """A case took more time or memory than any should."""


# ------------------------------------------------------------------------------------------------- attacked


def _attack_server(transport: Transport, steps: Iterable[bytes]) -> None:
    connection = ServerConnection(
        Handshake("sid", ("websocket",), max_payload=4_096), 0.0, transport=transport, max_queue_bytes=QUEUE_BYTES
    )
    application = _ServerApplication(connection, ServerSocket(LIMITS))
    now = 0.0
    for step in steps:
        what, data = step[:1], step[1:]
        with suppress(TransportMisused, ConnectionClosed):
            match what:
                case b"t" | b"b":
                    frame = _text(data) if what == b"t" else data
                    if connection.transport is Transport.WEBSOCKET:
                        application.take(connection.receive(frame, now))
                    else:
                        _probe(connection, frame)
                case b"p":
                    connection.begin_post()
                    application.take(connection.receive_payload(data, now))
                case b"P":
                    connection.begin_post(data.decode("latin-1"))
                    connection.abandon_post()
                case b"g":
                    connection.begin_poll()
                case b"u":
                    connection.begin_upgrade()
                case b"a":
                    connection.abandon_upgrade()
                case b"f":
                    connection.finish(CloseReason.SHUTTING_DOWN, by=now + 1.0)
                case b"s":
                    connection.send(data)
                case _:
                    now += len(data)
        while connection.deadline <= now:
            connection.tick(now)
        if (payload := connection.next_payload()) is not None:
            connection.payload_sent(payload)
        while connection.next_frame() is not None:
            connection.frame_sent(now)


def _probe(connection: ServerConnection, frame: str | bytes) -> None:
    with suppress(TransportMisused):
        connection.begin_upgrade()
    try:
        connection.receive_probe(frame)
    except EngineError:
        connection.abandon_upgrade()


@define
class _ServerApplication:
    """Accepts everybody, acknowledges and echoes everything, and lets anybody recover."""

    connection: ServerConnection
    socket: ServerSocket
    over: bool = False

    def take(self, events: Iterable[object]) -> None:
        for event in events:
            _check_end(self.connection, event, self.over)
            if isinstance(event, Closed):
                self.over = True
            elif isinstance(event, MessageReceived):
                try:
                    self.answer(event.data)
                except SocketError as error:
                    self.connection.close(CloseReason.PARSE_ERROR, str(error))
                    self.over = True

    def answer(self, message: str | bytes) -> None:
        replies: list[str | bytes] = []
        for event in self.socket.receive(message):
            match event:
                case ConnectRequested(namespace, auth):
                    replies += self.socket.accept(namespace, "sid", pid="pid", missed=_missed(auth))
                case EventReceived(namespace, _, args, ack_id):
                    _offer_to_the_contract(args)
                    replies += self.socket.ack(namespace, ack_id or "0", *args)  # what came can be sent back
                    replies += self.socket.emit_with_ack(namespace, "echo", *args[:1])[0]
        with suppress(ConnectionClosed):  # it may be closed as a slow reader meanwhile
            for reply in replies:
                self.connection.send(reply)


def _attack_client(transport: Transport, steps: Iterable[bytes]) -> None:
    connection = ClientConnection(0.0, transport=transport, max_queue_bytes=QUEUE_BYTES)
    socket = ClientSocket(LIMITS, recovery={"/custom": RecoveryState("pid", "7")})
    socket.connect("/")
    socket.connect("/custom")
    now = 0.0
    over = False
    for step in steps:
        what, data = step[:1], step[1:]
        events: Iterable[object] = []
        match what:
            case b"t" | b"b":
                frame = _text(data) if what == b"t" else data
                if connection.transport is Transport.WEBSOCKET:
                    events = connection.receive(frame, now)
                else:
                    connection.begin_upgrade()
                    try:
                        connection.receive_probe(frame)
                    except EngineError:
                        connection.abandon_upgrade()
            case b"p":
                connection.begin_poll()
                events = connection.receive_payload(_text(data), now)
            case b"u":
                connection.finish_upgrade()
            case b"f":
                connection.finish(CloseReason.CLIENT_CLOSE, by=now + 1.0)
            case b"s":
                with suppress(ConnectionClosed):
                    connection.send(data)
            case _:
                now += len(data)
        for event in events:
            _check_end(connection, event, over)
            over |= isinstance(event, Closed)
            if isinstance(event, MessageReceived):
                try:
                    socket.receive(event.data)
                except SocketError as error:
                    connection.close(CloseReason.PARSE_ERROR, str(error))
                    over = True
        while connection.deadline <= now:
            connection.tick(now)
        if connection.next_payload() is not None:
            connection.payload_sent()
        while connection.next_frame() is not None:
            connection.frame_sent(now)


def _attack_handshakes(steps: Iterable[bytes]) -> None:
    """Queries, and open packets."""
    for step in steps:
        names = ("transport", "EIO", "sid", "method", "origin")
        query = {name: value for name, value in zip(names, _text(step).split("&"), strict=False) if value}
        with suppress(HandshakeRefused):
            sid = check_handshake(
                query,
                method=query.get("method", "GET"),
                is_websocket=len(step) % 2 == 0,
                sessions={"polling": Transport.POLLING, "websocket": Transport.WEBSOCKET},
                origin=query.get("origin"),
                allowed_origins=["*"] if len(step) % 3 else ["https://a.example"],
            )
            assert sid in (None, "polling", "websocket")
        with suppress(EngineError):
            handshake = Handshake.from_json(_text(step[1:]))
            assert Handshake.from_json(handshake.to_json()) == handshake


def _check_end(connection: ServerConnection | ClientConnection, event: object, over: bool) -> None:
    assert not over, f"{event} after the end"
    assert isinstance(event, Closed) == (connection.closed is not None)


def _missed(auth: dict[str, object]) -> list[str | bytes]:
    request = RecoveryRequest.read(auth)
    log = RecoveryLog(window_s=60.0, max_bytes=1_000)
    for number in range(5):
        log.add([f'2["missed","{number}"]'], 0.0)
    return [] if request is None else log.since(request.offset) or []


def _offer_to_the_contract(args: tuple[object, ...]) -> None:
    for cls in (*WORKER_EVENTS.values(), *SERVER_EVENTS.values()):
        with suppress(PayloadError):
            parse(cls, args)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


TARGETS: Final[dict[Target, Callable[[Iterable[bytes]], None]]] = {
    Target.SERVER_ON_WEBSOCKET: lambda steps: _attack_server(Transport.WEBSOCKET, steps),
    Target.SERVER_ON_POLLING: lambda steps: _attack_server(Transport.POLLING, steps),
    Target.CLIENT_ON_WEBSOCKET: lambda steps: _attack_client(Transport.WEBSOCKET, steps),
    Target.CLIENT_ON_POLLING: lambda steps: _attack_client(Transport.POLLING, steps),
    Target.HANDSHAKES: _attack_handshakes,
}


def run(case: bytes) -> None:
    """Do what `case` says.

    Raises:
        Exception: a defect.
    """
    if case:
        TARGETS[Target(case[0] % len(Target))](case[1:].split(STEP))


def run_within_bounds(case: bytes) -> tuple[float, int]:
    """Do what `case` says, and return the seconds and the bytes of memory that it took.

    Raises:
        TooMuch
        Exception: another defect.
    """
    tracemalloc.start()
    began = time.process_time()
    try:
        run(case)
        seconds, memory = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if seconds > CASE_SECONDS or memory > CASE_MEMORY:
        raise TooMuch(f"{len(case)} bytes took {seconds:.2f} s and {memory} bytes")
    return seconds, memory


# ------------------------------------------------------------------------------------------------ from a shell


def main(arguments: list[str] | None = None) -> int:
    """Attack until the time is over or a defect is found, which is shown so that it can be done again."""
    parser = argparse.ArgumentParser(prog="python -m tests.protocol.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--case", type=base64.b64decode, help="run this one, in base64, and nothing else")
    options = parser.parse_args(arguments)
    if options.case is not None:
        seconds, memory = run_within_bounds(options.case)
        sys.stdout.write(f"{seconds:.3f} s, {memory} bytes\n")
        return 0
    slowest = largest = (0.0, 0)
    count = 0
    began = time.monotonic()
    for case in cases(options.seed):
        if time.monotonic() - began > options.seconds:
            break
        try:
            seconds, memory = run_within_bounds(case)
        except Exception:
            sys.stderr.write(f"seed {options.seed}, case {count}: --case {base64.b64encode(case).decode()}\n")
            raise
        count += 1
        slowest = max(slowest, (seconds, len(case)))
        largest = max(largest, (float(memory), len(case)))
    sys.stdout.write(
        f"seed {options.seed}: {count} cases, none harmed; the slowest took {slowest[0] * 1000:.0f} ms "
        f"({slowest[1]} bytes), the largest {largest[0] / 2**20:.1f} MiB ({largest[1]} bytes)\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
