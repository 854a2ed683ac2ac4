"""XTTS as an engine: what it needs at start, which voices it has, and that nothing it does depends on anything else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import structlog.testing
import trio

from protocol.errors import ErrorCode
from sts_trio.engines.base import EngineFailure, EngineLost, EngineUnavailable, Speech, SpeechRequest
from sts_trio.engines.pool import Pool
from sts_trio.engines.xtts import RATE_RANGE, Synthesizer, XttsEngine
from sts_trio.engines.xtts_model import XttsModel
from sts_trio.observe.metrics import Metrics
from sts_trio.offload import thread_offload
from sts_trio.testing.engines import inline_offload

from .conftest import left_out
from .tiny_xtts import SPEAKERS, make_checkpoint, small_vocoder

left_out("tts")

pytestmark = pytest.mark.slow

OFFLOAD = thread_offload(3)

TEXT = "El ayuntamiento votó el martes."

TWO_PIECES = "El ayuntamiento votó el martes para construir un puente nuevo. " * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_vocoder():
        yield make_checkpoint(tmp_path_factory.mktemp("xtts") / "tiny")


def build(folder: Path, voices_file: Path | None = None, device: str = "cpu") -> XttsEngine:
    return XttsEngine(folder=folder, name="tiny", device=device, voices_file=voices_file)


@pytest.fixture(scope="module")
def engine(folder: Path) -> XttsEngine:
    return build(folder)


@pytest.fixture(scope="module")
def synthesizer(engine: XttsEngine) -> Synthesizer:
    """One that is loaded, for the tests that need none of their own."""
    return trio.run(inline_offload, Synthesizer.load, engine)


Speak = Callable[..., Any]


@pytest.fixture
def answer(synthesizer: Synthesizer) -> Speak:
    async def answer(
        text: str, language: str = "es", voice: str = "default", rate: float = 1.0, take: Any = None
    ) -> Speech | EngineFailure:
        return await OFFLOAD(synthesizer.answer, SpeechRequest(text, language, voice, rate, take))

    return answer


@pytest.fixture
def speak(answer: Speak) -> Speak:
    async def speak(*args: Any, **options: Any) -> Speech:
        speech = await answer(*args, **options)
        assert isinstance(speech, Speech), speech
        return speech

    return speak


@pytest.fixture
def refusal(answer: Speak) -> Speak:
    async def refusal(*args: Any, **options: Any) -> ErrorCode:
        failure = await answer(*args, **options)
        assert isinstance(failure, EngineFailure)
        return failure.code

    return refusal


def seconds(speech: Speech) -> float:
    return len(speech.samples) / speech.sample_rate_hz


# ------------------------------------------------------------------------------------------ what it needs


def test_a_missing_library_is_named_with_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "TTS.tts.models.xtts", None)

    with pytest.raises(EngineUnavailable, match=r"pip install 'sts-trio\[tts\]'"):
        build(folder)


def test_a_gpu_that_is_not_there_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(EngineUnavailable, match=r"TTS_DEVICE=cuda: torch .* sees no GPU"):
        build(folder, device="cuda")
    engine = build(folder, device="auto")
    assert engine.device == "cpu"
    assert engine.gpu_memory_bytes == 0


def test_on_a_gpu_it_says_how_much_it_takes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    engine = build(folder, device="auto")
    assert engine.device == "cuda"
    assert engine.gpu_memory_bytes > (folder / "model.pth").stat().st_size
    assert build(folder, device="cpu").gpu_memory_bytes == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[]", b'{"model": "vits"}', b'{"model": "xtts"}'])
def test_a_damaged_configuration_is_named(folder: Path, tmp_path: Path, content: bytes) -> None:
    broken = damaged(folder, tmp_path, "config.json", lambda _: content)

    with pytest.raises(EngineUnavailable, match=r"config\.json is no configuration of XTTS .*copy it again"):
        build(broken)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}']
)
def test_a_damaged_vocabulary_is_named(folder: Path, tmp_path: Path, content: bytes) -> None:
    broken = damaged(folder, tmp_path, "vocab.json", lambda _: content)

    with pytest.raises(EngineUnavailable, match=r"vocab\.json is no vocabulary of XTTS .*copy it again"):
        build(broken)


def test_damaged_speakers_are_named(folder: Path, tmp_path: Path) -> None:
    broken = damaged(folder, tmp_path, "speakers_xtts.pth", lambda content: content[: len(content) // 2])

    with pytest.raises(EngineUnavailable, match=r"speakers_xtts\.pth is damaged or of another model .*copy it again"):
        build(broken)


@pytest.mark.parametrize(
    ("latent", "shape"),
    [
        ("gpt_cond_latent", (1, 32, 32)),
        ("gpt_cond_latent", (1, 0, 64)),
        ("gpt_cond_latent", (2, 32, 64)),
        ("gpt_cond_latent", (32, 64)),
        ("speaker_embedding", (1, 256, 1)),
        ("speaker_embedding", (1, 512)),
    ],
)
def test_a_speaker_of_another_model_is_named(folder: Path, tmp_path: Path, latent: str, shape: tuple[int, ...]) -> None:
    import torch

    speakers = torch.load(folder / "speakers_xtts.pth", weights_only=True)
    speakers[SPEAKERS[1]][latent] = torch.zeros(shape)
    copy = damaged(folder, tmp_path, "speakers_xtts.pth", lambda content: content)
    torch.save(speakers, copy / "speakers_xtts.pth")

    with pytest.raises(EngineUnavailable, match=rf"speakers_xtts\.pth is damaged or of .* 'Ben High' .* {latent} of"):
        build(copy)


def test_a_speaker_that_is_no_numbers_is_named(folder: Path, tmp_path: Path) -> None:
    import torch

    speakers = torch.load(folder / "speakers_xtts.pth", weights_only=True)
    speakers[SPEAKERS[1]]["gpt_cond_latent"][0, 3, 3] = torch.nan
    copy = damaged(folder, tmp_path, "speakers_xtts.pth", lambda content: content)
    torch.save(speakers, copy / "speakers_xtts.pth")

    with pytest.raises(EngineUnavailable, match="'Ben High' has latents that are no numbers"):
        build(copy)


def test_without_speakers_and_a_file_there_are_no_voices(folder: Path, tmp_path: Path) -> None:
    copy = damaged(folder, tmp_path, "speakers_xtts.pth", lambda content: content)
    (copy / "speakers_xtts.pth").unlink()

    with pytest.raises(EngineUnavailable, match=r"has no voices: .*speakers_xtts\.pth .* VOICES_FILE is not set"):
        build(copy)


@pytest.mark.parametrize("part", [0, 1_000, 0.5, 0.999])
async def test_half_a_checkpoint_is_named(folder: Path, tmp_path: Path, part: float) -> None:
    broken = damaged(folder, tmp_path, "model.pth", lambda it: it[: int(part * len(it)) if part < 1 else int(part)])

    with pytest.raises(EngineUnavailable, match=r"model\.pth is damaged or no checkpoint .*copy it again"):
        async with build(broken).open(OFFLOAD):
            raise AssertionError("it opened")


async def test_weights_of_another_model_are_named(folder: Path, tmp_path: Path) -> None:
    broken = damaged(folder, tmp_path, "config.json", lambda it: it.replace(b'"gpt_layers": 2', b'"gpt_layers": 3'))

    with pytest.raises(EngineUnavailable, match=r"model\.pth is damaged or no checkpoint"):
        async with build(broken).open(OFFLOAD):
            raise AssertionError("it opened")


def test_a_voice_file_is_checked_against_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    for entry, message in [
        ({"language": "tlh", "speaker": SPEAKERS[0]}, "voice 'a': language: 'tlh' is none"),
        ({"language": "es", "speaker": "Nobody"}, "voice 'a': speaker: the checkpoint has no 'Nobody'; it has Ada Low"),
    ]:
        with pytest.raises(EngineUnavailable, match=message):
            build(folder, write_voices(tmp_path, {"a": entry}))


def test_the_licence_of_the_weights_is_said_once(folder: Path) -> None:
    async def open_two() -> None:
        engine = build(folder)
        async with engine.open(inline_offload), engine.open(inline_offload):
            pass

    with structlog.testing.capture_logs() as lines:
        trio.run(open_two)
    [line] = [line for line in lines if line["event"] == "tts_weights_licence"]
    assert "Coqui Public Model License" in line["licence"]


def test_nothing_is_written_to_stdout_and_nothing_heavy_is_imported_early(folder: Path) -> None:
    code = f"""if True:
        import pathlib, sys, structlog, trio
        import sts_trio.engines.registry, sts_trio.engines.xtts as xtts
        assert not {{"torch", "TTS", "torchaudio", "transformers"}} & set(sys.modules)
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        from sts_trio.engines.base import SpeechRequest
        from sts_trio.testing.engines import inline_offload
        from tests.engines.tiny_xtts import small_vocoder

        async def main():
            engine = xtts.XttsEngine(folder=pathlib.Path({str(folder)!r}), name="a", device="cpu", voices_file=None)
            async with engine.open(inline_offload) as speak:
                await speak([SpeechRequest("hola", "es", "default")])

        with small_vocoder():
            trio.run(main)
        """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == ""
    assert "bos_token_id" not in done.stderr


# ------------------------------------------------------------------------------------------ languages and voices


def test_it_speaks_what_the_checkpoint_knows_and_can_be_read_here(engine: XttsEngine) -> None:
    for tag in ("es", "es-MX", "ES_ar", "spa", "zh-CN", "zh-Hant-TW", "cmn", "pt-BR"):
        assert engine.supports(tag), tag
    for tag in ("", "xx", "ca", "sv", "default"):
        assert not engine.supports(tag), tag


@pytest.mark.parametrize("works", [True, False])
def test_japanese_is_spoken_where_its_dictionary_can_be_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Before the first fragment of a stream: it takes its time, and keeps all other languages from being read."""
    made = []

    class Cutlet:
        def __init__(self) -> None:
            if not works:
                raise RuntimeError("no dictionary")
            made.append(self)

        def romaji(self, text: str) -> str:
            return "konnichiwa"

    package = module_from_spec(ModuleSpec("cutlet", None))
    vars(package).update(Cutlet=Cutlet)
    monkeypatch.setitem(sys.modules, "cutlet", package)
    with structlog.testing.capture_logs() as lines:
        engine = build(folder)

    assert engine.supports("ja-JP") == works
    assert ("ja" in engine.voices()[0].languages) == works
    left_out = [(line["language"], line["reason"]) for line in lines if line["event"] == "tts_language_left_out"]
    assert left_out == ([] if works else [("ja", "RuntimeError: no dictionary")])
    if works:
        synthesizer = trio.run(inline_offload, Synthesizer.load, engine)
        at_start = len(made)
        speech = trio.run(inline_offload, synthesizer.answer, SpeechRequest("こんにちは", "ja", "default"))
        assert isinstance(speech, Speech), speech
        assert len(made) == at_start


def test_japanese_without_its_package_is_not_spoken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "cutlet" else object())

    assert not build(folder).supports("ja")


def test_a_checkpoint_may_know_fewer_languages(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["languages"] = ["en", "zh-cn", "xx"]
    engine = build(damaged(folder, tmp_path, "config.json", lambda _: json.dumps(config).encode()))

    assert engine.voices()[0].languages == ("en", "zh")
    assert not engine.supports("es")


def test_without_a_file_each_speaker_is_a_voice_of_each_language(engine: XttsEngine) -> None:
    assert [voice.id for voice in engine.voices()] == ["default", *SPEAKERS]
    for voice in ("default", *SPEAKERS):
        assert engine.has_voice(voice, "es-MX")
        assert engine.has_voice(voice, "de")
        assert not engine.has_voice(voice, "ca")
    assert not any(engine.has_voice(voice, "es") for voice in ("", "ada low", "../Ada Low"))


def test_with_a_file_its_voices_are_those_of_their_language(folder: Path, tmp_path: Path) -> None:
    engine = build(folder, write_voices(tmp_path, FILE))

    assert [(voice.id, voice.description) for voice in engine.voices()] == [
        ("default", "the first voice of each language"),
        ("anna", "evening news"),
        ("ben", ""),
        ("clara", ""),
    ]
    assert engine.has_voice("anna", "de-AT")
    assert engine.has_voice("clara", "es")
    assert not engine.has_voice("anna", "es")
    assert not engine.has_voice(SPEAKERS[0], "de")
    assert engine.has_voice("default", "fr")


# ------------------------------------------------------------------------------------------ speaking


async def test_speech_is_sound_of_the_right_kind(speak: Speak) -> None:
    speech = await speak(TEXT)

    assert speech.sample_rate_hz == 24_000
    assert speech.samples.dtype == np.float32
    assert speech.samples.ndim == 1
    assert 0.01 < np.abs(speech.samples).max() <= 1
    assert speech.take is not None
    assert speech.take.dtype == np.float32


async def test_the_same_text_sounds_the_same_whatever_was_before(speak: Speak) -> None:
    first = await speak(TEXT)
    await speak("Otra cosa.", voice=SPEAKERS[1])
    again = await speak(TEXT)
    named = await speak(TEXT, voice=SPEAKERS[0])

    assert np.array_equal(first.samples, again.samples)
    assert np.array_equal(first.samples, named.samples), "default is the first speaker"


async def test_voices_and_languages_sound_different(speak: Speak) -> None:
    sounds = [(await speak(TEXT, language, voice)).samples.tobytes() for language in ("es", "de") for voice in SPEAKERS]
    assert len(set(sounds)) == len(sounds)


@pytest.mark.parametrize("text", [TEXT, TWO_PIECES], ids=["one piece", "several pieces"])
async def test_a_take_is_the_same_performance_at_another_rate(
    speak: Speak, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    natural = await speak(text)
    alone = await speak(text, rate=1.2)

    def second_pass(*_: object) -> None:
        raise AssertionError("the model performed again")

    monkeypatch.setattr(type(synthesizer._model), "perform", second_pass)
    for rate in (0.85, 1.0, 1.2):
        speech = await speak(text, rate=rate, take=natural.take)
        assert seconds(speech) == pytest.approx(seconds(natural) / rate, rel=0.06)
        assert np.array_equal(speech.take, natural.take)
    assert np.array_equal((await speak(text, take=natural.take)).samples, natural.samples)
    assert np.array_equal((await speak(text, rate=1.2, take=natural.take)).samples, alone.samples)


async def test_a_rate_out_of_range_is_the_nearest_within(speak: Speak) -> None:
    natural = await speak(TEXT)
    for rate, nearest in zip((0.1, 9.0), RATE_RANGE, strict=True):
        out, at = [await speak(TEXT, rate=it, take=natural.take) for it in (rate, nearest)]
        assert np.array_equal(out.samples, at.samples)


async def test_a_take_of_another_text_is_refused(speak: Speak, refusal: Speak) -> None:
    one, several = (await speak(TEXT)).take, (await speak(TWO_PIECES)).take

    for text, take in [(TEXT, several), (TWO_PIECES, one), (TEXT, one[:, :-1]), (TEXT, one[0]), (TEXT, one[:0])]:
        assert await refusal(text, take=take) is ErrorCode.TTS_SYNTHESIS_FAILED


async def test_a_long_text_is_spoken_to_the_end(speak: Speak) -> None:
    """Beyond the model's 400 tokens and its 239 characters of Spanish, numbers that become long words included."""
    for text, pieces in [(TWO_PIECES, 2), ("1984 " * 20, 3), ("a" * 1_000, 8)]:
        take = (await speak(text)).take
        assert np.count_nonzero(~take.any(axis=1)) == pieces - 1, text


async def test_what_cannot_be_spoken_is_refused(refusal: Speak) -> None:
    for text in ("", "...", "?!", " \n", "🙂", "\0", "—«»", "καλημέρα"):
        assert await refusal(text) is ErrorCode.INVALID_TEXT, text
    assert await refusal(TEXT, language="ca") is ErrorCode.UNSUPPORTED_LANGUAGE
    assert await refusal(TEXT, voice="../../etc") is ErrorCode.INVALID_VOICE_PROFILE


async def test_a_refused_request_costs_its_neighbours_nothing(engine: XttsEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        answers = await instance([SpeechRequest(text, "es", "default") for text in ("uno", "...", "dos")])
    assert [isinstance(it, Speech) for it in answers] == [True, False, True]


async def test_voices_from_recordings_speak(folder: Path, tmp_path: Path) -> None:
    file = write_voices(tmp_path, FILE)
    async with build(folder, file).open(OFFLOAD) as instance:
        requests = [("de", "anna"), ("de", "ben"), ("de", "default"), ("es", "default"), ("fr", "default")]
        anna, ben, german, spanish, french = await instance(
            [SpeechRequest("hallo du", language, voice) for language, voice in requests]
        )

    assert isinstance(anna, Speech)
    assert isinstance(ben, Speech)
    assert isinstance(german, Speech)
    assert isinstance(spanish, Speech)
    assert isinstance(french, Speech), "no voice of its own: a speaker of the checkpoint"
    assert np.array_equal(anna.samples, german.samples), "default is the first voice of the language"
    assert not np.array_equal(anna.samples, ben.samples)


async def test_a_recording_that_has_gone_is_named(folder: Path, tmp_path: Path) -> None:
    engine = build(folder, write_voices(tmp_path, FILE))
    (tmp_path / "anna.wav").unlink()

    with pytest.raises(EngineUnavailable, match=r"voice 'anna': reference: .* does not exist"):
        async with engine.open(OFFLOAD):
            raise AssertionError("it opened")


@pytest.mark.parametrize(
    ("error", "remedy"), [("CUDA error: out of memory", "set fewer TTS_SLOTS or TTS_DEVICE=cpu"), ("something odd", "")]
)
async def test_a_voice_that_cannot_be_learnt_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, remedy: str
) -> None:
    monkeypatch.setattr(XttsModel, "learn", raising(RuntimeError(error)))
    file = write_voices(tmp_path, FILE)
    message = f"VOICES_FILE={file}: voice 'anna': reference: {tmp_path / 'anna.wav'} cannot be learnt .*{error}.*"

    with pytest.raises(EngineUnavailable, match=f"{message}{remedy}"):
        async with build(folder, file).open(OFFLOAD):
            raise AssertionError("it opened")


async def test_out_of_memory_at_the_warm_up_is_said_with_what_helps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(XttsModel, "perform", raising(RuntimeError("CUDA error: out of memory")))

    with pytest.raises(
        EngineUnavailable, match=r"warm-up failed: .*out of memory.*: set fewer TTS_SLOTS or TTS_DEVICE=cpu"
    ):
        async with build(folder).open(OFFLOAD):
            raise AssertionError("it opened")


# ------------------------------------------------------------------------------------------ what goes wrong


async def test_out_of_memory_is_said_and_the_next_call_works(
    speak: Speak, refusal: Speak, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    freed: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    first = await speak(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        patch.setattr(synthesizer._model._model.gpt.gpt.h[1], "forward", raising(error))
        assert await refusal(TEXT) is ErrorCode.GPU_OOM
    assert freed
    assert np.array_equal((await speak(TEXT)).samples, first.samples)


async def test_other_failures_are_those_of_the_request(speak: Speak, refusal: Speak, synthesizer: Synthesizer) -> None:
    first = await speak(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        error = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")
        patch.setattr(synthesizer._model._model.gpt.gpt.h[1], "forward", raising(error))
        assert await refusal(TEXT) is ErrorCode.TTS_SYNTHESIS_FAILED
    assert np.array_equal((await speak(TEXT)).samples, first.samples)


async def test_a_gpu_that_is_lost_is_no_failure_of_the_request(
    answer: Speak, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(synthesizer._model._model.gpt.gpt.h[1], "forward", raising(error))

    with pytest.raises(EngineLost, match="illegal memory access"):
        await answer(TEXT)


async def test_a_sentence_that_is_silent_has_no_pause(
    speak: Speak, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([np.full(24_000, 0.5, np.float32), np.zeros(24_000, np.float32)])
    monkeypatch.setattr(type(synthesizer._model), "sound", lambda *_: next(said))

    assert seconds(await speak(TWO_PIECES)) == 1


async def test_silence_is_no_speech(refusal: Speak, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(synthesizer._model), "sound", lambda *_: np.zeros(24_000, np.float32))

    assert await refusal(TEXT) is ErrorCode.TTS_SYNTHESIS_FAILED


# ------------------------------------------------------------------------------------------ slots


async def test_two_slots_speak_at_once_as_one_after_the_other(engine: XttsEngine) -> None:
    texts = [f"{TEXT} Cuesta {number},5 euros." for number in range(6)]
    spoken: dict[str, list[Speech]] = {text: [] for text in texts}
    async with pool_of(engine, slots=2) as pool:

        async def call(text: str) -> None:
            spoken[text].append(await pool.submit(SpeechRequest(text, "es", "default"), stream="s"))

        for text in texts:
            await call(text)
        async with trio.open_nursery() as callers:
            for text in texts:
                callers.start_soon(call, text)

    for alone, together in spoken.values():
        assert np.array_equal(alone.samples, together.samples)


async def test_a_cancel_frees_the_slot_within_a_second_and_leaves_no_trace(engine: XttsEngine, speak: Speak) -> None:
    expected = (await speak(TEXT)).samples
    async with pool_of(engine, slots=1) as pool:
        for patience_s in (0.02, 0.1, 0.3):
            with trio.move_on_after(patience_s) as patience:
                await pool.submit(SpeechRequest(TWO_PIECES * 40, "es", "default"), stream="s")
            assert patience.cancelled_caught
            cancelled_s = trio.current_time()
            speech = await pool.submit(SpeechRequest(TEXT, "es", "default"), stream="s")
            assert trio.current_time() - cancelled_s < 1
            assert np.array_equal(speech.samples, expected)


@pytest.mark.parametrize("step", ["resblocks", "transformer"])
async def test_a_cancel_is_seen_within_each_step(
    synthesizer: Synthesizer, speak: Speak, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller leaves while the vocoder, or a token of the GPT, is at work: neither comes to its end."""
    library = synthesizer._model._model
    parts = library.hifigan_decoder.waveform_decoder
    module = parts.resblocks[0] if step == "resblocks" else library.gpt.gpt.h[0]
    last = parts.conv_post
    expected = (await speak(TEXT)).samples
    reached: list[str] = []
    with trio.CancelScope() as scope:

        def leave(*_: object) -> None:
            reached.append("step")
            trio.from_thread.run_sync(scope.cancel)

        hooks = [
            module.register_forward_hook(leave),
            last.register_forward_pre_hook(lambda *_: reached.append("end")),
        ]
        try:
            await speak(TEXT)
        finally:
            for hook in hooks:
                hook.remove()
    assert scope.cancelled_caught
    assert reached == ["step"]
    assert np.array_equal((await speak(TEXT)).samples, expected)


def test_slots_share_the_cores(engine: XttsEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))

    async def open_two() -> list[int]:
        async with engine.open(inline_offload):
            one = engine.threads()
            async with engine.open(inline_offload):
                return [one, engine.threads()]

    assert trio.run(open_two) == [8, 4]
    monkeypatch.delattr("os.sched_getaffinity")  # not every system has it
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert trio.run(open_two) == [6, 3]


# ------------------------------------------------------------------------------------------ helpers

FILE = {
    "anna": {"language": "de", "reference": "anna.wav", "description": "evening news"},
    "ben": {"language": "de-AT", "speaker": SPEAKERS[1]},
    "clara": {"language": "es-MX", "speaker": SPEAKERS[0]},
}


def write_voices(folder: Path, content: Any) -> Path:
    """The file, and a recording beside it."""
    noise = np.random.default_rng(5).normal(0, 0.1, 24_000 * 2)
    soundfile.write(folder / "anna.wav", noise, 24_000)
    file = folder / "voices.json"
    file.write_text(json.dumps(content))
    return file


def damaged(folder: Path, copy: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of the checkpoint with one file changed."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    (copy / name).write_bytes(change((folder / name).read_bytes()))
    return copy


def raising(error: Exception) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


@asynccontextmanager
async def pool_of(engine: XttsEngine, slots: int) -> AsyncIterator[Pool[SpeechRequest, Speech]]:
    pool = Pool("tts", engine, slots=slots, max_waiting=100, offload=OFFLOAD, metrics=Metrics())
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        yield pool
        nursery.cancel_scope.cancel()
