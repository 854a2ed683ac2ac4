"""Strict reading of JSON-like objects into attrs classes, with the path of the first field that is wrong.

cattrs does the walking; what is ours is that nothing is coerced (``"5"`` is not 5, ``true`` is not 1) and that limits
stand in the type: ``Annotated[int, Between(1, 10)]``.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Union, get_args, get_origin

import orjson
from attrs import frozen
from cattrs import AttributeValidationNote, ClassValidationError, Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from .errors import PayloadError


@frozen
class Between:
    """An integer from `low` to `high`, both included."""

    low: int
    high: int

    def check(self, value: int) -> None:
        if not self.low <= value <= self.high:
            raise ValueError(f"must be between {self.low} and {self.high}, got {_shown(value)}")


@frozen
class Text:
    """A string of `low` to `high` characters, without control characters (it ends up in logs)."""

    low: int
    high: int

    def check(self, value: str) -> None:
        if not self.low <= len(value) <= self.high:
            raise ValueError(f"must have {self.low} to {self.high} characters, got {len(value)}")
        if any(character < " " or "\x7f" <= character < "\xa0" for character in value):
            raise ValueError("must not contain control characters")


class OneOf:
    """One of a few strings."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed

    def check(self, value: str) -> None:
        if value not in self.allowed:
            raise ValueError(f"must be one of {', '.join(self.allowed)}, got {_shown(value)}")


@frozen
class Json:
    """Plain JSON, without binary, of at most so many bytes: it is kept and sent back."""

    max_bytes: int

    def check(self, value: object) -> None:
        least = _least_bytes(value, self.max_bytes)
        if least > self.max_bytes:  # megabytes are not written to learn that they are too many
            raise ValueError(f"must have at most {self.max_bytes} bytes as JSON, got at least {least}")
        try:
            size = len(orjson.dumps(value))
        except (TypeError, ValueError):
            raise ValueError("must be plain JSON without binary") from None
        if size > self.max_bytes:
            raise ValueError(f"must have at most {self.max_bytes} bytes as JSON, got {size}")


def first_error(error: BaseException) -> tuple[str, str]:
    """The dotted path and the reason of the first thing wrong in what cattrs raised.

    Raises:
        BaseException: `error` itself, where it is not about the payload (a defect of ours is not a worker's fault).
    """
    if isinstance(error, ClassValidationError):
        cause = error.exceptions[0]
        notes = getattr(cause, "__notes__", ())
        here = next((note.name for note in notes if isinstance(note, AttributeValidationNote)), "")
        inner, reason = first_error(cause)
        return (f"{here}.{inner}" if here and inner else here or inner), reason
    if isinstance(error, PayloadError):
        return error.field, error.reason
    if isinstance(error, KeyError):
        return "", "required field is missing"
    if isinstance(error, TypeError | ValueError):
        return "", str(error)
    raise error


def forget_frames(error: BaseException) -> None:
    """Let go of what cattrs raised, and with it of the payload.

    cattrs collects errors in a list before it raises them together, and the traceback of each leads to the frame with
    that list; so does that of what was raised before it. Such a ring stays in memory, with the payload, until Python
    looks for rings: megabytes each time.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    if isinstance(error, ClassValidationError):
        for part in error.exceptions:
            forget_frames(part)


def _least_bytes(value: object, enough: int) -> int:
    """A lower bound of what `value` takes as JSON: one byte each, and the characters of strings. Not recursive.

    What is more than `enough` is not counted to its end.
    """
    size, waiting = 0, [value]
    while waiting and size <= enough:
        item = waiting.pop()
        size += 1
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
    return size


def _shown(value: object) -> str:
    value = value[:60] if isinstance(value, str) else value  # its quotes make a longer one too long already
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number of over 20 digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(kind: str, value: object) -> TypeError:
    got = {type(None): "null", bool: "a boolean", dict: "an object", list: "an array", str: "a string",
           int: "a number", float: "a number", bytes: "binary"}.get(type(value), type(value).__name__)  # fmt: skip
    return TypeError(f"must be {kind}, got {got}")


def _read_int(value: Any, _: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _expected("an integer", value)
    return value


def _exactly(kind: str, accepted: type) -> Callable[[Any, Any], Any]:
    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted):
            raise _expected(kind, value)
        return value

    return read


def _make_converter() -> Converter:
    made = Converter(detailed_validation=True, unstruct_collection_overrides={tuple: list})
    made.register_structure_hook(int, _read_int)
    made.register_structure_hook(str, _exactly("a string", str))
    made.register_structure_hook(StrEnum, _read_choice)
    made.register_structure_hook(bool, _exactly("a boolean", bool))
    made.register_structure_hook(bytes, _exactly("binary", bytes))
    made.register_structure_hook_func(_is(dict[str, Any]), _exactly("an object", dict))
    made.register_structure_hook_func(_is(dict[str, bool]), _read_flags)
    made.register_structure_hook_func(_is_limited, _read_limited)
    made.register_structure_hook_func(_is_optional, _read_optional)
    made.register_structure_hook_func(_is(tuple[str, ...]), _read_strings)
    made.register_structure_hook_factory(_is_attrs_class, _object_reader)
    made.register_unstructure_hook_factory(_is_attrs_class, _object_writer)
    return made


def _is(wanted: Any) -> Callable[[Any], bool]:
    return lambda cls: cls == wanted


def _is_limited(cls: Any) -> bool:
    return get_origin(cls) is Annotated


def _read_limited(value: Any, cls: Any) -> Any:
    base, *limits = get_args(cls)
    read = converter.structure(value, base)
    for limit in limits:
        limit.check(read)
    return read


def _is_optional(cls: Any) -> bool:
    return get_origin(cls) in (Union, types.UnionType) and type(None) in get_args(cls)


def _read_optional(value: Any, cls: Any) -> Any:
    if value is None:
        return None
    (inner,) = (argument for argument in get_args(cls) if argument is not type(None))
    return converter.structure(value, inner)


def _read_strings(value: Any, _: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("must be an array of strings")
    return tuple(value)


def _read_flags(value: Any, _: Any) -> dict[str, bool]:
    if not isinstance(value, dict) or not all(isinstance(item, bool) for item in value.values()):
        raise TypeError("must be an object of booleans")
    return value


def _read_choice(value: Any, cls: type[StrEnum]) -> StrEnum:
    if not isinstance(value, str):
        raise _expected("a string", value)
    try:
        return cls(value)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(cls)}, got {_shown(value)}") from None


def _is_attrs_class(cls: Any) -> bool:
    return hasattr(cls, "__attrs_attrs__")


def _object_reader(cls: type, made: Converter) -> Callable[[Any, Any], Any]:
    read_fields: Callable[[Any, Any], Any] = make_dict_structure_fn(cls, made)

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _expected("an object", value)
        return read_fields(value, cls)

    return read


def _object_writer(cls: type, made: Converter) -> Callable[[Any], dict[str, Any]]:
    write_fields: Callable[[Any], dict[str, Any]] = make_dict_unstructure_fn(cls, made)
    return lambda value: {key: item for key, item in write_fields(value).items() if item is not None}


converter = _make_converter()
