"""How much of anything a Socket.IO v5 packet may hold, when it is read and when it is written."""

from __future__ import annotations

import math
from typing import Any

import pytest

from protocol.socketio.packets import Limits, Packet, encode

from .decoding import CONNECT, EVENT, PLACE, decode, refusal


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_nesting_is_bounded_both_ways_at_the_same_depth() -> None:
    deepest = Packet(EVENT, data=["x", nested(99)])  # 100 with the packet's own array
    assert decode(*encode(deepest)) == deepest
    with pytest.raises(ValueError, match="nested more than 100"):
        encode(Packet(EVENT, data=["x", nested(100)]))
    assert refusal('2["x",' + "[" * 100 + "]" * 100 + "]") == "nested more than 100 deep"
    assert "nested" in refusal('2["x",' + '{"a":' * 100 + "1" + "}" * 100 + "]")
    deep_and_wide = Packet(EVENT, data=["x", nested(99), *[[]] * 100])
    assert decode(*encode(deep_and_wide)) == deep_and_wide


def test_objects_nest_like_arrays() -> None:
    limits = Limits(nesting=3)
    fits = Packet(EVENT, data=["x", {"a": {"b": 1}}])
    assert decode(*encode(fits, limits), limits=limits) == fits
    with pytest.raises(ValueError, match="nested"):
        encode(Packet(EVENT, data=["x", {"a": {"b": {}}}]), limits)


def test_a_placeholder_counts_as_the_object_it_is() -> None:
    limits = Limits(nesting=3)
    fits = Packet(EVENT, data=["x", [b"a"]])
    assert decode(*encode(fits, limits), limits=limits) == fits
    with pytest.raises(ValueError, match="nested"):
        encode(Packet(EVENT, data=["x", [[b"a"]]]), limits)
    assert "nested" in refusal(f'51-["x",[[{PLACE % 0}]]]', limits=limits)


def test_brackets_in_text_and_width_are_not_depth() -> None:
    assert decode('2["' + "[{" * 5000 + '"]').data == ["[{" * 5000]
    assert decode('2["x"' + ",[]" * 5000 + "]").data == ["x"] + [[]] * 5000


@pytest.mark.parametrize("depth", [1_025, 40_000, 100_000])
def test_no_depth_overflows_a_stack(depth: int) -> None:
    refusal('2["x",' + "[" * depth + "]" * depth + "]")
    with pytest.raises(ValueError, match="nested"):
        encode(Packet(EVENT, data=["x", nested(depth)]))


def test_data_that_holds_itself_is_not_sent() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested"):
        encode(Packet(EVENT, data=["x", loop]))


def test_integers_of_thousands_of_digits_are_refused() -> None:
    assert "JSON" in refusal(f'2["x",{"9" * 400}]')
    assert "JSON" in refusal(f'2["x",-{"9" * 100_000}]')


def test_integers_beyond_64_bits_are_read_as_floats_and_never_sent_as_something_else() -> None:
    assert decode(f'2["x",{2**64 - 1},{-(2**63)}]').data == ["x", 2**64 - 1, -(2**63)]
    assert decode('2["x",1' + "0" * 20 + "]").data == ["x", 1e20]
    with pytest.raises(ValueError, match="64-bit"):
        encode(Packet(EVENT, data=["x", 2**64]))


def test_an_id_of_more_than_20_digits_is_refused() -> None:
    assert decode(f'2{"1" * 20}["x"]').id == "1" * 20
    assert "20 digits" in refusal(f'2{"1" * 21}["x"]')
    assert "20 digits" in refusal(f"3{'1' * 100_000}[]")


def test_values_are_counted_before_anything_is_built() -> None:
    limits = Limits(values=6)
    assert decode('2["x",1,2,3,4,5]', limits=limits).data == ["x", 1, 2, 3, 4, 5]
    assert refusal('2["x",1,2,3,4,5,6]', limits=limits) == "more than 6 values"
    assert refusal('2["x",[],{},[]]', limits=limits) == "more than 6 values"
    assert refusal('2["x"' + ",{}" * 100_000 + "]") == "more than 40000 values"


def test_text_and_attachments_of_a_packet_are_limited_together() -> None:
    limits = Limits(packet_bytes=20)
    assert decode('2["' + "x" * 15 + '"]', limits=limits).data == ["x" * 15]
    assert refusal('2["' + "x" * 16 + '"]', limits=limits) == "packet over 20 bytes"
    text = '52-["x"]'
    assert decode(text, b"123456", b"123456", limits=limits).data == ["x"]
    assert refusal(text, b"123456", b"1234567", limits=limits) == "packet over 20 bytes"


def test_a_namespace_is_limited() -> None:
    assert decode("0/" + "n" * 255).namespace == "/" + "n" * 255
    assert "namespace" in refusal("0/" + "n" * 256)
    assert "namespace" in refusal("0/a\nb")
    assert "namespace" in refusal("0/\ud800")


@pytest.mark.parametrize("namespace", ["", "admin", "/a,b", ",", "/a\nb", "/\ud800"])
def test_a_namespace_that_could_not_be_read_is_not_sent(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        encode(Packet(CONNECT, namespace))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {1: 2}, {1, 2}, object(), "\ud800", 2**64])
def test_what_json_cannot_say_is_not_sent(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|number|surrogate"):
        encode(Packet(EVENT, data=["x", {"a": [value]}]))
