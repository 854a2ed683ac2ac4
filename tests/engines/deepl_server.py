"""A server that speaks DeepL's API over real sockets, and misbehaves on request.

What it does with a request is a `Reply`: an answer, late, in drops, cut short, or none. Replies are taken in order;
when there are none left it translates ``hello`` to ``<ES>hello``.
"""

from __future__ import annotations

import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from ssl import SSLContext
from typing import Any, Literal

import h11
import pytest
import trio
from attrs import define, field, frozen

KEY = "4711-a-key-of-tests:fx"

Break = Literal["reset at once", "reset in headers", "reset in body", "end in headers", "end in body"]


@frozen
class Request:
    """What arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    json: Any


@frozen
class Reply:
    """What the server does with one request.

    Attributes:
        body: bytes as they are, or what becomes JSON; None for a translation of what was asked.
        delay_s: before the first byte.
        drop_s: sends one byte, waits as long, and so on: of the headers, too.
        breaks: resets the connection, or ends it, there.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = {}
    delay_s: float = 0.0
    drop_s: float = 0.0
    breaks: Break | None = None


def error(status: int, message: str = "", **headers: str) -> Reply:
    """As DeepL words it; an underscore in a header's name is a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"message": message} if message else b"", named)


HANG = Reply(delay_s=60.0)


@define(eq=False)
class DeepLServer:
    """
    Attributes:
        replies: what is done with the next requests for a translation.
        usage: what is done with each request for the account's usage.
        always: what is done when `replies` are used up.
        requests: translations asked for, in order.
        connections: accepted so far.
        all_ended: set when the client has ended all of them.
        busy, most_busy: requests in work, and at most so far.
        gone: connections that their client had ended before their answer was complete.
    """

    url: str
    replies: deque[Reply] = field(factory=deque)
    usage: Reply = Reply(body={"character_count": 10, "character_limit": 1_000})
    always: Reply = Reply()
    requests: list[Request] = field(factory=list)
    connections: int = 0
    open: int = 0
    all_ended: trio.Event = field(factory=trio.Event)
    busy: int = 0
    most_busy: int = 0
    gone: int = 0
    key: str = KEY

    def will(self, *replies: Reply) -> None:
        self.replies.extend(replies)

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        self.open += 1
        connection = h11.Connection(h11.SERVER)
        try:
            while connection.our_state is h11.IDLE:
                request = await _receive(connection, stream)
                if request is None:
                    return
                self.busy += 1
                self.most_busy = max(self.most_busy, self.busy)
                try:
                    await self._answer(connection, stream, request)
                finally:
                    self.busy -= 1
                if connection.their_state is not h11.DONE:  # as one of both has asked for
                    break
                connection.start_next_cycle()
            assert isinstance(stream, trio.SocketStream)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            self.gone += 1
        finally:
            self.open -= 1
            if not self.open:
                self.all_ended.set()

    async def _answer(self, connection: h11.Connection, stream: trio.abc.Stream, request: Request) -> None:
        reply = self._reply(request)
        await self._wait(stream, reply.delay_s)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
        head = connection.send(h11.Response(status_code=reply.status, headers=list(headers.items())))
        head += connection.send(h11.EndOfMessage()) if not body else b""
        content = connection.send(h11.Data(data=body)) + connection.send(h11.EndOfMessage()) if body else b""
        parts = {"once": b"", "headers": head[:20], "body": head + content[: len(content) // 2]}
        whole = parts[reply.breaks.split()[-1]] if reply.breaks else head + content
        if reply.drop_s:
            for at in range(len(whole)):
                await stream.send_all(whole[at : at + 1])
                await self._wait(stream, reply.drop_s)
        elif whole:
            await stream.send_all(whole)
        if reply.breaks:
            if reply.breaks.startswith("reset"):
                _reset(stream)
            raise trio.BrokenResourceError

    async def _wait(self, stream: trio.abc.Stream, seconds: float) -> None:
        """Sleep, unless the client ends the connection."""
        if not seconds:
            return
        with trio.move_on_after(seconds):
            await stream.receive_some()
            raise trio.BrokenResourceError

    def _reply(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"DeepL-Auth-Key {self.key}":
            return error(403, "Forbidden")
        if request.path.endswith("/v2/usage"):
            return self.usage
        if not request.path.endswith("/v2/translate"):
            return error(404)
        self.requests.append(request)
        reply = self.replies.popleft() if self.replies else self.always
        if reply.body is not None:
            return reply
        return Reply(reply.status, translations(request.json), reply.headers, reply.delay_s, reply.drop_s, reply.breaks)


def translations(asked: Mapping[str, Any]) -> Mapping[str, Sequence[Mapping[str, object]]]:
    """What DeepL answers with."""
    return {
        "translations": [
            {
                "detected_source_language": asked["source_lang"],
                "text": f"<{asked['target_lang']}>{text}",
                "billed_characters": len(text),
            }
            for text in asked["text"]
        ]
    }


async def _receive(connection: h11.Connection, stream: trio.abc.Stream) -> Request | None:
    """One whole request; None at the end of the connection."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = {name.decode(): value.decode() for name, value in head.headers}
            path = head.target.decode()
            return Request(head.method.decode(), path, headers, json.loads(body) if body else None)
        else:
            return None


def _reset(stream: trio.abc.Stream) -> None:
    """Close with an RST: what is not read yet is lost to the client as well."""
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@contextmanager
def _plain_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            environment.delenv(name, raising=False)
            environment.delenv(name.lower(), raising=False)
        yield


@asynccontextmanager
async def deepl_server(ssl_context: SSLContext | None = None) -> AsyncIterator[DeepLServer]:
    """A server on a free port, for as long as the context; no proxy of the machine stands before it."""
    with _plain_environment():
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            server = DeepLServer(f"http{'s' if ssl_context else ''}://localhost:{port}")

            async def serve(stream: trio.abc.Stream) -> None:
                if ssl_context is not None:
                    stream = trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
                async with stream:
                    await server.serve(stream)

            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield server
            nursery.cancel_scope.cancel()
