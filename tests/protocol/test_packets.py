"""Socket.IO v5 packets, rule by rule: their text form and their JSON; and back again."""

from __future__ import annotations

import pytest
import socketio.packet
from hypothesis import given
from hypothesis import strategies as st

from protocol.socketio.packets import RESERVED_EVENTS, Packet, encode

from .decoding import ACK, CONNECT, CONNECT_ERROR, DISCONNECT, EVENT, decode, refusal

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
