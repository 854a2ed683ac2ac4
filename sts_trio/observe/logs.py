"""Log lines: one event with its context per line, ours and the libraries' alike.

Context travels in context variables (``structlog.contextvars.bound_contextvars``): whoever opens a stream or takes up a
fragment binds `stream_id`, `fragment_id`, `sequence_number` or `error_id` once, and every line below carries them.

**A log line never holds the event loop up.** Whoever reads our stderr may stall (a full pipe, a paused terminal), and a
plain write would stall every stream with it. So lines wait in a buffer, bounded in bytes, for as long as a write would
block; what finds no room is dropped and counted in `lines_dropped` of the next line that does.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

BUFFER_BYTES: Final = 2**20

SECRETS: Final = frozenset({"auth", "authorization", "token", "api_key", "deepl_api_key"})
"""Keys whose values are never written, whoever logs them."""

_EXIT_FLUSH_S: Final = 1.0


def configure(level: str, format: str, *, fd: int | None = None) -> None:
    """Send structlog's and the standard library's log lines to `fd`; replaces an earlier configuration.

    Args:
        level: least severe level to write: DEBUG, INFO, WARNING or ERROR. Libraries are never asked for more than INFO.
        format: ``json`` for one object per line, ``console`` for people.
        fd: a file descriptor, which stays open (default: stderr).
    """
    severity = logging.getLevelNamesMapping()[level]
    sink = _Sink(sys.stderr.fileno() if fd is None else fd)
    render = _render_json if format == "json" else _console_renderer(colors=os.isatty(sink.fd))
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_secrets,
        sink.tell_dropped,
        render,
    ]
    structlog.configure(
        processors=[structlog.stdlib.add_logger_name, structlog.processors.add_log_level, *processors],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=lambda *names: _SinkLogger(sink, *names),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_StdlibHandler(sink, processors)], level=max(severity, logging.INFO), force=True)


# -------------------------------------------------------------------------------------- rendering


def _render_json(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
    event = structlog.processors.format_exc_info(logger, method, event)
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    line = {**first, **event}
    try:
        return orjson.dumps(line, default=repr, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # orjson refuses integers over 64 bits and lone surrogates; a log call must not fail on data
        return json.dumps(line, default=repr).encode() + b"\n"


def _console_renderer(*, colors: bool) -> Callable[[WrappedLogger, str, EventDict], bytes]:
    # Plain tracebacks: the pretty ones show local variables, and those can hold secrets.
    console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)

    def render(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        event = {key: _harmless(value) if isinstance(value, str) else value for key, value in event.items()}
        return str(console(logger, method, event)).encode(errors="backslashreplace") + b"\n"

    return render


def _harmless(text: str) -> str:
    """Text from outside without what a terminal would act on; JSON lines escape it anyway."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _hide_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for key in SECRETS & event.keys():
        event[key] = "***"
    return event


# -------------------------------------------------------------------------------------- writing


class _SinkLogger:
    """What structlog calls at the end of its chain, with a line already rendered."""

    def __init__(self, sink: _Sink, name: str = "") -> None:
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = sink.write


class _StdlibHandler(logging.Handler):
    """Gives the standard library's records the same form."""

    def __init__(self, sink: _Sink, processors: Sequence[Processor]) -> None:
        super().__init__()
        self._sink = sink
        self._processors = processors

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line: Any = {
                "event": record.getMessage(),
                "level": record.levelname.lower(),
                "logger": record.name,
                "exc_info": record.exc_info,
            }
            for process in self._processors:
                line = process(None, record.levelname.lower(), line)
            self._sink.write(line)
        except Exception:  # noqa: BLE001 - the standard library's rule: a bad record is reported, never raised
            self.handleError(record)

    def flush(self) -> None:
        """At exit (``logging.shutdown``): what still waits has a last chance."""
        self._sink.flush(_EXIT_FLUSH_S)


class _Sink:
    """Writes lines to a descriptor as far as that does not block. Any thread may call it."""

    def __init__(self, fd: int, limit: int = BUFFER_BYTES) -> None:
        self.fd = fd
        self._limit = limit
        self._waiting = bytearray()
        self._dropped = 0
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def tell_dropped(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if self._dropped:
            event["lines_dropped"] = self._dropped
        return event

    def write(self, line: bytes) -> None:
        with self._lock:
            self._send(0)
            if len(self._waiting) + len(line) > self._limit:
                self._dropped += 1
                return
            self._dropped = 0
            self._waiting += line
            self._send(0)

    def flush(self, patience_s: float) -> None:
        """Write what waits, giving the reader at most `patience_s` between pieces."""
        with self._lock:
            self._send(patience_s)

    def _send(self, patience_s: float) -> None:
        # A descriptor that polls as writable takes PIPE_BUF bytes without blocking (POSIX, write()).
        try:
            while self._waiting and self._poll.poll(patience_s * 1000):
                del self._waiting[: os.write(self.fd, self._waiting[: select.PIPE_BUF])]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more, and there is nowhere left to say so
            self._waiting.clear()
