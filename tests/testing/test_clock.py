"""A run is repeated by its seed: the same order of tasks, on virtual time."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from sts_trio.testing.clock import run_seeded


async def race() -> list[int]:
    """In which order ten tasks come to a word, three times each."""
    said: list[int] = []

    async def say(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            said.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(say, number)
    return said


def switches() -> tuple[object, object]:
    """What of trio is changed for a run."""
    core: Any = trio._core._run
    return core._ALLOW_DETERMINISTIC_SCHEDULING, core._r


@pytest.mark.parametrize("seed", [0, 1, 7, 10**12])
def test_the_same_seed_has_the_same_order(seed: int) -> None:
    assert run_seeded(race, seed=seed) == run_seeded(race, seed=seed)


def test_other_seeds_have_other_orders() -> None:
    assert len({tuple(run_seeded(race, seed=seed)) for seed in range(20)}) == 20


def test_what_ran_before_changes_nothing() -> None:
    alone = run_seeded(race, seed=3)
    trio.run(race)
    run_seeded(race, seed=4)
    assert run_seeded(race, seed=3) == alone


def test_an_hour_costs_nothing_and_ends_to_the_second() -> None:
    async def main() -> float:
        await trio.sleep(3_600)
        return trio.current_time()

    assert run_seeded(main, seed=0) == 3_600


def test_arguments_and_the_result_are_passed_on() -> None:
    async def main(a: int, b: int) -> int:
        await trio.lowlevel.checkpoint()
        return a + b

    assert run_seeded(main, 1, 2, seed=0) == 3


def test_trio_is_as_before_when_it_is_over() -> None:
    before = switches()

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        assert switches() != before

    run_seeded(main, seed=0)
    assert switches() == before


def test_trio_is_as_before_after_a_failure() -> None:
    before = switches()

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise LookupError

    with pytest.raises(LookupError):
        run_seeded(fail, seed=0)
    assert switches() == before


def test_trio_is_as_before_where_a_run_cannot_begin() -> None:
    """A run within a run: trio refuses it."""

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        during = switches()
        with pytest.raises(RuntimeError, match="from inside"):
            run_seeded(race, seed=1)
        assert switches() == during

    run_seeded(main, seed=0)
