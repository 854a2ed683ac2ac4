"""Lookups of names: nobody waits longer than there is time, one is under way at most, what was known is not lost."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import trio

from sts_trio.engines import resolver
from sts_trio.engines.resolver import Address, Resolver

SLACK_S = 0.2


def address(number: int) -> Address:
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{number}", 443)


class System:
    """The system's resolver: finds another address each time, or fails, or does not answer until it is released."""

    def __init__(self) -> None:
        self.lookups = 0
        self.fails = False
        self.answers = threading.Event()
        self.answers.set()

    def getaddrinfo(self, host: str, port: int, **_: object) -> Sequence[Address]:
        self.lookups += 1
        found = [address(self.lookups)]
        assert self.answers.wait(10.0)
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return found


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    system = System()
    monkeypatch.setattr(socket, "getaddrinfo", system.getaddrinfo)
    yield system
    system.answers.set()


async def look_up(resolver: Resolver, limit_s: float = 5.0) -> Sequence[Address]:
    return await trio.to_thread.run_sync(resolver.addresses, "deepl.example", 443, limit_s)


async def test_those_who_ask_together_share_one_lookup(system: System) -> None:
    found: list[Sequence[Address]] = []
    shared = Resolver()

    async def ask() -> None:
        found.append(await look_up(shared))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert found == [[address(1)]] * 5
    assert system.lookups == 1


async def test_a_name_may_move(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "FRESH_S", 0.0)
    shared = Resolver()
    assert await look_up(shared) == [address(1)]
    assert await look_up(shared) == [address(2)]


async def test_a_failure_is_that_of_the_system_and_is_not_kept(system: System) -> None:
    shared = Resolver()
    system.fails = True
    with pytest.raises(socket.gaierror, match="Temporary failure"):
        await look_up(shared)
    system.fails = False
    assert await look_up(shared) == [address(2)]


@pytest.mark.slow
async def test_a_lookup_that_hangs_is_left_behind_and_nobody_begins_another(system: System) -> None:
    shared = Resolver()
    system.answers.clear()
    for _ in range(3):
        started = trio.current_time()
        with pytest.raises(TimeoutError, match=r"deepl\.example could not be looked up"):
            await look_up(shared, limit_s=0.05)
        assert trio.current_time() - started < 0.05 + SLACK_S
    assert system.lookups == 1

    system.answers.set()
    assert await look_up(shared) == [address(1)]  # what came too late for the first is there for the next
    assert system.lookups == 1


@pytest.mark.parametrize("outage", ["fails", "hangs"])
async def test_what_was_found_before_does_while_the_system_knows_nothing(
    system: System, outage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "FRESH_S", 0.0)
    monkeypatch.setattr(resolver, "PATIENCE_S", 0.02)
    shared = Resolver()
    await look_up(shared)
    if outage == "hangs":
        system.answers.clear()
    else:
        system.fails = True
    started = trio.current_time()
    assert await look_up(shared) == [address(1)]
    assert trio.current_time() - started < 0.02 + SLACK_S


async def test_who_is_cancelled_does_not_wait_for_it(system: System) -> None:
    system.answers.clear()
    with trio.move_on_after(0.05) as scope:
        await trio.to_thread.run_sync(partial(Resolver().addresses, "deepl.example", 443, 5.0))
    assert scope.cancelled_caught
    assert trio.current_time() - scope.deadline < SLACK_S
