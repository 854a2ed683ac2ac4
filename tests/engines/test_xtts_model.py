"""XTTS's two steps on a tiny checkpoint: what the library's own `inference` does, with chance drawn from a seed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sts_trio.engines.base import EngineFailure
from sts_trio.engines.xtts_library import LANGUAGES, Latents, load_model, read_configuration, read_speakers
from sts_trio.engines.xtts_model import CHARACTERS_PER_S, EXTRA_S, XttsModel, _Sampling
from sts_trio.engines.xtts_text import speakable
from sts_trio.offload import thread_offload

from .conftest import left_out
from .tiny_xtts import CHANNELS, SPEAKERS, STOP_CODE, make_checkpoint, small_vocoder

left_out("tts")

pytestmark = pytest.mark.slow

CODES_PER_S = 22_050 / 1_024
"""The library's: how much of the conditioning audio one code stands for."""

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_vocoder():
        yield make_checkpoint(tmp_path_factory.mktemp("xtts") / "tiny")


@pytest.fixture(scope="module")
def library_model(folder: Path) -> Any:
    """The library's own object."""
    return load_model(folder, "cpu")


@pytest.fixture(scope="module")
def model(library_model: Any) -> XttsModel:
    return XttsModel(library_model, "cpu")


@pytest.fixture(scope="module")
def voice(folder: Path) -> Latents:
    return read_speakers(folder, read_configuration(folder))[SPEAKERS[0]]


@pytest.fixture
def call() -> Call:
    """Run in a thread of trio's, as the engine does."""
    return thread_offload(1)


# ------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("language", "text", "spoken"),
    [
        ("en", "3.5 %", "three point five percent"),
        ("en", "In 1984, for $20", "in one thousand, nine hundred and eighty-four, for twenty dollars"),
        ("en", "the 1st & 2nd @ 90 °", "the first and second at ninety degree"),
        ("es", "3,5 % en 1984", "tres punto cinco por ciento en mil novecientos ochenta y cuatro"),
        ("es", "cuesta $20 o 20,15 €", "cuesta veinte dólares o veinte euros con quince céntimos"),
        ("de", "3,5 % im Jahr 1984.", "drei Komma fünf prozent im jahr eintausendneunhundertvierundachtzig ."),
        ("de", "20 € am 3. Mai", "zwanzig Euro am dritte mai"),
        ("fr", "3,5 % en 1984", "trois virgule cinq pour cent en mille neuf cent quatre-vingt-quatre"),
        ("fr", "le 1er, à $20", "le premier, à vingt dollars"),
        ("cs", "V roce 1984.", "v roce tisíc devětset osmdesát čtyři ."),
        ("hi", "1 %", "एक प्रतिशत"),
        ("zh", "2024年", "er4ling2er4si4nian2"),
    ],
)
def test_numbers_and_symbols_become_words_of_the_language(
    model: XttsModel, language: str, text: str, spoken: str
) -> None:
    assert model.read(speakable(text, language), language).spoken == spoken


NUMBERS = (
    "0", "7", "1984", "1984.", "123456789012", "9" * 40, "3.5", "3,5", "1.234,56", "1,234.56", "$20", "20 €", "£3.50",
    "1st", "3. x", "3º", "12:30", "10%", "1.5.2", "007", "1e5", "2024-05-06", "½", "x²", "१२", "１２",
)  # fmt: skip


@pytest.mark.parametrize("language", [it for it in LANGUAGES if it not in ("ja", "zh")])
def test_no_number_is_left_and_none_is_too_much(model: XttsModel, language: str) -> None:
    for number in NUMBERS:
        spoken = model.read(speakable(f"a {number} b {number}", language), language).spoken
        assert not any(map(str.isdecimal, spoken)), number


@pytest.mark.parametrize(
    ("language", "text", "spoken"),
    [
        ("cs", "0,000001 g", "nula celá nula nula nula nula nula nula jedna g"),
        ("hu", "0,000001 g", "nulla nulla nulla nulla nulla egy g"),
        ("it", "0,000001 g", "zero virgola zero zero zero zero zero uno g"),
        ("pl", "0,000001 g", "zero przecinek zero zero zero zero zero zero jeden g"),
        ("ru", "0.000001 g", "ноль целых ноль десятых ноль ноль ноль ноль один g"),
        ("pl", "0th", "zero th"),
    ],
)
def test_a_number_that_the_library_fails_over_is_read_digit_by_digit(
    model: XttsModel, language: str, text: str, spoken: str
) -> None:
    assert model.read(text, language).spoken == spoken


def test_what_is_wrong_with_no_number_is_not_hidden(model: XttsModel) -> None:
    for text in ("a", "1", "1 2"):
        with pytest.raises(NotImplementedError):
            model.read(text, "tlh")


def test_a_text_is_read_as_the_library_reads_it(model: XttsModel, library_model: Any) -> None:
    for language, text in [("en", "hello, world!"), ("fr", "déjà vu?"), ("zh", "你好"), ("ko", "안녕")]:
        assert list(model.read(text, language).tokens) == library_model.tokenizer.encode(text, language)


def test_letters_that_the_vocabulary_lacks_cannot_be_read(model: XttsModel) -> None:
    assert model.read("Καλημέρα a", "en").readable
    assert not model.read("Καλημέρα!", "en").readable


def test_numbers_are_read_by_several_threads_at_once(model: XttsModel) -> None:
    """num2words keeps the precision of a number in an object that all threads share."""
    answers: dict[str, set[str]] = {"3.5": set(), "0.123456": set()}

    def read(text: str) -> None:
        for _ in range(300):
            try:
                answers[text].add(model.read(text, "en").spoken)
            except IndexError as error:  # how it ends where two get into each other's way
                answers[text].add(str(error))

    threads = [threading.Thread(target=read, args=(text,)) for text in [*answers] * 2]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert answers == {"3.5": {"three point five"}, "0.123456": {"zero point one two three four five six"}}


# ------------------------------------------------------------------------------------------ performing


async def test_a_seed_is_a_performance(model: XttsModel, voice: Latents, call: Call) -> None:
    prompt = model.read("once upon a time", "en")

    first, _ = await call(model.perform, prompt, voice, "seed")
    again, _ = await call(model.perform, prompt, voice, "seed")
    other, _ = await call(model.perform, prompt, voice, "another seed")

    assert first.dtype == np.float32
    assert first.shape[1] == CHANNELS
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


async def test_performances_owe_nothing_to_torchs_random_numbers(model: XttsModel, voice: Latents, call: Call) -> None:
    import torch

    prompt = model.read("once upon a time", "en")
    state = torch.random.get_rng_state()
    first, _ = await call(model.perform, prompt, voice, "seed")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    again, _ = await call(model.perform, prompt, voice, "seed")
    assert np.array_equal(first, again)


async def test_the_steps_are_those_of_the_library(
    model: XttsModel, library_model: Any, voice: Latents, call: Call
) -> None:
    """The same codes make the same latents and the same sound as `Xtts.inference`."""
    prompt = model.read("once upon a time", "en")
    take, ended = await call(model.perform, prompt, voice, "seed")
    assert ended

    answer = await call(
        lambda: library_model.inference(
            "Once upon a time",
            "en",
            voice.gpt,
            voice.speaker,
            do_sample=False,
            repetition_penalty=library_model.config.repetition_penalty,
            logits_processor=[_Sampling(library_model.config, "seed")],
        )
    )

    assert np.array_equal(take, answer["gpt_latents"][0])
    assert np.array_equal(await call(model.sound, take, voice, 1.0), answer["wav"])


def test_sampling_is_sampling() -> None:
    """Over many seeds tokens come as often as temperature, top-k and top-p say."""
    import torch
    from TTS.tts.configs.xtts_config import XttsConfig

    config = XttsConfig(temperature=0.5, top_k=3, top_p=0.95)
    scores = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.08, 0.02]]))
    drawn = [int(_Sampling(config, str(seed))(None, scores).argmax()) for seed in range(3_000)]

    squares = np.array([0.16, 0.09, 0.04])  # a temperature of a half squares probabilities
    expected = squares / squares.sum()
    assert np.bincount(drawn, minlength=5)[:3] / len(drawn) == pytest.approx(expected, abs=0.03)
    assert set(drawn) == {0, 1, 2}


def test_a_chance_of_zero_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logarithm is infinite: a token that is ruled out would become no number, and the highest of all."""
    import torch
    from TTS.tts.configs.xtts_config import XttsConfig

    monkeypatch.setattr(torch.Tensor, "exponential_", lambda chances, generator: chances.zero_())
    sampling = _Sampling(XttsConfig(temperature=1.0, top_k=3, top_p=1.0), "seed")
    scores = sampling(None, torch.log(torch.tensor([[0.1, 0.2, 0.4, 0.3]])))

    assert not scores.isnan().any()
    assert scores.argmax() == 2
    assert scores[0, 1:].isfinite().all()


async def test_a_model_that_never_stops_is_stopped(
    model: XttsModel, library_model: Any, voice: Latents, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    never = library_model.gpt.mel_head.bias.detach().clone()
    never[STOP_CODE] = -1e9
    monkeypatch.setattr(library_model.gpt.mel_head, "bias", torch.nn.Parameter(never))

    take, ended = await call(model.perform, model.read("abcdefg", "en"), voice, "seed")

    assert not ended
    assert len(take) == pytest.approx((EXTRA_S + 7 / CHARACTERS_PER_S) * CODES_PER_S, abs=1)


async def test_the_rate_is_that_of_the_sound(model: XttsModel, voice: Latents, call: Call) -> None:
    take = np.random.default_rng(3).normal(size=(40, CHANNELS)).astype(np.float32)

    natural = await call(model.sound, take, voice, 1.0)
    faster = await call(model.sound, take, voice, 1.25)

    assert len(natural) / model.sample_rate_hz == pytest.approx(40 / CODES_PER_S, rel=0.02)
    assert len(faster) == pytest.approx(len(natural) / 1.25, rel=0.01)
    assert np.abs(natural).max() <= 1
    assert natural.dtype == np.float32


async def test_sound_that_is_no_numbers_is_a_failure(model: XttsModel, voice: Latents, call: Call) -> None:
    take = np.full((4, CHANNELS), np.nan, np.float32)

    with pytest.raises(EngineFailure, match="no numbers"):
        await call(model.sound, take, voice, 1.0)


def test_a_voice_is_learnt_from_a_recording(model: XttsModel, voice: Latents) -> None:
    generator = np.random.default_rng(1)
    recordings = [generator.normal(0, 0.1, 22_050 * 2).astype(np.float32) for _ in range(2)]

    one, again, other = (model.learn(recordings[index]) for index in (0, 0, 1))

    assert one.gpt.shape == voice.gpt.shape
    assert one.speaker.shape == voice.speaker.shape
    assert np.array_equal(one.gpt, again.gpt)
    assert not np.array_equal(one.speaker, other.speaker)


def test_the_published_checkpoint_is_read_and_never_written(folder: Path, tmp_path: Path) -> None:
    """It has its configuration pickled beside the weights, by names that the classes no longer have."""
    import torch
    from TTS.tts.configs.xtts_config import XttsArgs, XttsAudioConfig, XttsConfig

    weights = torch.load(folder / "model.pth", weights_only=True)["model"]
    for name in ("config.json", "vocab.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        for kind in (XttsArgs, XttsAudioConfig):
            patch.setattr(kind, "__module__", "TTS.tts.models.xtts")
        torch.save({"config": XttsConfig(), "model": weights}, tmp_path / "model.pth")
    before = (tmp_path / "model.pth").stat()

    assert load_model(tmp_path, "cpu").gpt is not None

    after = (tmp_path / "model.pth").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
