"""Engine.IO v4 packets: as WebSocket frames, and as the payloads of HTTP long-polling."""

from __future__ import annotations

import engineio.payload  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.engineio import (
    EngineError,
    Frame,
    Packet,
    PacketType,
    decode_frame,
    decode_payload,
    encode_frame,
    encode_payload,
)
from protocol.engineio.packets import SEPARATOR

# ----------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize(
    ("packet", "frame"),
    [
        (Packet(PacketType.OPEN, "{}"), "0{}"),
        (Packet(PacketType.CLOSE), "1"),
        (Packet(PacketType.PING), "2"),
        (Packet(PacketType.PONG, "probe"), "3probe"),
        (Packet(PacketType.MESSAGE, "hello €"), "4hello €"),
        (Packet(PacketType.MESSAGE, ""), "4"),
        (Packet(PacketType.MESSAGE, b"\x01\x02"), b"\x01\x02"),
        (Packet(PacketType.MESSAGE, b""), b""),
        (Packet(PacketType.UPGRADE), "5"),
        (Packet(PacketType.NOOP), "6"),
    ],
)
def test_a_frame_is_a_digit_and_text_or_bare_bytes(packet: Packet, frame: Frame) -> None:
    assert encode_frame(packet) == frame
    assert decode_frame(frame) == packet


packets = st.builds(Packet, st.sampled_from(PacketType), st.text()) | st.builds(
    Packet, st.just(PacketType.MESSAGE), st.binary()
)


@given(packets)
def test_every_packet_survives_a_frame(packet: Packet) -> None:
    assert decode_frame(encode_frame(packet)) == packet


@pytest.mark.parametrize("frame", ["", "7", "9hello", "hello", " 4", "-1", "٤hello", "²", "b", "bAQI="])
def test_a_text_frame_without_a_packet_type_is_refused(frame: str) -> None:
    with pytest.raises(EngineError):
        decode_frame(frame)


@pytest.mark.parametrize("kind", [kind for kind in PacketType if kind is not PacketType.MESSAGE])
def test_only_a_message_can_be_binary(kind: PacketType) -> None:
    with pytest.raises(ValueError, match=kind.name):
        encode_frame(Packet(kind, b"x"))
    with pytest.raises(ValueError, match=kind.name):
        encode_payload([Packet(kind, b"x")])


# --------------------------------------------------------------------------------------------- payloads


@pytest.mark.parametrize(
    ("held", "payload"),
    [
        ([Packet(PacketType.MESSAGE, "hello €")], "4hello €"),
        ([Packet(PacketType.MESSAGE, "a"), Packet(PacketType.PING), Packet(PacketType.MESSAGE, "")], "4a\x1e2\x1e4"),
        ([Packet(PacketType.MESSAGE, b"\x01\x02\x03\x04")], "bAQIDBA=="),  # no 4
        ([Packet(PacketType.MESSAGE, b""), Packet(PacketType.NOOP)], "b\x1e6"),
    ],
)
def test_a_payload_joins_packets_and_binary_is_b_and_base64(held: list[Packet], payload: str) -> None:
    assert encode_payload(held) == payload
    assert list(decode_payload(payload)) == held


over_http = packets.filter(lambda packet: isinstance(packet.data, bytes) or SEPARATOR not in packet.data)


@given(st.lists(over_http, min_size=1, max_size=40))
def test_every_list_of_packets_survives_a_payload(held: list[Packet]) -> None:
    assert list(decode_payload(encode_payload(held))) == held


@given(
    st.lists(
        st.builds(
            Packet,
            st.just(PacketType.MESSAGE),
            st.binary() | st.just("") | st.from_regex(r"[a-z€]{1,3}", fullmatch=True),
        ),
        min_size=1,
        max_size=16,
    )
)
def test_python_engineio_reads_our_payloads_and_we_read_theirs(held: list[Packet]) -> None:
    theirs = engineio.payload.Payload(encoded_payload=encode_payload(held))
    assert [packet.data for packet in theirs.packets] == [packet.data for packet in held]
    assert list(decode_payload(theirs.encode())) == held


@pytest.mark.parametrize(
    "payload",
    [
        "",
        SEPARATOR,
        "4a\x1e",  # nothing behind the last separator
        "\x1e4a",
        "4a\x1e\x1e4b",
        "x",
        "7",
        "b!",
        "bAQ",  # padding missing
        "bA===",
        "bAQ==x",
        "b AQ==",
        "bAQ==\n",
        "b€",
        "bAQ-_",  # base64 for URLs
    ],
)
def test_a_payload_with_a_piece_that_is_no_packet_is_refused(payload: str) -> None:
    with pytest.raises(EngineError):
        list(decode_payload(payload))


def test_a_payload_is_read_packet_by_packet() -> None:
    reading = decode_payload("4first\x1enonsense")
    assert next(reading) == Packet(PacketType.MESSAGE, "first")
    with pytest.raises(EngineError):
        next(reading)
