"""Exception groups, as nurseries raise them."""

from __future__ import annotations


def innermost(error: BaseException) -> BaseException:
    """Of a group the first error in it, however deep; of anything else, itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
