"""Strict reading: nothing is coerced, what is wrong is named with its path, and a defect is no fault of the payload."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import orjson
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, PayloadError
from protocol.structuring import Between, Json, OneOf, Text, converter, first_error


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@frozen
class Inner:
    number: Annotated[int, Between(1, 10)]
    colour: Colour = Colour.RED
    flags: dict[str, bool] | None = None


@frozen
class Outer:
    name: Annotated[str, Text(1, 5)]
    inner: Inner
    size: Annotated[str, OneOf("small", "large")] | None = None


@frozen
class Trap:
    """Stands for a defect of ours: reading it fails for a reason that is not in the payload."""

    value: int


def _fail(value: Any, _: Any) -> Any:
    if value == "refuse":
        raise PayloadError(ErrorCode.INVALID_FRAGMENT, "deep.inside", "for a reason")
    raise AttributeError("a defect")


converter.register_structure_hook(Trap, _fail)


@frozen
class Holder:
    trap: Trap


def wrong(cls: type, body: object) -> tuple[str, str]:
    with pytest.raises(Exception) as caught:
        converter.structure(body, cls)
    return first_error(caught.value)


GOOD: dict[str, Any] = {"name": "n", "inner": {"number": 5}}


def test_a_good_object_is_read() -> None:
    assert converter.structure(GOOD, Outer) == Outer("n", Inner(5))
    full = {"name": "n", "inner": {"number": 5.0, "colour": "blue", "flags": {"a": True}}, "size": "small"}
    assert converter.structure(full, Outer) == Outer("n", Inner(5, Colour.BLUE, {"a": True}), "small")


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        ({"name": 5}, "name", "must be a string, got a number"),
        ({"name": ""}, "name", "must have 1 to 5 characters, got 0"),
        ({"name": "a\x7f"}, "name", "must not contain control characters"),
        ({"inner": None}, "inner", "must be an object, got null"),
        ({"inner": []}, "inner", "must be an object, got an array"),
        ({"inner": {}}, "inner.number", "required field is missing"),
        ({"inner": {"number": "5"}}, "inner.number", "must be an integer, got a string"),
        ({"inner": {"number": True}}, "inner.number", "must be an integer, got a boolean"),
        ({"inner": {"number": 0}}, "inner.number", "must be between 1 and 10, got 0"),
        ({"inner": {"number": 5, "colour": "green"}}, "inner.colour", "must be one of red, blue, got 'green'"),
        ({"inner": {"number": 5, "colour": None}}, "inner.colour", "must be a string, got null"),
        ({"inner": {"number": 5, "flags": {"a": 1}}}, "inner.flags", "must be an object of booleans"),
        ({"size": "medium"}, "size", "must be one of small, large, got 'medium'"),
        ({"size": b"small"}, "size", "must be a string, got binary"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(change: dict[str, Any], path: str, reason: str) -> None:
    assert wrong(Outer, GOOD | change) == (path, reason)


def test_the_first_of_several_wrong_fields_is_named() -> None:
    assert wrong(Outer, {"name": 5, "inner": {}, "size": 5})[0] == "name"
    assert wrong(Outer, {})[0] == "name"


def test_a_refusal_from_within_keeps_its_own_path() -> None:
    assert wrong(Holder, {"trap": "refuse"}) == ("trap.deep.inside", "for a reason")


def test_a_defect_of_ours_is_not_called_the_payloads_fault() -> None:
    with pytest.raises(AttributeError, match="a defect"):
        wrong(Holder, {"trap": 1})


def test_megabytes_are_not_written_to_learn_that_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.structuring.orjson.dumps", lambda _: pytest.fail("they were written"))
    for large in ("x" * 101, ["x" * 60, "x" * 60], {"x" * 60: {"x" * 60: 1}}, [[1]] * 60, ("x",) * 60):
        with pytest.raises(ValueError, match="must have at most 100 bytes as JSON, got at least"):
            Json(100).check(large)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_json_is_taken_up_to_its_very_size(value: object) -> None:
    size = len(orjson.dumps(value))
    Json(size).check(value)
    with pytest.raises(ValueError, match=f"must have at most {size - 1} bytes as JSON"):
        Json(size - 1).check(value)


def test_a_wrong_choice_is_shown_by_its_beginning() -> None:
    assert wrong(Outer, GOOD | {"size": "x" * 10_000}) == ("size", f"must be one of small, large, got '{'x' * 56}...")
