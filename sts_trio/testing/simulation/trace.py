"""What happened in a run, in order: to be read by people, and to be compared byte for byte."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
import trio
from attrs import define, field
from structlog.typing import EventDict, WrappedLogger

LONGEST_VALUE: Final = 80

VIOLATED: Final = "VIOLATED"
"""What happened where a rule was seen to be broken."""


class ScriptedDefect(Exception):
    """What an engine raises where the script wants a defect: no fault of the server's."""


@define(eq=False)
class Trace:
    """Lines of (virtual seconds, who, what, details).

    Attributes:
        defects: what the server itself has logged as a defect, beside those that were scripted.
    """

    defects: list[str] = field(factory=list)
    _lines: list[tuple[float, str, str, dict[str, Any]]] = field(factory=list)

    def add(self, who: str, what: str, **details: Any) -> None:
        """Note that something happened now."""
        self._lines.append((trio.current_time(), who, what, details))

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self) -> Iterator[str]:
        """One line for each event, with its newline."""
        for time, who, what, details in self._lines:
            said = " ".join(f"{key}={_shown(value)}" for key, value in details.items())
            yield f"{time:12.6f}  {who:<12} {what:<20} {said}".rstrip() + "\n"

    def digest(self) -> str:
        """Of all lines: equal for equal runs."""
        return hashlib.sha256("".join(self.lines()).encode()).hexdigest()

    @contextmanager
    def of_log(self) -> Iterator[None]:
        """Take the server's log lines in, instead of writing them."""
        before = structlog.get_config()
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, self._take],
            wrapper_class=structlog.make_filtering_bound_logger("info"),
            cache_logger_on_first_use=False,
        )
        try:
            yield
        finally:
            structlog.configure(**before)

    def _take(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        what, level = str(event.pop("event")), event.pop("level")
        if event.pop("exc_info", None):
            error = sys.exc_info()[1]
            event["exception"] = repr(error)
            if not _is_scripted(error):
                self.defects.append(f"{what}: {''.join(traceback.format_exception(error))}")
        self.add(f"log:{level}", what, **dict(sorted(event.items())))  # context variables have no order of their own
        raise structlog.DropEvent


def _is_scripted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ScriptedDefect):
            return True
        error = error.__cause__
    return False


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, (str, int, float)) else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}...({len(text)})"
