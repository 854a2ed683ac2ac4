"""Whisper: what it hears, what it does not, and how it fails. The model is tiny and random, all else is real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from protocol.errors import ErrorCode
from sts_trio.engines import hearing
from sts_trio.engines.base import AsrRequest, EngineFailure, EngineLost, Instance, Samples, Transcript
from sts_trio.engines.hearing import Answer, Verdict
from sts_trio.engines.listener import Listener
from sts_trio.engines.whisper import WhisperEngine
from sts_trio.offload import thread_offload

from .tiny_whisper import write_whisper

Hear = Instance[AsrRequest, Transcript]

OFFLOAD = thread_offload(1)
BEFORE = " moso detil lunel dekal baral depun lusol lupu dekam"
"""A text before: a token for each of its nine words."""


def whisper(folder: Path) -> WhisperEngine:
    return WhisperEngine(folder, str(folder), "cpu", "auto", slots=2, max_batch=4)


async def hear(instance: Hear, samples: Samples, language: str = "en", **context: Any) -> Transcript:
    [answer] = await instance([AsrRequest(samples, language, **context)])
    assert isinstance(answer, Transcript), answer
    return answer


# ------------------------------------------------------------------------------------------ hearing


@pytest.mark.slow
async def test_it_writes_down_what_it_hears_and_when(model: Path, speech: Samples) -> None:
    pause = np.zeros(16_000, dtype=np.float32)
    async with whisper(model).open(OFFLOAD) as instance:
        heard = await hear(instance, np.concatenate([pause, speech[:64_000], pause]))

    assert heard.text
    assert " ".join(segment.text for segment in heard.segments) == heard.text
    times = [time for segment in heard.segments for time in (segment.start_ms, segment.end_ms)]
    assert times == sorted(times)
    assert times[0] > 700  # after the pause, but for what is left around speech
    assert times[-1] <= 5_400
    assert all(segment.start_ms < segment.end_ms and 0 < segment.confidence <= 1 for segment in heard.segments)


@pytest.mark.slow
async def test_what_it_hears_depends_on_audio_language_and_context(model: Path, speech: Samples) -> None:
    async with whisper(model).open(OFFLOAD) as instance:
        heard = [
            await hear(instance, speech[:64_000]),
            await hear(instance, speech[40_000:]),
            await hear(instance, speech[:64_000], "de"),
            await hear(instance, speech[:64_000], previous_text=BEFORE),
            await hear(instance, speech[:64_000], hints=("barin delum", "moso")),
        ]
        assert len({answer.text for answer in heard}) == len(heard)
        assert await hear(instance, speech[:64_000]) == heard[0]


@pytest.mark.slow
async def test_a_model_of_english_only_hears_english(english_model: Path, speech: Samples) -> None:
    async with whisper(english_model).open(OFFLOAD) as instance:
        english, spanish = await instance([AsrRequest(speech[40_000:], "en-US"), AsrRequest(speech, "es")])

    assert isinstance(english, Transcript)
    assert english.text
    assert isinstance(spanish, EngineFailure)
    assert spanish.code is ErrorCode.UNSUPPORTED_LANGUAGE


def sounds() -> dict[str, Samples]:
    """6 s of what is no speech."""
    random = np.random.default_rng(1)
    seconds = np.arange(96_000) / 16_000
    white = random.standard_normal(96_000)

    def note(hz: float, length: int = 96_000) -> Any:
        return sum(np.sin(2 * np.pi * hz * harmonic * seconds[:length]) / harmonic for harmonic in range(1, 7))

    scale = (262, 294, 330, 349, 392, 440, 494, 523, 392, 330, 294, 262)
    melody = np.concatenate([note(hz, 8_000) * np.exp(-4 * seconds[:8_000]) for hz in scale])
    chords = (note(262) + note(330) + note(392)) * np.exp(-3 * (seconds * 2 % 1))
    drums = white * np.exp(-50 * (seconds * 2 % 1))
    clicks = np.zeros(96_000)
    clicks[::8_000] = 1
    quiet = {
        "one sample": np.ones(1),
        "a tenth of a second": white[:1_600] * 0.1,
        "digital silence": np.zeros(96_000),
        "a quiet room": white * 0.001,
        "noise": white * 0.1,
        "hum": np.sin(2 * np.pi * 50 * seconds) * 0.3,
        "clicks": clicks,
        "offset": np.full(96_000, 0.3),
        "a melody": melody * 0.2,
        "an organ": note(220) * (1 + 0.3 * np.sin(2 * np.pi * 5 * seconds)) * 0.2,
        "a band": melody * 0.2 + chords * 0.1 + drums * 0.3,
    }
    return {name: samples.astype(np.float32) for name, samples in quiet.items()}


@pytest.mark.slow
async def test_where_nobody_speaks_the_model_is_not_asked(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with whisper(model).open(OFFLOAD) as instance:
        monkeypatch.setattr("faster_whisper.WhisperModel.encode", None)
        heard = {name: await hear(instance, samples) for name, samples in sounds().items()}

    assert heard == dict.fromkeys(heard, Transcript(""))


@pytest.mark.slow
@pytest.mark.parametrize("flaw", ["loops", "deaf"])
async def test_what_is_not_believed_is_not_said(flaw: str, speech: Samples, tmp_path: Path) -> None:
    async with whisper(write_whisper(tmp_path, **{flaw: True})).open(OFFLOAD) as instance:
        assert await hear(instance, speech[:64_000]) == Transcript("")
        assert await hear(instance, speech[:64_000], previous_text=BEFORE) == Transcript("")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the model was given so far."""
    given: list[Any] = []
    real = Listener._run

    def run(listener: Listener, features: Samples, rows: Sequence[Any]) -> Sequence[Any]:
        given.extend(rows)
        return real(listener, features, rows)

    monkeypatch.setattr(Listener, "_run", run)
    return given


@pytest.mark.slow
async def test_a_text_before_that_leads_astray_is_left_out(
    model: Path, speech: Samples, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with whisper(model).open(OFFLOAD) as instance:
        alone = await hear(instance, speech[:64_000])
        rows.clear()
        verdicts = iter([Verdict.FAILED, Verdict.BELIEVED])
        monkeypatch.setattr(hearing, "judge", lambda answer: next(verdicts))

        assert await hear(instance, speech[:64_000], previous_text=BEFORE, hints=("moso",)) == alone
    assert [len(row.prompt) for row in rows] == [1 + 1 + 8 + 3, 3]


@pytest.mark.slow
async def test_what_is_known_before_goes_into_the_prompt_as_far_as_there_is_room(
    model: Path, speech: Samples, rows: list[Any]
) -> None:
    async with whisper(model).open(OFFLOAD) as instance:
        rows.clear()
        await hear(instance, speech, hints=("barin", "delum") * 500, previous_text=BEFORE + " lupun firas " * 500)
        prompt, tokenizer = rows[0].prompt, instance._listener._tokenizer("en")  # type: ignore[attr-defined]
        start = prompt.index(tokenizer.sot)
        said_before = tokenizer.decode(list(prompt[1:start]))

    assert prompt[0] == tokenizer.sot_prev
    assert start <= 1 + 64 + 64
    assert said_before.startswith(" barin, delum, barin")
    assert said_before.rstrip().endswith("lupun firas")
    assert "moso" not in said_before  # the latest is kept
    assert prompt[start:] == tuple(tokenizer.sot_sequence)


@pytest.mark.slow
async def test_audio_of_over_half_a_minute_is_heard_in_turn(model: Path, speech: Samples, rows: list[Any]) -> None:
    async with whisper(model).open(OFFLOAD) as instance:
        rows.clear()
        heard = await hear(instance, np.tile(speech, 10)[: 60 * 16_000])

    assert len(rows) in (2, 3)
    assert all(len(row.samples) <= 30 * 16_000 for row in rows)
    assert sum(len(row.samples) for row in rows) > 50 * 16_000
    assert heard.segments[0].start_ms < 15_000
    assert heard.segments[-1].end_ms > 30_000
    starts = [segment.start_ms for segment in heard.segments]
    assert starts == sorted(starts)
    assert heard.segments[-1].end_ms <= 60_000
    assert len(rows[1].prompt) > len(rows[0].prompt)  # it knows what was said in the first


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2, 100, 160, 1_600])
async def test_speech_may_be_very_short(
    frames: int, model: Path, speech: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [(0, frames)]
    monkeypatch.setattr("sts_trio.engines.listener._pieces", lambda samples: everything)
    monkeypatch.setattr(hearing, "judge", lambda answer: Verdict.BELIEVED)
    async with whisper(model).open(OFFLOAD) as instance:
        heard = await hear(instance, speech[8_000 : 8_000 + frames])

    assert all(segment.end_ms <= frames / 16 + 1 for segment in heard.segments)


@pytest.mark.slow
async def test_no_answer_is_longer_than_speech_can_be(
    speech: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Answer] = []

    def judge(answer: Answer) -> Verdict:
        answers.append(answer)
        return Verdict.SILENCE

    monkeypatch.setattr(hearing, "judge", judge)
    async with whisper(write_whisper(tmp_path, loops=True)).open(OFFLOAD) as instance:
        answers.clear()  # of the warm-up
        for prompt in ("", BEFORE * 20):
            await hear(instance, speech[:64_000], previous_text=prompt)
            await hear(instance, np.tile(speech, 3), previous_text=prompt)

    # A word is a token; some are times.
    assert [100 < len(answer.text.split()) <= most for answer, most in zip(answers, (128, 224) * 2, strict=True)]
    assert len(answers[1].text.split()) > 128


# ------------------------------------------------------------------------------------------ failing


@pytest.mark.slow
async def test_what_is_no_audio_fails_alone(model: Path, speech: Samples) -> None:
    not_audio: tuple[Any, ...] = (
        speech.astype(np.float64),
        (speech * 32_767).astype(np.int16),
        np.stack([speech, speech]),
        speech[:0],
        np.full_like(speech, np.nan),
    )
    async with whisper(model).open(OFFLOAD) as instance:
        alone = await hear(instance, speech)
        *failures, heard = await instance([AsrRequest(samples, "en") for samples in (*not_audio, speech)])

    assert heard == alone
    assert [isinstance(failure, EngineFailure) and failure.code for failure in failures] == [ErrorCode.ASR_FAILED] * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("CUDA failed with error out of memory", ErrorCode.GPU_OOM),
        ("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED", ErrorCode.GPU_OOM),
        ("a layer has the wrong shape", ErrorCode.ASR_FAILED),
    ],
)
async def test_what_the_library_fails_is_a_failure_and_the_next_works(
    message: str, code: ErrorCode, model: Path, speech: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    async with whisper(model).open(OFFLOAD) as instance:
        alone = await hear(instance, speech)
        with monkeypatch.context() as failing:
            failing.setattr("faster_whisper.WhisperModel.encode", fail)
            failures = await instance([AsrRequest(speech, "en"), AsrRequest(speech, "de")])
        for failure in failures:
            assert isinstance(failure, EngineFailure)
            assert (failure.code, message in str(failure)) == (code, True)
            # Who keeps the failure keeps nothing that the library's frames held on to.
            assert failure.__cause__ is failure.__context__ is None

        assert await hear(instance, speech) == alone


@pytest.mark.slow
async def test_a_gpu_that_is_lost_ends_it(model: Path, speech: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA failed with error an illegal memory access was encountered")

    async with whisper(model).open(OFFLOAD) as instance:
        monkeypatch.setattr("faster_whisper.WhisperModel.encode", fail)
        with pytest.raises(EngineLost, match="illegal memory access"):
            await hear(instance, speech)


@pytest.mark.slow
async def test_a_call_stops_when_its_caller_leaves_and_the_next_is_as_ever(
    model: Path, speech: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faster_whisper

    real = faster_whisper.WhisperModel.encode
    async with whisper(model).open(OFFLOAD) as instance:
        alone = await hear(instance, speech)
        caller = trio.CancelScope()

        def encode(model: Any, features: Samples) -> object:
            encoded = real(model, features)
            trio.from_thread.run_sync(caller.cancel)
            return encoded

        with monkeypatch.context() as leaving:
            leaving.setattr("faster_whisper.WhisperModel.encode", encode)
            leaving.setattr("sts_trio.engines.listener._output", None)  # nothing is generated any more
            with caller:
                await hear(instance, np.tile(speech, 10))
        assert caller.cancelled_caught

        assert await hear(instance, speech) == alone
