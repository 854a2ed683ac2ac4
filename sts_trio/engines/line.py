"""A connection of `requests` that ends when it is told to.

A time-out of `requests` is for each read, and a server that sends a byte now and then is never late. So the socket is
in our hand from before it is connected, and shutting it down ends whatever a call is doing with it. Names are looked up
elsewhere (`Resolver`): nothing could end that here.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import urllib3
from requests.adapters import HTTPAdapter

from .resolver import Address, Resolver

CONNECT_S: Final = 1.0
"""What one address is given to accept a connection before the next is tried."""


class Line:
    """The one TCP connection of a client, within reach of other threads.

    What is kept is a second handle of the socket: closing or encrypting the first leaves it valid, and shutting it
    down ends what is done with either, a connect or a TLS handshake included.
    """

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._looking_up: str | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_released = False
        self._until = 0.0
        self._limit_s = 0.0
        self._is_cut = False

    def start(self, limit_s: float) -> None:
        self._limit_s, self._until = limit_s, time.monotonic() + limit_s
        self._is_cut = False
        self._looking_up = None

    def left_s(self) -> float:
        """What a socket may be given to wait.

        Raises:
            TimeoutError: the call's time is up.
        """
        if self.is_over:
            raise TimeoutError
        return max(self._until - time.monotonic(), 0.001)

    @property
    def is_over(self) -> bool:
        """Whether the call has no time left, or was cut."""
        return self._is_cut or time.monotonic() >= self._until

    def overdue(self) -> str | None:
        """What did not come in time; None where the call is not over."""
        whose = f" to the lookup of {self._looking_up}" if self._looking_up else ""
        return f"no answer{whose} within {self._limit_s:.1f} s" if self.is_over else None

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                with suppress(OSError):  # not connected any more
                    self._socket.shutdown(socket.SHUT_RDWR)

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection to the first address of `host` that accepts one.

        Raises:
            OSError: none did, or the call ended.
        """
        failure = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in self._look_up(host.strip("[]"), port):
            connection = socket.socket(family, kind, protocol)
            try:
                self._hold(connection)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(min(CONNECT_S, self.left_s()))
                connection.connect(address)
                connection.settimeout(self.left_s())
            except OSError as error:
                connection.close()
                failure = error
            else:
                return connection
        raise failure

    def release(self) -> None:
        """The connection is closed for further calls; what is left of this one's answer may still be read from it."""
        self._is_released = True

    def end(self) -> None:
        """The call is over."""
        if self._is_released:
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _look_up(self, host: str, port: int) -> Sequence[Address]:
        self._looking_up = host
        try:
            addresses = self._resolver.addresses(host, port, self.left_s())
        except TimeoutError:
            self.cut()  # by whichever clock: the call's time is up
            raise
        self._looking_up = None
        return addresses

    def _hold(self, connection: socket.socket) -> None:
        self.close()
        with self._lock:
            self._socket = connection.dup()
            self._is_released = False


class LineAdapter(HTTPAdapter):
    """`requests` over connections of a line, to a proxy as well."""

    def __init__(self, line: Line) -> None:
        self._pools = {
            "http": _pool_on(line, urllib3.HTTPConnectionPool),
            "https": _pool_on(line, urllib3.HTTPSConnectionPool),
        }
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _pool_on(line: Line, pool: type[urllib3.HTTPConnectionPool]) -> type[urllib3.HTTPConnectionPool]:
    connection: Any = pool.ConnectionCls

    class Connection(connection):  # type: ignore[misc]  # it is one of two
        def _new_conn(self) -> socket.socket:
            try:
                return line.connect(self._dns_host, self.port)
            except OSError as error:  # as it stands urllib3 would take some for an answer that came early
                raise urllib3.exceptions.NewConnectionError(self, str(error)) from error

        def close(self) -> None:
            super().close()
            line.release()

    class Pool(pool):  # type: ignore[misc, valid-type]  # the same
        ConnectionCls = Connection

    return Pool
