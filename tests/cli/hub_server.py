"""A Hugging Face hub on this machine: as much of its API as its client uses to download the files of a model.

Large files (LFS) lie on a server of their own, as on the real hub: another host name, here of the same machine.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from attrs import Factory, define, field, frozen

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


@frozen
class Request:
    """What the client asked for; names of headers are in small letters."""

    host: str
    path: str
    headers: dict[str, str]


@define
class Fault:
    """What goes wrong with one file.

    Attributes:
        status: what is answered instead of it.
        sent: other bytes than the hub says it has.
        announced_size: what the hub says its size is.
        cut_after: the connection ends after so many bytes, once.
        stall_after: after so many bytes nothing comes any more, until the server ends.
        short_by: so many bytes fewer than announced, and says so in its headers.
    """

    status: int | None = None
    sent: bytes | None = None
    announced_size: int | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    short_by: int = 0


@define(eq=False)
class Hub:
    """What the server has, and what it was asked.

    Attributes:
        files: of its one repository; those over 10 kB are large ones.
        status: what the API answers instead of what is there.
        body: what the API answers instead of JSON.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    status: int | None = None
    body: bytes | None = None
    faults: dict[str, Fault] = field(factory=dict)
    requests: list[Request] = field(factory=list)
    url: str = ""
    stalled: threading.Event = Factory(threading.Event)
    closing: threading.Event = Factory(threading.Event)

    def is_large(self, name: str) -> bool:
        return len(self.files[name]) > 10_000

    def fetched(self) -> list[str]:
        """The files that were asked for, in order."""
        return [request.path.rpartition("/")[2] for request in self.requests if "/resolve/" in request.path]

    def model(self) -> bytes:
        siblings = [{"rfilename": name, **self._facts(name)} for name in self.files]
        return json.dumps({"id": "a/b", "sha": self.commit, "siblings": siblings}).encode()

    def _facts(self, name: str) -> dict[str, object]:
        content = self.files[name]
        size = self.faults.get(name, Fault()).announced_size or len(content)
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if not self.is_large(name):
            return {"size": size, "blobId": git}
        sha256 = hashlib.sha256(content).hexdigest()
        return {"size": size, "blobId": git, "lfs": {"size": size, "sha256": sha256, "pointerSize": 134}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        hub = self.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = self.path.partition("?")[0]
        hub.requests.append(Request(headers["host"].partition(":")[0], path, headers))
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/"):
            self._answer(hub.status or 200, hub.body or hub.model(), "application/json")
        elif hub.status is not None or name not in hub.files or not ("/resolve/" in path or path.startswith("/cdn/")):
            self._answer(hub.status or 404, b"", "text/plain")
        elif f"/resolve/{hub.commit}/" in path and hub.is_large(name):
            self.send_response(302)
            self.send_header("Location", f"{hub.url.replace('127.0.0.1', 'localhost')}/cdn/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send_file(name)

    def _send_file(self, name: str) -> None:
        fault = self.hub.faults.get(name, Fault())
        if fault.status is not None:
            self._answer(fault.status, b"", "text/plain")
            return
        content = fault.sent or self.hub.files[name]
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        body = content[start : len(content) - fault.short_by]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault.cut_after is not None:
            body = body[: fault.cut_after]
            fault.cut_after = None
            self.close_connection = True
        if fault.stall_after is not None:
            self.wfile.write(body[: fault.stall_after])
            self.hub.stalled.set()
            self.hub.closing.wait()
            self.close_connection = True
            return
        self.wfile.write(body)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Connection", "close")  # so that nobody has to wait for the client to close it
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # they are waited for

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves half-way is no trouble of ours."""


@contextmanager
def hub_server(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve a repository with these files, on a port of its own, until the context ends."""
    hub = Hub(files)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "timeout": 5}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
