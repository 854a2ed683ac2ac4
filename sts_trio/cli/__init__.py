"""The command line: `sts-trio serve`, `sts-trio dub`."""

from __future__ import annotations


def first_error(group: BaseExceptionGroup[BaseException]) -> str:
    """What to tell a person of a group: the first error in it, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
