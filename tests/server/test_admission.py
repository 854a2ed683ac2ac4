"""Who may connect, by the numbers."""

from __future__ import annotations

import math
from collections import Counter
from http import HTTPStatus
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sts_trio.server import admission
from sts_trio.server.admission import Admission, AdmissionLimits, Denial, Reason

ONE, OTHER = "192.0.2.1", "192.0.2.2"

# -------------------------------------------------------------------------------------- places


def test_connections_are_limited_in_all_and_per_address() -> None:
    door = Admission(AdmissionLimits(connections=3, connections_per_address=2))
    assert [door.admit_connection(ONE), door.admit_connection(ONE)] == [None, None]
    denial = door.admit_connection(ONE)
    assert denial is not None
    assert (denial.reason, denial.status) == (Reason.ADDRESS_CONNECTIONS, HTTPStatus.TOO_MANY_REQUESTS)
    assert door.admit_connection(OTHER) is None
    denial = door.admit_connection(OTHER)
    assert denial is not None
    assert (denial.reason, denial.status) == (Reason.CONNECTIONS, HTTPStatus.SERVICE_UNAVAILABLE)
    door.release_connection(ONE)
    assert door.admit_connection(OTHER) is None
    assert door.connections == 3


def test_sessions_are_counted_apart_under_the_same_limits() -> None:
    door = Admission(AdmissionLimits(connections=2, connections_per_address=1))
    assert door.admit_connection(ONE) is None
    assert door.admit_session(ONE) is None
    assert door.admit_session(ONE) == Denial(Reason.ADDRESS_SESSIONS)
    assert door.admit_session(OTHER) is None
    assert door.admit_session("192.0.2.3") == Denial(Reason.SESSIONS)
    assert (door.connections, door.sessions) == (1, 2)
    door.release_session(ONE)
    assert door.admit_session(ONE) is None


def test_what_was_not_admitted_cannot_be_released() -> None:
    door = Admission()
    assert door.admit_session(ONE) is None
    with pytest.raises(KeyError):
        door.release_connection(ONE)


@pytest.mark.parametrize(
    ("address", "neighbour", "stranger"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
        ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2"),  # IPv4 on a socket of both families
        ("fe80::1%eth0", "fe80::2", "fe81::1"),
    ],
)
def test_one_address_is_what_one_party_has_for_the_asking(address: str, neighbour: str, stranger: str) -> None:
    door = Admission(AdmissionLimits(connections_per_address=1))
    assert door.admit_connection(address) is None
    assert door.admit_connection(neighbour) is not None
    assert door.admit_connection(stranger) is None
    door.release_connection(neighbour)
    assert door.admit_connection(address) is None


def test_an_address_is_an_ip_address() -> None:
    for text in ("192.0.2.1:50000", "[::1]", "localhost", ""):
        with pytest.raises(ValueError, match="IPv4 or IPv6"):
            Admission().admit_connection(text)


class Places(RuleBasedStateMachine):
    """Whatever comes and goes, the counts are right and nothing of those who left is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.door = Admission(AdmissionLimits(connections=5, connections_per_address=3))
        self.open: Counter[str] = Counter()

    @rule(address=st.sampled_from([f"192.0.2.{n}" for n in range(4)]))
    def arrive(self, address: str) -> None:
        denial = self.door.admit_connection(address)
        assert (denial is None) == (self.open[address] < 3 and self.open.total() < 5)
        if denial is None:
            self.open[address] += 1
        elif self.open[address] == 3:  # its own fault first
            assert denial.reason is Reason.ADDRESS_CONNECTIONS

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.open.total():
            address = data.draw(st.sampled_from(sorted(self.open.elements())))
            self.door.release_connection(address)
            self.open[address] -= 1

    @invariant()
    def counts_agree(self) -> None:
        assert self.door.connections == self.open.total()
        assert self.door.remembered == sum(count > 0 for count in self.open.values())


TestPlaces = Places.TestCase

# -------------------------------------------------------------------------------------- handshakes


def test_as_many_handshakes_at_once_as_connections_then_at_the_rate() -> None:
    door = Admission(AdmissionLimits(connections_per_address=3, handshakes_per_s=2))
    assert [door.admit_handshake(ONE, 0.0) for _ in range(3)] == [None] * 3
    denial = door.admit_handshake(ONE, 0.0)
    assert denial == Denial(Reason.ADDRESS_HANDSHAKES, 1)
    assert denial.status is HTTPStatus.TOO_MANY_REQUESTS
    assert door.admit_handshake(OTHER, 0.0) is None
    assert door.admit_handshake(ONE, 0.49) is not None
    assert door.admit_handshake(ONE, 0.5) is None  # those that were refused cost nothing
    assert door.admit_handshake(ONE, 0.5) is not None
    assert [door.admit_handshake(ONE, 100.0) for _ in range(4)].count(None) == 3  # no more than a full bucket


def test_who_is_too_fast_is_told_for_how_long() -> None:
    door = Admission(AdmissionLimits(connections_per_address=1, handshakes_per_s=0.1))
    assert door.admit_handshake(ONE, 0.0) is None
    denial = door.admit_handshake(ONE, 2.5)
    assert denial is not None
    assert denial.retry_after_s == 8
    assert door.admit_handshake(ONE, 2.5 + denial.retry_after_s) is None


@given(
    pauses=st.lists(st.floats(0, 3), max_size=60),
    rate=st.sampled_from([0.5, 1.0, 3.0, 20.0]),
    size=st.integers(1, 5),
    start=st.floats(0, 1e6),
)
def test_a_bucket_is_never_overdrawn_and_never_stingy(
    pauses: list[float], rate: float, size: int, start: float
) -> None:
    door = Admission(AdmissionLimits(connections_per_address=size, handshakes_per_s=rate))
    now, tokens = start, float(size)
    for pause in pauses:
        now += pause
        tokens = min(size, tokens + pause * rate)
        admitted = door.admit_handshake(ONE, now) is None
        if abs(tokens - 1) > 1e-6:  # where rounding does not decide
            assert admitted == (tokens >= 1)
        if admitted:
            tokens -= 1


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 2)), max_size=200))
def test_idle_addresses_are_forgotten(arrivals: list[tuple[int, float]]) -> None:
    door = Admission(AdmissionLimits(connections_per_address=2, handshakes_per_s=1))
    now, last = 0.0, dict[int, float]()
    for host, pause in arrivals:
        now += pause
        if door.admit_handshake(f"192.0.2.{host}", now) is None:
            last[host] = now
        # a bucket of 2 is full again 2 s after its last handshake; two are looked at with each arrival
        assert door.remembered <= len(last)
    for n in range(math.ceil(len(last) / 2) + 1):
        door.admit_handshake("198.51.100.1", now + 10 + 3 * n)
    assert door.remembered == 1


def test_no_more_addresses_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "REMEMBERED_ADDRESSES", 100)
    door = Admission(AdmissionLimits(connections_per_address=2, handshakes_per_s=0.001))
    assert [door.admit_handshake(ONE, 0.0) for _ in range(2)] == [None, None]
    for number in range(300):
        assert door.admit_handshake(str(IPv4Address(0x0A00_0000 + number)), 0.0) is None
        assert door.admit_handshake(ONE, 0.0) is not None  # who keeps trying is not forgotten
        assert door.remembered <= 100
