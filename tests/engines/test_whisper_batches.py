"""Whisper and several streams: heard together as if alone, cancelled alone, and side by side in several threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from protocol.errors import ErrorCode
from sts_trio.engines.base import AsrRequest, EngineFailure, Samples, Transcript
from sts_trio.engines.listener import Listener
from sts_trio.engines.pool import Pool
from sts_trio.engines.whisper import WhisperEngine
from sts_trio.observe.metrics import Metrics
from sts_trio.offload import thread_offload

pytestmark = pytest.mark.slow

OFFLOAD = thread_offload(2)

Outcome = Transcript | EngineFailure


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows each call of the model had so far."""
    sizes: list[int] = []
    real = Listener._run

    def run(listener: Listener, features: Samples, rows: Sequence[Any]) -> Sequence[Any]:
        sizes.append(len(rows))
        return real(listener, features, rows)

    monkeypatch.setattr(Listener, "_run", run)
    return sizes


def whisper(folder: Path, compute_type: str = "int8", *, slots: int = 2, max_batch: int = 4) -> WhisperEngine:
    return WhisperEngine(folder, "tiny", "cpu", compute_type, slots=slots, max_batch=max_batch)


def requests(speech: Samples) -> list[AsrRequest]:
    """Of many streams: languages, lengths and contexts differ, and not all of it is speech."""
    random = np.random.default_rng(1)
    short_before = " moso detil lunel dekal baral depun lusol lupu dekam"
    long_before = " bara mokal gopum finel dekal moran bakan fipun banes" * 4
    return [
        AsrRequest(speech[:64_000], "en"),
        AsrRequest(speech, "de", previous_text=short_before),
        AsrRequest(np.zeros(96_000, dtype=np.float32), "en"),
        AsrRequest(speech[40_000:], "fr", previous_text=short_before),
        AsrRequest(speech[:20_000], "en", hints=("barin", "delum")),
        AsrRequest(np.tile(speech, 6), "es"),  # over half a minute: several windows
        AsrRequest(speech * 0.3, "en", previous_text=long_before),
        AsrRequest((random.standard_normal(50_000) * 0.1).astype(np.float32), "en"),
        AsrRequest(speech[:64_000], "tlh"),  # unsupported
        AsrRequest(np.tile(speech, 9), "en", hints=("moso",), previous_text=long_before),
        AsrRequest(speech[:64_000], "ja"),
        AsrRequest(speech[30_000:], "en"),
    ]


def comparable(outcome: Outcome) -> object:
    return outcome if isinstance(outcome, Transcript) else (outcome.code, str(outcome))


# ------------------------------------------------------------------------------------------ together


@pytest.mark.parametrize("compute_type", ["float32", "int8"])
async def test_a_batch_is_heard_as_if_each_were_alone(
    compute_type: str, model: Path, speech: Samples, batches: list[int]
) -> None:
    asked = requests(speech)
    async with whisper(model, compute_type).open(OFFLOAD) as instance:
        alone = [comparable((await instance([request]))[0]) for request in asked]
        assert sum(bool(isinstance(answer, Transcript) and answer.text) for answer in alone) >= 5
        batches.clear()

        together = await instance(asked)
        assert [comparable(outcome) for outcome in together] == alone
        assert max(batches) == 3

        for seed in range(4):
            order = np.random.default_rng(seed).permutation(len(asked))[: 3 + seed]
            some = await instance([asked[i] for i in order])
            assert [comparable(outcome) for outcome in some] == [alone[i] for i in order]


async def test_a_batch_of_english_only_is_heard_as_if_each_were_alone(english_model: Path, speech: Samples) -> None:
    asked = [request for request in requests(speech) if request.language == "en"]
    async with whisper(english_model).open(OFFLOAD) as instance:
        alone = [(await instance([request]))[0] for request in asked]

        assert list(await instance(asked)) == alone
    assert any(isinstance(answer, Transcript) and answer.text for answer in alone)


async def test_streams_that_have_said_differently_much_are_heard_in_one_call(
    model: Path, speech: Samples, batches: list[int]
) -> None:
    before = " moso detil lunel dekal baral depun lusol lupu dekam"
    asked = [
        AsrRequest(speech[:64_000], language, previous_text=before + " bara" * more)
        for more, language in enumerate(("en", "de", "fr", "es"))
    ]
    async with whisper(model).open(OFFLOAD) as instance:
        batches.clear()
        await instance(asked)

    assert batches[0] == 4


# ------------------------------------------------------------------------------------------ in the pool


async def answers(
    pool: Pool[AsrRequest, Transcript], asked: Sequence[AsrRequest], first: trio.CancelScope | None = None
) -> list[object]:
    """Each request is of another stream, and all are asked at once, the first within the scope `first`."""
    outcomes: list[object] = [None] * len(asked)

    async def ask(i: int, scope: trio.CancelScope) -> None:
        with scope:
            try:
                outcomes[i] = comparable(await pool.submit(asked[i], stream=str(i)))
            except EngineFailure as failure:
                outcomes[i] = comparable(failure)

    async with trio.open_nursery() as streams:
        for i in range(len(asked)):
            streams.start_soon(ask, i, first if first and i == 0 else trio.CancelScope())
    return outcomes


def pool_of(engine: WhisperEngine, slots: int) -> Pool[AsrRequest, Transcript]:
    return Pool("asr", engine, slots=slots, max_waiting=100, offload=thread_offload(slots), metrics=Metrics())


async def test_what_cannot_be_heard_fails_alone(
    model: Path, speech: Samples, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [AsrRequest(speech, language) for language in ("en", "de", "fr")]
    async with whisper(model).open(OFFLOAD) as instance:
        alone = [comparable((await instance([request]))[0]) for request in asked]
        counting = Listener._run

        def run(listener: Listener, features: Samples, rows: Sequence[Any]) -> Sequence[Any]:
            german = listener._tokenizer("de").language
            if any(german in row.prompt for row in rows):
                raise ValueError("no German today")
            return counting(listener, features, rows)

        monkeypatch.setattr(Listener, "_run", run)
        outcomes = await instance(asked)
    assert [comparable(outcomes[0]), comparable(outcomes[2])] == [alone[0], alone[2]]
    assert isinstance(outcomes[1], EngineFailure)
    assert outcomes[1].code is ErrorCode.ASR_FAILED


@pytest.mark.parametrize("token", ["<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>", "<|nospeech|>"])
async def test_words_that_look_like_whispers_own_tokens_are_words(model: Path, speech: Samples, token: str) -> None:
    def special(listener: Listener, row: Any) -> list[int]:
        return [number for number in row.prompt if number >= listener._tokenizer("en").eot]

    seen: list[list[int]] = []
    async with whisper(model).open(OFFLOAD) as instance:
        real = Listener._row

        def row(listener: Listener, clip: Any, samples: Samples) -> Any:
            made = real(listener, clip, samples)
            seen.append(special(listener, made))
            return made

        with pytest.MonkeyPatch.context() as watching:
            watching.setattr(Listener, "_row", row)
            await instance([AsrRequest(speech, "en", hints=("Madrid",), previous_text="mo so")])
            await instance([AsrRequest(speech, "en", hints=(token, f"<<||{token}"), previous_text=f"mo {token} so")])
    assert seen[0] == seen[-1]


async def test_streams_that_wait_are_heard_together(model: Path, speech: Samples, batches: list[int]) -> None:
    engine, asked = whisper(model), [AsrRequest(speech[:64_000], language) for language in ("en", "de", "fr", "es")]
    async with engine.open(OFFLOAD) as instance:
        alone = [comparable((await instance([request]))[0]) for request in asked]

    async with trio.open_nursery() as nursery:
        pool = pool_of(engine, slots=1)
        await nursery.start(pool.run)
        batches.clear()
        assert await answers(pool, asked) == alone
        nursery.cancel_scope.cancel()
    assert batches[0] == 4


async def test_who_leaves_a_batch_does_not_take_the_others_along(
    model: Path, speech: Samples, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked = whisper(model), [AsrRequest(speech[:64_000], language) for language in ("en", "de", "fr")]
    async with engine.open(OFFLOAD) as instance:
        alone = [comparable((await instance([request]))[0]) for request in asked]
    busy, go_on = trio.Event(), threading.Event()
    import faster_whisper

    real = faster_whisper.WhisperModel.encode

    def encode(model: Any, features: Samples) -> object:
        trio.from_thread.run_sync(busy.set)
        assert go_on.wait(5)
        return real(model, features)

    async with trio.open_nursery() as nursery:
        pool = pool_of(engine, slots=1)
        await nursery.start(pool.run)
        monkeypatch.setattr("faster_whisper.WhisperModel.encode", encode)
        batches.clear()
        leaving = trio.CancelScope()

        async def leave() -> None:
            await busy.wait()
            leaving.cancel()
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()

        nursery.start_soon(leave)
        assert await answers(pool, asked, leaving) == [None, *alone[1:]]
        assert leaving.cancelled_caught
        nursery.cancel_scope.cancel()
    assert batches == [3]


async def test_when_all_have_left_the_slot_is_free_at_the_next_step(
    model: Path, speech: Samples, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = whisper(model), AsrRequest(np.tile(speech, 9), "en")
    import faster_whisper

    real = faster_whisper.WhisperModel.encode
    leaving = trio.CancelScope()

    def encode(model: Any, features: Samples) -> object:
        trio.from_thread.run_sync(leaving.cancel)
        return real(model, features)

    async with trio.open_nursery() as nursery:
        pool = pool_of(engine, slots=1)
        await nursery.start(pool.run)
        before = await pool.submit(request, stream="a")
        windows = len(batches)
        assert windows >= 2
        with monkeypatch.context() as patch, leaving:
            patch.setattr("faster_whisper.WhisperModel.encode", encode)
            await pool.submit(request, stream="a")
        assert leaving.cancelled_caught

        batches.clear()
        with trio.fail_after(5):
            assert await pool.submit(request, stream="a") == before
        assert len(batches) <= windows + 1  # of the abandoned one, at most what was begun
        nursery.cancel_scope.cancel()


async def test_instances_in_several_threads_do_not_disturb_each_other(model: Path, speech: Samples) -> None:
    engine, asked = whisper(model, max_batch=2), requests(speech) * 3
    async with engine.open(OFFLOAD) as instance:
        alone = [comparable((await instance([request]))[0]) for request in requests(speech)] * 3

    async with trio.open_nursery() as nursery:
        pool = pool_of(engine, slots=2)
        await nursery.start(pool.run)
        assert await answers(pool, asked) == alone
        nursery.cancel_scope.cancel()
