"""Socket.IO v5 packets, rule by rule: text form, JSON, attachments, limits; and back again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import socketio.packet
from hypothesis import given
from hypothesis import strategies as st

from protocol.packets import RESERVED_EVENTS, Decoder, Limits, Message, Packet, PacketType, SocketError, encode

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR = (PacketType(number) for number in range(5))


def decode(*messages: Message, limits: Limits | None = None) -> Packet:
    decoder = Decoder(limits or Limits())
    *first, last = messages
    for message in first:
        assert decoder.feed(message) is None
    packet = decoder.feed(last)
    assert packet is not None
    return packet


def refusal(*messages: Message, limits: Limits | None = None) -> str:
    """What the last of `messages` is refused with."""
    decoder = Decoder(limits or Limits())
    *first, last = messages
    for message in first:
        decoder.feed(message)
    with pytest.raises(SocketError) as caught:
        decoder.feed(last)
    return str(caught.value)


# -------------------------------------------------------------------------------------------- text form


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (Packet(CONNECT), "0"),
        (Packet(CONNECT, data={"token": "x"}), '0{"token":"x"}'),
        (Packet(CONNECT, "/admin", {"sid": "1"}), '0/admin,{"sid":"1"}'),
        (Packet(DISCONNECT), "1"),
        (Packet(DISCONNECT, "/admin"), "1/admin,"),
        (Packet(EVENT, data=["hello", 1, 2.5, True, None]), '2["hello",1,2.5,true,null]'),
        (Packet(EVENT, "/admin", ["hello", {"a": [1]}], "456"), '2/admin,456["hello",{"a":[1]}]'),
        (Packet(EVENT, data=[7, "numbered"]), '2[7,"numbered"]'),
        (Packet(ACK, data=[], id="0"), "30[]"),
        (Packet(ACK, "/admin", ["fine"], "456"), '3/admin,456["fine"]'),
        (Packet(CONNECT_ERROR, "/admin", {"message": "no"}), '4/admin,{"message":"no"}'),
        (Packet(CONNECT_ERROR, data="no"), '4"no"'),
        (Packet(EVENT, data=["€ \U0001f600"]), '2["€ \U0001f600"]'),
    ],
)
def test_a_packet_has_one_text_form(packet: Packet, text: str) -> None:
    assert encode(packet) == [text]
    assert decode(text) == packet


def test_the_comma_after_a_namespace_may_be_missing_at_the_end() -> None:
    assert decode("0/custom") == Packet(CONNECT, "/custom")
    assert decode("0/custom,") == Packet(CONNECT, "/custom")


def test_an_id_is_kept_digit_for_digit() -> None:
    assert decode('212345678901234567890["x"]').id == "12345678901234567890"
    assert decode('2007["x"]').id == "007"
    assert encode(Packet(ACK, data=[], id="12345678901234567890")) == ["312345678901234567890[]"]


def test_white_space_inside_json_is_json() -> None:
    assert decode('2 [ "x" , 1 ] ').data == ["x", 1]


@pytest.mark.parametrize("text", ["", "7", "9", "x", "-", " 2", '٢["x"]', "²"])
def test_an_unknown_packet_type_is_refused(text: str) -> None:
    assert "type" in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        '2["x"',
        '2["x"]]',
        '2["x"]{}',
        '2["x",]',
        "2[NaN]",
        '2["x",NaN]',
        '2["x",Infinity]',
        '2["x",-Infinity]',
        '2["x",1e999]',
        '2["x",01]',
        "2['x']",
        '2["x\x01"]',
        "2{",
        "0{",
        '0{"a":1}x',
        "2hello",
    ],
)
def test_invalid_json_is_refused(text: str) -> None:
    assert "JSON" in refusal(text)


def test_without_its_comma_a_namespace_swallows_the_payload() -> None:
    assert "array" in refusal('2/custom["x"]')


@pytest.mark.parametrize("text", ["2", "2/custom,", "21", "2{}", "2[]", '2"x"', "2null", "212", "20"])
def test_an_event_is_an_array_that_starts_with_its_name(text: str) -> None:
    assert "array" in refusal(text)


@pytest.mark.parametrize("name", ["null", "true", "false", "{}", "[]", '["x"]'])
def test_an_event_name_is_a_string_or_a_number(name: str) -> None:
    assert "name" in refusal(f"2[{name},1]")


@pytest.mark.parametrize(
    "name", ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]
)
def test_reserved_event_names_are_refused(name: str) -> None:
    assert "reserved" in refusal(f'2["{name}"]')
    assert "reserved" in refusal(f'51-["{name}",{{"_placeholder":true,"num":0}}]')


@pytest.mark.parametrize("payload", ["[]", "null", '"token"', "true"])
def test_connect_takes_an_object(payload: str) -> None:
    assert refusal("0" + payload) == "CONNECT takes an object"
    assert refusal("0/custom," + payload) == "CONNECT takes an object"


def test_disconnect_takes_nothing() -> None:
    assert refusal("1{}") == "DISCONNECT takes nothing"
    assert refusal("1null") == "DISCONNECT takes nothing"


@pytest.mark.parametrize("text", ["3", "31", "31{}", '31"x"', "31null"])
def test_an_ack_takes_an_array(text: str) -> None:
    assert refusal(text) == "ACK takes an array"


@pytest.mark.parametrize("text", ["4", "4[]", "4null", "41"])
def test_a_connect_error_takes_an_object_or_a_string(text: str) -> None:
    assert "CONNECT_ERROR" in refusal(text)


# ------------------------------------------------------------------------------------------ attachments

PLACE = '{"_placeholder":true,"num":%d}'


def test_attachments_follow_the_text_and_fill_its_placeholders() -> None:
    packet = Packet(EVENT, data=["audio", {"data": b"\x00\x01", "more": [b"\x02"]}], id="7")
    messages: list[Message] = [
        f'52-7["audio",{{"data":{PLACE % 0},"more":[{PLACE % 1}]}}]',
        b"\x00\x01",
        b"\x02",
    ]
    assert encode(packet) == messages
    assert decode(*messages) == packet


def test_acks_have_attachments_too() -> None:
    packet = Packet(ACK, "/custom", [b"\x01", b"\x02"], "5")
    messages = encode(packet)
    assert messages == [f"62-/custom,5[{PLACE % 0},{PLACE % 1}]", b"\x01", b"\x02"]
    assert decode(*messages) == packet


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_bytes_is_an_attachment(kind: type) -> None:
    assert encode(Packet(EVENT, data=["x", kind(b"\x01")])) == [f'51-["x",{PLACE % 0}]', b"\x01"]


def test_one_bytes_object_in_two_places_travels_once() -> None:
    shared = bytes([1, 2])
    messages = encode(Packet(EVENT, data=["x", shared, shared]))
    assert messages == [f'51-["x",{PLACE % 0},{PLACE % 0}]', b"\x01\x02"]
    packet = decode(*messages)
    assert packet.data == ["x", shared, shared]
    assert encode(packet) == messages  # so that a small packet cannot be echoed into a large one


def test_two_places_may_share_an_attachment_and_an_attachment_may_have_none() -> None:
    assert decode(f'51-["x",{PLACE % 0},{PLACE % 0}]', b"a").data == ["x", b"a", b"a"]
    assert decode(f'52-["x",{PLACE % 1}]', b"a", b"b").data == ["x", b"b"]
    assert decode('51-["x"]', b"a").data == ["x"]
    assert decode('50-["x"]').data == ["x"]


def test_the_pending_packet_is_visible() -> None:
    decoder = Decoder()
    assert not decoder.pending
    for message in ('52-/custom,["x"]', b"a"):
        assert decoder.feed(message) is None
        assert decoder.pending == Packet(EVENT, "/custom", ["x"])
    assert decoder.feed(b"b") == Packet(EVENT, "/custom", ["x"])
    assert not decoder.pending
    assert decoder.feed('2["next"]') == Packet(EVENT, data=["next"])


@pytest.mark.parametrize("number", ["1", "-1", "10", "0.5", "1.0", '"0"', "null", "true", "[]", "1e400"])
def test_a_placeholder_without_its_attachment_is_refused_at_once(number: str) -> None:
    refusal(f'51-["x",{{"_placeholder":true,"num":{number}}}]')


def test_a_placeholder_must_have_a_number() -> None:
    assert "placeholder" in refusal('51-["x",{"_placeholder":true}]')
    assert "placeholder" in refusal(f'50-["x",{PLACE % 0}]')


def test_what_only_looks_like_a_placeholder_is_data() -> None:
    assert decode(f'2["x",{PLACE % 0}]').data == ["x", {"_placeholder": True, "num": 0}]
    assert decode('51-["x",{"_placeholder":1,"num":5}]', b"a").data == ["x", {"_placeholder": 1, "num": 5}]


def test_data_that_would_be_read_as_a_placeholder_is_not_sent_beside_attachments() -> None:
    lookalike = {"_placeholder": True, "num": 0}
    assert encode(Packet(EVENT, data=["x", lookalike])) == [f'2["x",{PLACE % 0}]']
    with pytest.raises(ValueError, match="placeholder"):
        encode(Packet(EVENT, data=["x", lookalike, b"a"]))


def test_text_while_an_attachment_is_pending_is_refused() -> None:
    assert "pending" in refusal('51-["x"]', '2["y"]')
    assert "pending" in refusal('52-["x"]', b"a", "1")


def test_binary_that_nothing_announced_is_refused() -> None:
    assert "announced" in refusal(b"a")
    assert "announced" in refusal('51-["x"]', b"a", b"b")
    assert "announced" in refusal('50-["x"]', b"a")


@pytest.mark.parametrize(
    "text",
    [
        '5["x"]',  # no count
        '51["x"]',  # no dash
        '5-["x"]',
        '5-1-["x"]',
        '51.5-["x"]',
        '51e0-["x"]',
        '5+1-["x"]',
        '5 1-["x"]',
        '5x-["x"]',
        '5١-["x"]',
        '5/custom,1-["x"]',  # in the wrong place
        '21-["x"]',  # on a packet that has none
        "01-{}",
    ],
)
def test_a_malformed_attachment_count_is_refused(text: str) -> None:
    assert "attachment count" in refusal(text)


def test_attachments_are_limited_both_ways() -> None:
    ten = [bytes([1, number]) for number in range(10)]
    assert decode(*encode(Packet(EVENT, data=["x", *ten]))).data == ["x", *ten]
    assert refusal('511-["x"]') == "more than 10 attachments"
    assert "attachment" in refusal(f'5{"9" * 5000}-["x"]')
    with pytest.raises(ValueError, match="more than 10 attachments"):
        encode(Packet(EVENT, data=["x", *ten, b"one more"]))
    assert refusal('53-["x"]', limits=Limits(attachments=2)) == "more than 2 attachments"


@pytest.mark.parametrize("kind", [CONNECT, CONNECT_ERROR])
def test_only_events_and_acks_have_attachments(kind: PacketType) -> None:
    with pytest.raises(ValueError, match="cannot have attachments"):
        encode(Packet(kind, data={"a": b"x"}))


# ----------------------------------------------------------------------------------------------- limits


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
    assert refusal('2["x"' + ",{}" * 100_000 + "]") == "more than 100000 values"


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


# --------------------------------------------------------------------------------------------- round trip

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
leaves = scalars | st.binary(max_size=20)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4)
    ),
    max_leaves=9,
)
names = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: name not in RESERVED_EVENTS)
namespaces = st.just("/") | st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters=",")).map(
    "/{}".format
)
ids = st.none() | st.from_regex(r"[0-9]{1,20}", fullmatch=True)
events = st.builds(lambda name, args: [name, *args], names, st.lists(values, max_size=1))
packets = st.builds(Packet, st.just(EVENT), namespaces, events, ids) | st.builds(
    Packet, st.just(ACK), namespaces, st.lists(values, max_size=1), ids
)


@given(packets)
def test_every_event_and_ack_survives_the_wire(packet: Packet) -> None:
    messages = encode(packet)
    assert all(isinstance(message, bytes) for message in messages[1:])
    assert decode(*messages) == packet


@given(packets)
def test_what_was_received_can_be_sent_back(packet: Packet) -> None:
    messages = encode(packet)
    assert encode(decode(*messages)) == messages


@given(packets)
def test_python_socketio_reads_what_is_written_here_and_the_other_way_round(packet: Packet) -> None:
    text, *attachments = encode(packet)
    theirs = socketio.packet.Packet(encoded_packet=text)
    for attachment in attachments:
        theirs.add_attachment(attachment)
    assert theirs.data == packet.data
    assert (theirs.namespace or "/") == packet.namespace.partition("?")[0]
    assert theirs.id == (None if packet.id is None else int(packet.id))

    theirs = socketio.packet.Packet(packet.type, packet.data, packet.namespace, theirs.id)
    written = theirs.encode()
    read = decode(*written) if isinstance(written, list) else decode(written)
    assert read.data == packet.data
    assert read.namespace == packet.namespace
