"""Of all tests."""

from __future__ import annotations

import structlog
from hypothesis import settings

# A machine that is busy with something else must not fail a rule.
settings.register_profile("steady", deadline=None, max_examples=60)
settings.load_profile("steady")

# Plain tracebacks: the pretty ones that structlog writes unasked take half a second each.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)
