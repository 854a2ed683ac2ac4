"""The properties behind all of `protocol.engineio`, whatever crosses on the way.

What one end was given to send arrives at the other once and in order: on polling, on a WebSocket and across the move
from one to the other, however that goes. A session ends only where somebody ended it, cut its transport or let it wait
too long. A held poll is answered as soon as there is an answer. And what has left takes no room.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocol.engineio import ClientConnection, Closed, CloseReason, ConnectionClosed, Transport
from protocol.engineio.packets import SEPARATOR

from .network import QUEUE_BYTES, Network

messages = st.text(st.characters(exclude_characters=SEPARATOR, exclude_categories=["Cs"]), max_size=30) | st.binary(
    max_size=30
)
sides = st.sampled_from(["server", "client"])


class Session(RuleBasedStateMachine):
    @initialize(
        transport=st.sampled_from([Transport.POLLING, Transport.POLLING, Transport.WEBSOCKET]),
        max_payload=st.sampled_from([20, 100, 10_000]),
        packets_per_poll=st.sampled_from([1, 3, 16]),
        peace=st.sampled_from([0, 5, 15, 50]),
        late=st.booleans(),
    )
    def begin(self, transport: Transport, max_payload: int, packets_per_poll: int, peace: int, late: bool) -> None:
        self.network = Network(transport, max_payload, packets_per_poll)
        self.finishing: list[str] = []
        self.numbers = 0
        self.peace = peace  # moves until the session may be harmed or ended: most moves could, and then little is seen
        if late:  # the first ping is due before anything has left
            self.network.now = self.network.server.deadline
            self.network.tick()

    # ----------------------------------------------------------------------- what the ends are asked for

    @rule(side=sides, several=st.lists(messages, min_size=1, max_size=20))
    def send(self, side: str, several: list[str | bytes]) -> None:
        end = self.network.end(side)
        for message in several:
            if end.is_closing:
                with pytest.raises(ConnectionClosed):
                    end.send(message)
            else:
                end.send(message)
                self.network.sent[side].append(message)
        self.network.look()

    @precondition(lambda self: self.network.client.transport is Transport.POLLING)
    @rule()
    def upgrade(self) -> None:
        network = self.network
        is_open = network.client.handshake is not None and network.client.closed is None
        if is_open and network.client.transport is Transport.POLLING and network.client_probe is None:
            network.client_begins_upgrade()

    @precondition(lambda self: self.peace <= 0)
    @rule(side=sides)
    def finish(self, side: str) -> None:
        end = self.network.end(side)
        if not end.is_closing:
            self.finishing.append(side)
            end.finish(CloseReason.SHUTTING_DOWN, by=self.network.now + 600.0)
        self.network.look()

    @precondition(lambda self: self.peace <= 0)
    @rule(side=sides)
    def close(self, side: str) -> None:
        self.network.harmed = True
        self.network.end(side).close(CloseReason.SHUTTING_DOWN)
        self.network.look()

    # ----------------------------------------------------------------------------- what the network does

    @rule(
        seed=st.integers(0, 2**32),
        moves=st.integers(0, 150),
        messages_per_move=st.sampled_from([0.05, 0.3]),
        upgrades_per_move=st.sampled_from([0.0, 0.06]),
    )
    def a_lot_happens(self, seed: int, moves: int, messages_per_move: float, upgrades_per_move: float) -> None:
        """A walk too long to be drawn move by move."""
        rng = Random(seed)
        self.peace -= 1
        for _ in range(moves):
            kind = rng.random()
            if kind < messages_per_move:
                self.numbers += 1
                message = f"{self.numbers}".ljust(rng.randrange(25), ".")
                self.send(rng.choice(["server", "client"]), [rng.choice([message, message.encode()])])
            elif kind < messages_per_move + upgrades_per_move:
                self.upgrade()
            elif kind < messages_per_move + 0.07 and self.network.client_probe is not None:
                if self.network.client_probe is not self.network.server_socket:
                    self.network.client_probe.cut()
            else:
                rng.choice(self.network.moves)()
            self.nobody_breaks_a_rule_for_the_other()
            self.a_held_poll_is_answered_as_soon_as_there_is_an_answer()

    @rule(choices=st.lists(st.integers(0, 11), min_size=1, max_size=10))
    def something_happens(self, choices: list[int]) -> None:
        self.peace -= 1
        moves = self.network.moves
        for choice in choices:
            any(move() for move in moves[choice:] + moves[:choice])
            self.a_held_poll_is_answered_as_soon_as_there_is_an_answer()

    @rule(seconds=st.floats(0.0, 0.7))
    def time_passes_in_which_everything_arrives(self, seconds: float) -> None:
        self.peace -= 1
        network = self.network
        network.settle()
        until = network.now + seconds
        while (deadline := min(network.server.deadline, network.client.deadline)) <= until:
            network.now = max(network.now, deadline)
            network.tick()
            network.settle()
        network.now = until

    @precondition(lambda self: self.peace <= 0)
    @rule(seconds=st.floats(0.0, 0.3))
    def time_passes_in_which_nothing_arrives(self, seconds: float) -> None:
        self.network.harmed = True
        self.network.now += seconds
        self.network.tick()

    @precondition(lambda self: self.network.sockets)
    @rule(choice=st.integers(0, 9))
    def a_websocket_breaks(self, choice: int) -> None:
        network = self.network
        socket = network.sockets[choice % len(network.sockets)]
        if socket in (network.client_socket, network.server_socket):
            if self.peace > 0:
                return
            network.harmed = True
        socket.cut()

    @precondition(lambda self: self.network.client_probe and "3probe" in self.network.client_probe.to_client)
    @rule()
    def an_answer_to_a_probe_is_garbled(self) -> None:
        assert self.network.client_probe is not None
        self.network.client_probe.to_client = deque(["3prove"])

    @precondition(lambda self: self.network.server_probe is not None)
    @rule()
    def the_server_gives_up_on_an_upgrade(self) -> None:
        network = self.network
        if network.server_probe is network.client_socket:  # it has moved already
            if self.peace > 0:
                return
            network.harmed = True
        network.server_abandons_upgrade()
        network.look()

    @precondition(lambda self: self.peace <= 0 and (self.network.poll or self.network.post))
    @rule()
    def http_breaks(self) -> None:
        self.network.harmed = True
        self.network.http_breaks()

    # ---------------------------------------------------------------------------------- what always holds

    @invariant()
    def nobody_breaks_a_rule_for_the_other(self) -> None:
        if not hasattr(self, "network"):
            return
        for side in ("server", "client"):
            closed = self.network.end(side).closed
            assert closed is None or self.network.harmed or self.finishing, closed
            assert closed is None or closed.reason not in (CloseReason.PARSE_ERROR, CloseReason.SLOW_READER)

    @invariant()
    def a_held_poll_is_answered_as_soon_as_there_is_an_answer(self) -> None:
        if not hasattr(self, "network"):
            return
        network = self.network
        if network.poll and network.poll.held:
            assert network.server.closed is None
            assert network.server.transport is Transport.POLLING
            assert not network.probed
            assert not network.server.has_unsent

    def teardown(self) -> None:
        if not hasattr(self, "network"):
            return
        network = self.network
        network.settle()
        if network.server.closed is None and network.client.closed is None:
            assert not network.sent["server"]
            assert not network.sent["client"]
            assert not network.server.has_unsent
            assert not network.client.has_unsent
            self.there_is_room_for_a_queue_of_bytes()
            return
        if not network.harmed:
            first, *others = self.finishing
            assert network.end(first).closed == Closed(CloseReason.SHUTTING_DOWN) or others
            assert others or not network.sent[first], "the end came before the last message"
        for _ in range(4):  # whoever has not learned of it by then has pinged and waited
            network.now += 1.0
            network.tick()
            network.settle()
        assert network.server.closed is not None
        assert network.client.closed is not None
        assert network.poll is None or not network.poll.held

    def there_is_room_for_a_queue_of_bytes(self) -> None:
        """All that was counted has been counted off again, to the byte."""
        for end in (self.network.server, self.network.client):
            end.send(b"x" * LARGEST)
            assert end.closed is None
            end.send(b"")
            assert end.closed is not None


def fits(length: int) -> bool:
    """Whether an empty queue takes a message of so many bytes."""
    connection = ClientConnection(0.0, max_queue_bytes=QUEUE_BYTES)
    connection.send(b"x" * length)
    return connection.closed is None


LARGEST = bisect_left(range(QUEUE_BYTES), True, key=lambda length: not fits(length)) - 1


@pytest.mark.slow
def test_two_ends_of_a_session_hold_together_whatever_the_network_does() -> None:
    run_state_machine_as_test(Session, settings=settings(max_examples=80, stateful_step_count=30, deadline=None))


@pytest.mark.slow
def test_so_do_they_on_many_walks_at_random() -> None:
    """More sessions than can be drawn, each with an upgrade or two in the thick of it."""
    for seed in range(600):
        rng = Random(seed)
        session = Session()
        session.begin(
            transport=rng.choice([Transport.POLLING, Transport.POLLING, Transport.WEBSOCKET]),
            max_payload=rng.choice([20, 100, 10_000]),
            packets_per_poll=rng.choice([1, 3, 16]),
            peace=50,
            late=rng.random() < 0.1,
        )
        for _ in range(2):
            session.a_lot_happens(rng.randrange(2**32), rng.randrange(100), rng.choice([0.1, 0.3]), 0.06)
            if rng.random() < 0.3:
                session.finish(rng.choice(["server", "client"]))
        session.teardown()
