"""pocketsphinx: what it hears, what it does not, and that its children can be killed at any time."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Callable

import jiwer
import numpy as np
import pytest
import trio

from protocol.errors import ErrorCode
from sts_trio.engines.base import AsrRequest, EngineFailure, EngineUnavailable, Instance, Samples, Transcript
from sts_trio.engines.pocketsphinx import PocketsphinxEngine, transcript
from sts_trio.offload import thread_offload

from .conftest import need

NEWS = (
    "the city council voted on tuesday to build a new bridge across the river",
    "officials said the project will cost forty million dollars and take three years",
    "schools in the area will open again on monday morning",
)

OFFLOAD = thread_offload(1)

Hear = Instance[AsrRequest, Transcript]


async def hear(instance: Hear, samples: Samples) -> Transcript:
    [answer] = await instance([AsrRequest(samples, "en")])
    assert isinstance(answer, Transcript)
    return answer


# ------------------------------------------------------------------------------------------ rules


def test_a_pause_ends_a_segment() -> None:
    heard = transcript([("good", 100, 400, 0.9), ("morning", 400, 900, 0.5), ("london", 1_200, 1_700, 0.8)])

    assert heard.text == "good morning london"
    assert [(segment.text, segment.start_ms, segment.end_ms) for segment in heard.segments] == [
        ("good morning", 100, 900),
        ("london", 1_200, 1_700),
    ]
    assert [segment.confidence for segment in heard.segments] == [0.7, 0.8]


def test_words_that_are_hardly_believable_are_noise() -> None:
    assert transcript([("the", 0, 80, 0.1), ("the", 500, 580, 0.08)]) == Transcript("")
    assert transcript([("the", 0, 80, 0.1), ("river", 80, 580, 0.9)]).text == "the river"
    assert transcript([]) == Transcript("")


@pytest.fixture
def engine() -> PocketsphinxEngine:
    for module in ("pocketsphinx", "trio_parallel"):
        need(importlib.util.find_spec(module), "pip install 'sts-trio[embedded]'")
    return PocketsphinxEngine()


def test_it_knows_english_only(engine: PocketsphinxEngine) -> None:
    assert all(engine.supports(tag) for tag in ("en", "en-US", "en_GB", "EN-au", "eng"))
    assert not any(engine.supports(tag) for tag in ("es", "de-DE", "enm", ""))


@pytest.mark.parametrize("missing", ["pocketsphinx", "trio_parallel"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())

    with pytest.raises(EngineUnavailable, match=r"pip install 'sts-trio\[embedded\]'") as refused:
        PocketsphinxEngine()
    assert missing.replace("_", "-") in str(refused.value)


# ------------------------------------------------------------------------------------------ hearing


@pytest.mark.slow
async def test_it_writes_down_what_is_said_and_when(engine: PocketsphinxEngine, say: Callable[[str], Samples]) -> None:
    async with engine.open(OFFLOAD) as instance:
        answers = await instance([AsrRequest(say(text), "en-GB") for text in NEWS])

    heard = [answer.text for answer in answers if isinstance(answer, Transcript)]
    assert jiwer.wer(list(NEWS), heard) < 0.1
    for answer, text in zip(answers, NEWS, strict=True):
        assert isinstance(answer, Transcript)
        assert " ".join(segment.text for segment in answer.segments) == answer.text
        duration_ms = len(say(text)) / 16
        assert 0 <= answer.segments[0].start_ms < 500
        assert duration_ms - 500 < answer.segments[-1].end_ms <= duration_ms
        assert all(0.5 < segment.confidence <= 1 for segment in answer.segments)


@pytest.mark.slow
async def test_what_was_heard_before_makes_no_difference(
    engine: PocketsphinxEngine, say: Callable[[str], Samples]
) -> None:
    first, second = say(NEWS[0]), say(NEWS[2])
    async with engine.open(OFFLOAD) as instance:
        alone = await hear(instance, first)
        await hear(instance, second * 0.1)
        assert await hear(instance, first) == alone


@pytest.mark.slow
async def test_where_nobody_speaks_there_are_no_words(engine: PocketsphinxEngine) -> None:
    random = np.random.default_rng(1)
    seconds = np.arange(96_000) / 16_000
    white = random.standard_normal(96_000)
    clicks = np.zeros(96_000)
    clicks[::8_000] = 1
    quiet = {
        "one sample": np.ones(1),
        "a tenth of a second": white[:1_600] * 0.1,
        "digital silence": np.zeros(96_000),
        "one bit": np.ones(96_000) / 32_768,
        "a quiet room": white * 0.001,
        "noise": white * 0.1,
        "noise that comes and goes": white * 0.1 * (1 + np.sin(2 * np.pi * 4 * seconds)),
        "hum": np.sin(2 * np.pi * 50 * seconds) * 0.3,
        "tone": np.sin(2 * np.pi * 440 * seconds) * 0.3,
        "clicks": clicks,
        "offset": np.full(96_000, 0.3),
    }
    async with engine.open(OFFLOAD) as instance:
        heard = {name: (await hear(instance, sound.astype(np.float32))).text for name, sound in quiet.items()}

    assert heard == dict.fromkeys(quiet, "")


# ------------------------------------------------------------------------------------------ children


def kill_idle_child() -> None:
    [child] = multiprocessing.active_children()
    child.kill()
    child.join()


@pytest.mark.slow
async def test_a_cancel_kills_the_decode_and_the_next_call_works(
    engine: PocketsphinxEngine, say: Callable[[str], Samples]
) -> None:
    speech = say(NEWS[0])
    async with engine.open(OFFLOAD) as instance:
        before = await hear(instance, speech)
        [child] = multiprocessing.active_children()
        started_s = trio.current_time()
        with trio.move_on_after(0.2) as patience:
            await hear(instance, np.tile(speech, 10))  # many seconds of work
        assert patience.cancelled_caught
        assert trio.current_time() - started_s < 1
        assert not child.is_alive()

        assert await hear(instance, speech) == before
    assert multiprocessing.active_children() == []


@pytest.mark.slow
async def test_a_cancelled_owner_leaves_no_child_behind(
    engine: PocketsphinxEngine, say: Callable[[str], Samples]
) -> None:
    speech = np.tile(say(NEWS[0]), 10)
    with trio.CancelScope() as owner:
        async with engine.open(OFFLOAD) as instance:
            owner.deadline = trio.current_time() + 0.2
            await hear(instance, speech)
    assert owner.cancelled_caught
    assert multiprocessing.active_children() == []

    with trio.CancelScope() as owner:
        async with engine.open(OFFLOAD):
            owner.cancel()
            await trio.sleep_forever()
    assert owner.cancelled_caught
    assert multiprocessing.active_children() == []


@pytest.mark.slow
async def test_a_child_that_is_killed_fails_its_request_alone_and_only_for_now(
    engine: PocketsphinxEngine, say: Callable[[str], Samples]
) -> None:
    speech = say(NEWS[0])

    async def run_out_of_memory() -> None:
        await trio.sleep(0.2)
        [child] = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

    async with engine.open(OFFLOAD) as instance:
        before = await hear(instance, speech)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_out_of_memory)
            [answer] = await instance([AsrRequest(np.tile(speech, 10), "en")])
        assert isinstance(answer, EngineFailure)
        assert answer.code is ErrorCode.TEMPORARY_UNAVAILABLE

        assert await hear(instance, speech) == before


@pytest.mark.slow
async def test_a_child_that_died_while_idle_is_replaced_or_forgotten(
    engine: PocketsphinxEngine, say: Callable[[str], Samples]
) -> None:
    speech = say(NEWS[0])
    async with engine.open(OFFLOAD) as instance:
        before = await hear(instance, speech)
        kill_idle_child()
        assert await hear(instance, speech) == before
        kill_idle_child()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
async def test_one_instance_never_waits_for_another(engine: PocketsphinxEngine, say: Callable[[str], Samples]) -> None:
    speech = say(NEWS[0])
    order: list[str] = []

    async def listen(name: str, instance: Hear, samples: Samples) -> None:
        await hear(instance, samples)
        order.append(name)

    async with engine.open(OFFLOAD) as one, engine.open(OFFLOAD) as other, trio.open_nursery() as nursery:
        nursery.start_soon(listen, "long", one, np.tile(speech, 6))
        await trio.sleep(0.1)
        assert len(multiprocessing.active_children()) == 2
        nursery.start_soon(listen, "short", other, speech)
    assert order == ["short", "long"]
