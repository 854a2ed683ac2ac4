"""What a newer server says, in the words of the contract as this client knows it. Pure.

Vocabularies grow: a code, a severity or a stage that this client has never heard of must not end a programme. An
unknown code stands in the message; whether trying again can help, the server says itself.
"""

from __future__ import annotations

from typing import Any

from protocol.dubbing import ErrorEvent, Severity
from protocol.errors import ErrorCode, Stage


def in_known_words(event: str, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """An event's arguments, where what is unknown in an error is replaced by something known.

    What is wrong in any other way stays as it is, for the parser to refuse.

    Returns:
        None for a mere warning of an unknown kind: it asks for nothing.
    """
    if not arguments or not isinstance(body := arguments[0], dict):
        return arguments
    if event != ErrorEvent.event:
        error = body.get("error")
        return ({**body, "error": _error(error)}, *arguments[1:]) if isinstance(error, dict) else arguments
    refuses = body.get("severity") in (Severity.ERROR, Severity.FATAL) or body.get("retryable") or "fragment_id" in body
    if _unknown(body.get("code"), ErrorCode) and not refuses:
        return None
    return (_error(body), *arguments[1:])


def _error(body: dict[str, Any]) -> dict[str, Any]:
    known = dict(body)
    if _unknown(body.get("code"), ErrorCode):
        known |= {"code": ErrorCode.INTERNAL_ERROR, "message": f"{body['code']}: {body.get('message')}"}
    if _unknown(body.get("severity"), Severity):
        known["severity"] = Severity.ERROR
    if _unknown(body.get("stage"), Stage):
        known["stage"] = Stage.DECODE
    return known


def _unknown(word: Any, vocabulary: type[ErrorCode | Severity | Stage]) -> bool:
    return isinstance(word, str) and word not in tuple(vocabulary)
