"""Socket.IO v5 packets with binary attachments, rule by rule."""

from __future__ import annotations

import pytest

from protocol.socketio.packets import Decoder, Limits, Message, Packet, PacketType, encode

from .decoding import ACK, CONNECT, CONNECT_ERROR, EVENT, PLACE, decode, refusal


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
