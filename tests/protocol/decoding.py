"""Reading Socket.IO packets, as tests want it."""

from __future__ import annotations

from typing import Final

import pytest

from protocol.socketio.packets import Decoder, Limits, Message, Packet, PacketType, SocketError

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR = (PacketType(number) for number in range(5))

PLACE: Final = '{"_placeholder":true,"num":%d}'


def decode(*messages: Message, limits: Limits | None = None) -> Packet:
    """The packet that `messages` are, and nothing before the last of them."""
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
