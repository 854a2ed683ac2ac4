"""TLS on a connection that was accepted, and the context for it.

trio's `SSLStream` does the work. What it has not is a half-close, and who closes a connection needs one so that the
last words arrive (`AcceptedStream.aclose`). So `TLSTransport` splits what `SSLStream.aclose` does in two: `send_eof`
sends close_notify (RFC 8446, 6.1) and ends the TCP direction, `aclose` closes the socket.

A client that leaves without close_notify, as many do, looks like one whose connection broke. That is on purpose: only
close_notify says that nobody cut the rest off.

A TLS handshake costs 1 to 2 ms of the processor, no step of it over 0.5 ms (OpenSSL's part with RSA 2048; half of that
with ECDSA). The 1.6 MB of a dubbed fragment cost 2.5 ms in each direction.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final, TypeAlias

import trio

from ..config import ConfigError

HANDSHAKE_RECORD: Final = 0x16
"""The first byte of a TLS connection (RFC 8446, 5.1), and of no HTTP request."""

PLAIN_ANSWER: Final = "this port speaks TLS: use https or wss\n"
"""To whoever speaks plain HTTP to it."""

_PEEK_BYTES: Final = 4_096


CERTIFICATE: Final = "STS_TLS_CERT"
KEY: Final = "STS_TLS_KEY"


def server_context(certificate: str | Path, key: str | Path) -> ssl.SSLContext:
    """TLS 1.2 or later for HTTP/1.1, from two PEM files: the certificate with its chain, and its key.

    Raises:
        ConfigError: a file cannot be used; it names the variable and the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.2: a client could ask for handshakes without end
    context.set_alpn_protocols(["http/1.1"])
    chain = _read_pem(CERTIFICATE, certificate, "CERTIFICATE")
    _read_pem(KEY, key, "PRIVATE KEY")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=chain)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{CERTIFICATE}: {certificate} holds no certificate that can be read: {_why(error)}"
        ) from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _Encrypted:
        raise ConfigError(f"{KEY}: {key} is encrypted; store the key without a password") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{KEY}: {key} is not the key of the certificate in {certificate}") from None
        raise ConfigError(f"{KEY}: {key} cannot be used with {certificate}: {_why(error)}") from None
    return context


class _Encrypted(Exception):
    """The key wants a password."""


def _no_password() -> str:
    raise _Encrypted


def _read_pem(variable: str, path: str | Path, label: str) -> str:
    try:
        text = Path(path).read_bytes().decode("ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"{variable}: cannot read {path}: {error.strerror}") from None
    if not re.search(rf"^-----BEGIN (?:[A-Z]+ )*{label}-----", text, re.MULTILINE):
        raise ConfigError(f"{variable}: {path} holds no {label.lower()} in PEM format")
    return text


def _why(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


class SpokenPlainly(Exception):
    """The client does not speak TLS; what it said so far was read and is lost."""


async def accept_tls(stream: trio.SocketStream, context: ssl.SSLContext) -> TLSTransport:
    """Shake hands with a client. Put a deadline on it; closing `stream` after a failure is the caller's part.

    Raises:
        SpokenPlainly: the first byte is no TLS; `stream` can still be written to.
        trio.BrokenResourceError: the client left, or the handshake failed.
    """
    first = await stream.receive_some(_PEEK_BYTES)
    if first and first[0] != HANDSHAKE_RECORD:
        raise SpokenPlainly
    transport = TLSTransport(stream, bytes(first), context)
    await transport.do_handshake()
    return transport


class TLSTransport(trio.abc.HalfCloseableStream):
    """An encrypted connection, server side. Made by `accept_tls`."""

    def __init__(self, stream: trio.SocketStream, first: bytes, context: ssl.SSLContext) -> None:
        self._stream = stream
        self._tls = trio.SSLStream(_Records(stream, first), context, server_side=True)
        self._ended = False

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket underneath."""
        return self._stream.socket

    async def do_handshake(self) -> None:
        await self._tls.do_handshake()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._ended:
            return await self._stream.receive_some(max_bytes)
        return await self._tls.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._tls.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Send close_notify, unless a send was cut off before, and half-close the connection.

        After that `receive_some` gives what still comes as it comes, encrypted: it only tells when the client is done.
        """
        self._ended = True
        await self._tls.aclose()
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket. Without `send_eof` before, the client takes it for a broken connection."""
        await self._stream.aclose()


Accepted: TypeAlias = trio.SocketStream | TLSTransport
"""A connection that was accepted, encrypted or not."""


class _Records(trio.abc.Stream):
    """The encrypted side of an `SSLStream`: reads `first` again, and leaves closing to `TLSTransport`."""

    def __init__(self, stream: trio.SocketStream, first: bytes) -> None:
        self._stream = stream
        self._first = first

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._first:
            await trio.lowlevel.checkpoint()
            first, self._first = self._first, b""
            return first
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
