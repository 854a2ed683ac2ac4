"""A network in memory keeps TCP's promises, to the virtual second, and breaks as TCP does."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from sts_trio.testing.clock import run_seeded
from sts_trio.testing.network import BACKLOG, SERVER_ADDRESS, WINDOW_BYTES, End, Line, Network, Quality

PERFECT = Quality()


@frozen
class Connection:
    """Both ends of a line; what holds for one direction holds for the other."""

    client: End
    server: End
    line: Line


async def connection(quality: Quality = PERFECT) -> Connection:
    network = Network()
    await network.listen(0, "")
    client, line = network.connect(quality)
    server: Any = await network.accept()
    return Connection(client, server, line)


async def clogged() -> Connection:
    """Nothing more can be sent over it in either direction."""
    made = await connection()
    await made.client.send_all(bytes(WINDOW_BYTES))
    await made.server.send_all(bytes(WINDOW_BYTES))
    return made


async def receive_all(end: End) -> bytes:
    """Until the other end says that nothing more comes."""
    received = b""
    while data := await end.receive_some():
        received += data
    return received


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    """Somebody listens."""
    network = Network()
    async with (await network.listen(0, ""))[0]:
        yield network


# -------------------------------------------------------------------------------------- a stream as trio wants it


async def test_it_is_a_stream_like_any_other() -> None:
    """Trio's own rules for whoever makes a kind of stream: arguments, closing, cancelling, two tasks at once."""

    async def make(maker: Callable[[], Awaitable[Connection]]) -> tuple[End, End]:
        made = await maker()
        return made.client, made.server

    await trio.testing.check_half_closeable_stream(lambda: make(connection), lambda: make(clogged))


async def test_nothing_is_not_the_end() -> None:
    made = await connection()
    await made.client.send_all(b"")
    with trio.move_on_after(0) as patience:
        await made.server.receive_some()
    assert patience.cancelled_caught
    await made.client.send_all(b"something")
    assert await made.server.receive_some() == b"something"


async def test_what_was_sent_may_be_changed_afterwards() -> None:
    made = await connection()
    data = bytearray(b"before")
    await made.client.send_all(data)
    data[:] = b"after."
    assert await made.server.receive_some() == b"before"


# -------------------------------------------------------------------------------------- whole, in order, once


@given(
    pieces=st.lists(st.binary(max_size=50), max_size=20),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    quality=st.builds(Quality, st.sampled_from([0.0, 0.3]), st.sampled_from([math.inf, 7.0])),
    pauses=st.lists(st.sampled_from([0.0, 0.1, 5.0]), min_size=1, max_size=5),
    seed=st.integers(0, 1_000),
)
def test_it_arrives_whole_in_order_and_once(
    pieces: list[bytes], sizes: list[int], quality: Quality, pauses: list[float], seed: int
) -> None:
    """However it is chopped on its way in and out, and whenever the line stalls."""
    received = b""

    async def send(end: End) -> None:
        for number, piece in enumerate(pieces):
            await end.send_all(piece)
            await trio.sleep(pauses[number % len(pauses)])
        await end.aclose()

    async def receive(end: End) -> None:
        nonlocal received
        at_most = random.Random(seed)
        while data := await end.receive_some(size := at_most.choice(sizes)):
            assert len(data) <= size
            received += data

    async def main() -> None:
        made = await connection(quality)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, made.client)
            nursery.start_soon(receive, made.server)
            await trio.sleep(0.2)
            made.line.stall()
            await trio.sleep(3)
            made.line.go_on()

    run_seeded(main, seed=seed)
    assert received == b"".join(pieces)


async def test_the_directions_know_nothing_of_each_other(autojump_clock: MockClock) -> None:
    made = await connection(Quality(latency_s=1.0))
    await made.client.send_all(b"there")
    await made.client.send_eof()
    await made.server.send_all(b"back")
    assert await made.client.receive_some() == b"back"
    assert await receive_all(made.server) == b"there"
    assert trio.current_time() == 1.0


# -------------------------------------------------------------------------------------- how much, how fast


async def test_a_line_holds_its_window_and_no_byte_more() -> None:
    made = await connection()
    sent = False

    async def send() -> None:
        nonlocal sent
        await made.client.send_all(bytes(WINDOW_BYTES + 10))
        sent = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert not sent
        assert len(await made.server.receive_some(9)) == 9
        await wait_all_tasks_blocked()
        assert not sent
        assert len(await made.server.receive_some(1)) == 1
        await wait_all_tasks_blocked()
        assert sent


async def test_who_waits_for_room_waits_until_somebody_reads() -> None:
    made = await clogged()
    with trio.move_on_after(0) as patience:
        await made.client.wait_send_all_might_not_block()
    assert patience.cancelled_caught
    await made.server.receive_some(1)
    await made.client.wait_send_all_might_not_block()


async def test_a_byte_takes_its_latency(autojump_clock: MockClock) -> None:
    made = await connection(Quality(latency_s=0.25))
    await made.client.send_all(b"a")
    assert trio.current_time() == 0
    await trio.sleep(0.125)
    await made.client.send_all(b"b")
    assert await made.server.receive_some() == b"a"
    assert trio.current_time() == 0.25
    assert await made.server.receive_some() == b"b"
    assert trio.current_time() == 0.375


async def test_a_byte_takes_its_place_behind_those_before_it(autojump_clock: MockClock) -> None:
    made = await connection(Quality(latency_s=0.5, bytes_per_s=100))
    await made.client.send_all(bytes(200))
    await made.client.send_all(b"behind")
    assert len(await made.server.receive_some()) == 200
    assert trio.current_time() == 2.5
    assert await made.server.receive_some() == b"behind"
    assert trio.current_time() == pytest.approx(2.56)


async def test_a_line_that_was_idle_is_not_faster_afterwards(autojump_clock: MockClock) -> None:
    made = await connection(Quality(bytes_per_s=100))
    await trio.sleep(10)
    await made.client.send_all(bytes(100))
    await made.server.receive_some()
    assert trio.current_time() == 11


@given(sizes=st.lists(st.integers(1, 1_000), min_size=1, max_size=10), latency_s=st.sampled_from([0.0, 0.5]))
def test_what_is_carried_is_carried_at_its_rate(sizes: list[int], latency_s: float) -> None:
    """The last byte comes when all of them have left, one after the other, and a latency later."""

    async def main() -> None:
        made = await connection(Quality(latency_s, 64))
        for size in sizes:
            await made.client.send_all(bytes(size))
        await made.client.send_eof()
        await receive_all(made.server)
        assert trio.current_time() == pytest.approx(sum(sizes) / 64 + latency_s)

    run_seeded(main, seed=0)


# -------------------------------------------------------------------------------------- how it ends


async def test_the_end_comes_after_all_that_was_sent_and_stays(autojump_clock: MockClock) -> None:
    made = await connection(Quality(latency_s=0.25, bytes_per_s=8))
    await made.client.send_all(b"last")
    await made.client.aclose()
    assert await made.server.receive_some() == b"last"
    assert trio.current_time() == 0.75
    assert [await made.server.receive_some() for _ in range(2)] == [b"", b""]


async def test_the_end_takes_its_latency_too(autojump_clock: MockClock) -> None:
    made = await connection(Quality(latency_s=0.25))
    await made.client.aclose()
    assert await made.server.receive_some() == b""
    assert trio.current_time() == 0.25


async def test_the_end_takes_no_longer_when_it_is_said_twice(autojump_clock: MockClock) -> None:
    made = await connection(Quality(latency_s=0.25))
    await made.client.send_eof()
    await trio.sleep(0.125)
    await made.client.send_eof()
    await made.client.aclose()
    assert await made.server.receive_some() == b""
    assert trio.current_time() == 0.25


async def test_who_sends_no_more_can_still_receive() -> None:
    made = await connection()
    await made.client.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        await made.client.send_all(b"x")
    await made.server.send_all(b"answer")
    assert await made.client.receive_some() == b"answer"


async def test_a_closed_end_says_nothing_more() -> None:
    made = await connection()
    await made.client.aclose()
    for attempt in (made.client.send_all(b"x"), made.client.send_eof(), made.client.receive_some()):
        with pytest.raises(trio.ClosedResourceError):
            await attempt


@pytest.mark.parametrize(
    ("make", "wait", "told"),
    [
        (connection, lambda made: made.client.receive_some(), trio.ClosedResourceError),
        (clogged, lambda made: made.client.send_all(b"x"), trio.ClosedResourceError),
        (clogged, lambda made: made.server.send_all(b"x"), trio.BrokenResourceError),
    ],
    ids=["who receives", "who sends", "who sends to it"],
)
async def test_who_waits_while_an_end_is_closed_is_told(
    make: Callable[[], Awaitable[Connection]],
    wait: Callable[[Connection], Awaitable[object]],
    told: type[Exception],
) -> None:
    made = await make()

    async def expect() -> None:
        with pytest.raises(told):
            await wait(made)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        await made.client.aclose()


async def test_who_waits_to_receive_while_the_other_end_closes_hears_the_end() -> None:
    made = await connection()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.client.aclose)
        assert await made.server.receive_some() == b""


async def test_what_was_sent_before_a_close_can_be_read_although_nothing_can_be_sent_back() -> None:
    made = await connection()
    await made.client.send_all(b"farewell")
    await made.client.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await made.server.send_all(b"wait!")
    assert await receive_all(made.server) == b"farewell"


# -------------------------------------------------------------------------------------- how it breaks


async def test_a_cut_is_told_at_both_ends_and_loses_what_was_on_its_way(autojump_clock: MockClock) -> None:
    made = await connection(Quality(latency_s=1.0))
    await made.client.send_all(b"lost")
    outcomes: list[tuple[str, float]] = []

    async def expect(name: str, waiting: Awaitable[object]) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await waiting
        outcomes.append((name, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, "client", made.client.receive_some())
        nursery.start_soon(expect, "server", made.server.receive_some())
        nursery.start_soon(expect, "sender", made.server.send_all(bytes(WINDOW_BYTES + 1)))
        await trio.sleep(0.5)
        made.line.cut()
    assert sorted(outcomes) == [("client", 0.5), ("sender", 0.5), ("server", 0.5)]
    for end in (made.client, made.server):
        for attempt in (end.send_all(b"x"), end.wait_send_all_might_not_block(), end.send_eof(), end.receive_some()):
            with pytest.raises(trio.BrokenResourceError):
                await attempt


async def test_a_cut_loses_the_second_half_of_a_message(autojump_clock: MockClock) -> None:
    made = await connection()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await made.client.send_all(b"1" * WINDOW_BYTES + b"2")

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert await made.server.receive_some(10) == b"1" * 10
        made.line.cut()
        with pytest.raises(trio.BrokenResourceError):
            await made.server.receive_some()


async def test_a_stall_is_told_to_nobody_and_loses_nothing(autojump_clock: MockClock) -> None:
    made = await connection(Quality(latency_s=0.25))
    await made.client.send_all(b"before ")
    await trio.sleep(1)
    made.line.stall()
    await made.client.send_all(b"meanwhile")
    await made.client.send_eof()
    with trio.move_on_after(60) as patience:
        await made.server.receive_some()
    assert patience.cancelled_caught
    made.line.go_on()
    assert await receive_all(made.server) == b"before meanwhile"
    assert trio.current_time() == 61


async def test_a_stall_ends_for_who_waits_already(autojump_clock: MockClock) -> None:
    made = await connection()
    made.line.stall()
    await made.client.send_all(b"at last")
    async with trio.open_nursery() as nursery:

        async def go_on() -> None:
            await trio.sleep(5)
            made.line.go_on()

        nursery.start_soon(go_on)
        assert await made.server.receive_some() == b"at last"
    assert trio.current_time() == 5


async def test_over_a_line_that_is_half_open_nobody_learns_that_the_other_end_is_closed(
    autojump_clock: MockClock,
) -> None:
    made = await connection()
    made.line.stall()
    await made.client.aclose()
    await made.server.send_all(b"into the void")
    with trio.move_on_after(3_600) as patience:
        await made.server.receive_some()
    assert patience.cancelled_caught
    made.line.go_on()
    assert await made.server.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await made.server.send_all(b"x")


async def test_who_waits_to_send_over_a_half_open_line_learns_of_the_close_when_it_goes_on(
    autojump_clock: MockClock,
) -> None:
    made = await clogged()
    made.line.stall()
    await made.client.aclose()
    with trio.move_on_after(60) as patience:
        await made.server.send_all(b"x")
    assert patience.cancelled_caught
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await made.server.send_all(b"x")

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        made.line.go_on()


async def test_a_stalled_line_can_still_be_cut() -> None:
    made = await connection()
    made.line.stall()
    made.line.cut()
    with pytest.raises(trio.BrokenResourceError):
        await made.server.receive_some()


# -------------------------------------------------------------------------------------- who listens, who connects


async def test_connections_are_accepted_in_order_and_know_their_addresses(network: Network) -> None:
    ends = [network.connect()[0], network.connect(host="192.0.2.8")[0]]
    accepted: list[Any] = [await network.accept() for _ in ends]
    assert [end.socket.getpeername()[0] for end in accepted] == ["192.0.2.7", "192.0.2.8"]
    for ours, theirs in zip(ends, accepted, strict=True):
        assert ours.socket.getsockname() == theirs.socket.getpeername()
        assert ours.socket.getpeername() == theirs.socket.getsockname() == SERVER_ADDRESS
    assert all(a.socket.getsockname() != b.socket.getsockname() for a, b in pairwise(ends))


async def test_where_nobody_listens_connections_are_refused() -> None:
    network = Network()
    with pytest.raises(ConnectionRefusedError, match="nobody listens"):
        network.connect()
    [listener] = await network.listen(0, "")
    client, _ = network.connect()
    await listener.aclose()
    with pytest.raises(ConnectionRefusedError, match="nobody listens"):
        network.connect()
    with pytest.raises(trio.BrokenResourceError):  # it was never accepted
        await client.receive_some()


async def test_too_many_at_once_are_refused(network: Network) -> None:
    for _ in range(BACKLOG):
        network.connect()
    with pytest.raises(ConnectionRefusedError, match=f"{BACKLOG} connections"):
        network.connect()
    await network.accept()
    network.connect()


async def test_who_accepts_while_the_listener_is_closed_is_told(network: Network) -> None:
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await network.accept()

        nursery.start_soon(accept)
        await wait_all_tasks_blocked()
        await network.aclose()


async def test_one_server_listens_at_a_time_and_another_afterwards(network: Network) -> None:
    with pytest.raises(OSError, match="listens on it"):
        await network.listen(0, "")
    await network.aclose()
    await network.listen(0, "")
    client, _ = network.connect()
    server: Any = await network.accept()
    await client.send_all(b"hello")
    assert await server.receive_some() == b"hello"
