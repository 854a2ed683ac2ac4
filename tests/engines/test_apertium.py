"""Apertium: what survives translation, and that its pipelines can be killed, stuck or dead at any time."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode
from sts_trio.engines.apertium import (
    MAX_PIPELINES,
    ApertiumEngine,
    as_written,
    capitalized,
    from_stream,
    read_mode,
    to_stream,
    unknown_words,
)
from sts_trio.engines.base import EngineFailure, EngineUnavailable, Instance, Translation, TranslationRequest
from sts_trio.offload import thread_offload

from .conftest import need

OFFLOAD = thread_offload(1)

ChildProcesses = Callable[[], set[int]]
Translate = Instance[TranslationRequest, Translation]


async def translate(instance: Translate, text: str, source: str = "en", target: str = "es") -> str:
    [answer] = await instance([TranslationRequest(text, source, target)])
    assert isinstance(answer, Translation), answer
    return answer.text


# ------------------------------------------------------------------------------------------ stream format


@pytest.mark.parametrize(
    ("text", "stream"),
    [
        ("Hello", "Hello.[]\n"),
        (r"a [b] {c} ^d$ e/f \g <h> @i", r"a \[b\] \{c\} \^d\$ e\/f \\g \<h\> [\@]i.[]" + "\n"),
        ("#1 *star ~", "[#]1 [*]star [~].[]\n"),
        ("don’t", "don't.[]\n"),
        ("nul\0nul", "nul nul.[]\n"),
    ],
)
def test_text_is_escaped_as_the_stream_format_wants(text: str, stream: str) -> None:
    assert to_stream(text) == stream


@given(st.text())
def test_unescaping_undoes_escaping(text: str) -> None:
    kept = text.replace("\0", " ").replace("’", "'").strip()
    while "  " in kept:
        kept = kept.replace("  ", " ")
    assert from_stream(to_stream(text)) == kept


def test_marks_on_words_are_dropped_but_not_the_characters_themselves() -> None:
    assert (
        from_stream(r"*Foo @bar \@baz #qux [*]quux [\@]home \[[#]1\].[]" + "\n") == "Foo bar baz qux *quux @home [#1]"
    )


def test_unknown_lower_case_words_are_tried_as_names() -> None:
    unknown = unknown_words("En *london *i'*m con *Smith y *qwzx.[]\n")

    assert unknown == {"london", "i", "m", "qwzx"}
    assert capitalized("in london i met qwzx smith", unknown) == "in London I met Qwzx smith"
    assert as_written("En Londres con *Qwzx *Smith.[]\n", unknown) == "En Londres con *qwzx *Smith.[]\n"


# ------------------------------------------------------------------------------------------ modes


def test_a_mode_is_read_as_commands_with_null_flush() -> None:
    mode = "lt-proc '/a b/x.bin' | apertium-tagger -g $2 x.prob | apertium-pretransfer|lt-proc $1 y.bin\n"

    assert read_mode(mode) == (
        ("lt-proc", "-z", "/a b/x.bin"),
        ("apertium-tagger", "-z", "-g", "x.prob"),
        ("apertium-pretransfer", "-z"),
        ("lt-proc", "-z", "-g", "y.bin"),
    )


class FakeInstallation:
    """Language pairs whose programs are shell scripts on the PATH."""

    def __init__(self, root: Path) -> None:
        self.modes = root / "modes"
        self.modes.mkdir()
        self.programs = root / "bin"
        self.programs.mkdir()

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def pair(self, name: str, *programs: str) -> None:
        (self.modes / f"{name}.mode").write_text(" | ".join(programs) + "\n")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeInstallation:
    installation = FakeInstallation(tmp_path)
    installation.program("copy", "exec cat")
    monkeypatch.setenv("PATH", str(installation.programs), prepend=os.pathsep)
    return installation


def test_pairs_are_found_by_either_spelling_of_a_language(fake: FakeInstallation) -> None:
    for pair in ("eng-spa", "spa-eng", "spa-eng_US", "en-gl", "oc_aran-ca"):
        fake.pair(pair, "copy")
    engine = ApertiumEngine(fake.modes)

    for source, target in (("en", "es"), ("eng", "spa"), ("EN_us", "es-MX"), ("en", "gl"), ("en-GB", "glg")):
        assert engine.supports(source, target), (source, target)
    assert engine.supports("oc", "ca")  # in the only variant there is
    for source, target in (("en", "fr"), ("gl", "en"), ("", "es"), ("en", "en")):
        assert not engine.supports(source, target), (source, target)


def test_the_variant_of_a_pair_follows_the_region(fake: FakeInstallation) -> None:
    fake.pair("spa-eng", "copy plain")
    fake.pair("spa-eng_US", "copy american")
    engine = ApertiumEngine(fake.modes)

    assert engine.commands("es", "en") == (("copy", "-z", "plain"),)
    assert engine.commands("es", "en-GB") == (("copy", "-z", "plain"),)
    assert engine.commands("es-MX", "en_us") == (("copy", "-z", "american"),)


def test_a_pair_with_a_program_that_is_not_installed_is_none(fake: FakeInstallation) -> None:
    fake.pair("eng-spa", "copy")
    fake.pair("eng-spa-tagger", "copy")  # for the authors of the pair
    fake.pair("eng-cat", "copy", "no-such-program")

    assert ApertiumEngine(fake.modes).supports("en", "es")
    assert not ApertiumEngine(fake.modes).supports("en", "ca")


def test_without_any_pair_the_packages_to_install_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="apt install apertium apertium-eng-spa"):
        ApertiumEngine(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------ pipelines


@pytest.mark.slow
async def test_a_pair_that_is_not_installed_fails_its_request_alone(fake: FakeInstallation) -> None:
    fake.pair("eng-spa", "copy", "copy")
    async with ApertiumEngine(fake.modes).open(OFFLOAD) as instance:
        answers = await instance(
            [
                TranslationRequest("one", "en", "es"),
                TranslationRequest("two", "en", "fr"),
                TranslationRequest("  \n", "en", "es"),
            ]
        )

    assert answers[0] == Translation("one")
    assert isinstance(answers[1], EngineFailure)
    assert answers[1].code is ErrorCode.UNSUPPORTED_LANGUAGE
    assert answers[2] == Translation("")


@pytest.mark.slow
async def test_only_the_pipelines_used_last_are_kept(fake: FakeInstallation, child_processes: ChildProcesses) -> None:
    targets = ("es", "ca", "gl", "eo", "fr", "it")
    for target in targets:
        fake.pair(f"en-{target}", "copy", f"copy {target}")
    async with ApertiumEngine(fake.modes).open(OFFLOAD) as instance:
        for target in targets:
            assert await translate(instance, "hello", "en", target) == "hello"
        assert len(child_processes()) == 2 * MAX_PIPELINES
        kept = child_processes()
        await translate(instance, "hello", "en", targets[-MAX_PIPELINES])  # is now the youngest
        assert child_processes() == kept
        await translate(instance, "hello", "en", targets[0])
        kept &= child_processes()
        await translate(instance, "hello", "en", targets[-MAX_PIPELINES])
        assert kept <= child_processes()
    assert child_processes() == set()


@pytest.mark.slow
async def test_a_long_text_does_not_block_itself(fake: FakeInstallation) -> None:
    fake.pair("eng-spa", "copy", "copy")
    text = "word " * 100_000  # far more than pipes hold
    async with ApertiumEngine(fake.modes).open(OFFLOAD) as instance:
        assert await translate(instance, text) == text.strip()


@pytest.mark.slow
async def test_a_pipeline_that_cannot_start_is_a_failure_for_good(
    fake: FakeInstallation, child_processes: ChildProcesses
) -> None:
    fake.program("broken", "exit 1")
    fake.pair("eng-spa", "copy", "broken", "copy")
    async with ApertiumEngine(fake.modes).open(OFFLOAD) as instance:
        [answer] = await instance([TranslationRequest("hello", "en", "es")])
        assert isinstance(answer, EngineFailure)
        assert answer.code is ErrorCode.TRANSLATION_FAILED
        assert child_processes() == set()


@pytest.mark.slow
async def test_a_pipeline_that_dies_over_a_text_may_do_better_the_next_time(
    fake: FakeInstallation, child_processes: ChildProcesses
) -> None:
    fake.program("frail", 'exec sed -uz "/hello/Q"')  # ends at this word, and answers to what is before it
    fake.pair("eng-spa", "copy", "frail", "copy")
    async with ApertiumEngine(fake.modes).open(OFFLOAD) as instance:
        [answer] = await instance([TranslationRequest("hello", "en", "es")])
        assert isinstance(answer, EngineFailure)
        assert answer.code is ErrorCode.TEMPORARY_UNAVAILABLE
        assert child_processes() == set()
        assert await translate(instance, "good-bye") == "good-bye"


@pytest.mark.slow
async def test_a_pipeline_that_never_answers_can_be_cancelled(
    fake: FakeInstallation, child_processes: ChildProcesses
) -> None:
    fake.program("stuck", "exec sleep 60")
    fake.pair("eng-spa", "copy", "stuck", "copy")
    async with ApertiumEngine(fake.modes).open(OFFLOAD) as instance:
        for text in ("hello", "word " * 100_000):  # waiting for the answer; waiting for room in the pipe
            with trio.move_on_after(0.2) as patience:
                await translate(instance, text)
            assert patience.cancelled_caught
            assert child_processes() == set()


# ------------------------------------------------------------------------------------------ the real thing


@pytest.fixture
def engine() -> ApertiumEngine:
    need(shutil.which("lt-proc"), "apt install apertium apertium-eng-spa")
    engine = ApertiumEngine()
    need(engine.supports("en", "es"), "apt install apertium-eng-spa")
    return engine


@pytest.mark.slow
async def test_it_translates(engine: ApertiumEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        assert await translate(instance, "The cat is black.") == "El gato es negro."
        assert await translate(instance, "the cat is black") == "El gato es negro"
        assert await translate(instance, "One cat. Two dogs!\nThree houses?") == "Un gato. Dos perros!\nTres casas?"
        assert await translate(instance, "El gato es negro.", "es-ES", "en-US") == "The cat is black."


@pytest.mark.slow
async def test_names_are_recognized_without_capitals(engine: ApertiumEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        assert await translate(instance, "i live in london") == "Vivo en Londres"
        assert "martes" in await translate(instance, "the president speaks on tuesday")
        assert "presidente francés" in await translate(instance, "it is the french president")


@pytest.mark.slow
async def test_unknown_words_stay_as_they_are_without_a_mark(engine: ApertiumEngine) -> None:
    async with engine.open(OFFLOAD) as instance:
        assert await translate(instance, "This is a flibbertigibbet.") == "Esto es un flibbertigibbet."


@pytest.mark.slow
async def test_special_characters_survive_and_nothing_makes_it_hang(engine: ApertiumEngine) -> None:
    special = r"[]{}^$/\<>@*#~"
    pieces = [
        *special,
        *special,
        " ",
        "\n",
        "\t",
        "\0",
        ".",
        "…",
        "\ud800",
        "é",
        "日",
        "🙂",
        "the cat ",
        "tuesday",
        "I'm ",
    ]
    choose = random.Random(1)
    texts = ["".join(choose.choices(pieces, k=choose.randint(1, 30))) for _ in range(200)]
    async with engine.open(OFFLOAD) as instance:
        with trio.fail_after(30):
            for text in texts:
                translated = await translate(instance, text)
                lost = [mark for mark in special if text.count(mark) != translated.count(mark)]
                assert not lost, (text, translated)


@pytest.mark.slow
async def test_what_was_translated_before_makes_no_difference(engine: ApertiumEngine) -> None:
    texts = ["hello", "The cat is black.", "no", "?", "i", "Mr", "and the dog", "qwzx", "(", "U.S"]
    async with engine.open(OFFLOAD) as instance:
        first = {text: await translate(instance, text) for text in texts}
        for before in texts:
            for text in texts:
                await translate(instance, before)
                assert await translate(instance, text) == first[text], (before, text)
    async with engine.open(OFFLOAD) as instance:
        assert await translate(instance, texts[0]) == first[texts[0]]


@pytest.mark.slow
async def test_a_killed_stage_is_not_noticed(engine: ApertiumEngine, child_processes: ChildProcesses) -> None:
    async with engine.open(OFFLOAD) as instance:
        await translate(instance, "The cat is black.")
        stages = sorted(child_processes())
        for position in (0, len(stages) // 2, -1):
            os.kill(sorted(child_processes())[position], signal.SIGKILL)
            assert await translate(instance, "The cat is black.") == "El gato es negro."
        assert len(child_processes()) == len(stages)
    assert child_processes() == set()


@pytest.mark.slow
async def test_a_stuck_stage_is_killed_with_its_request(
    engine: ApertiumEngine, child_processes: ChildProcesses
) -> None:
    async with engine.open(OFFLOAD) as instance:
        await translate(instance, "The cat is black.")
        stages = sorted(child_processes())
        os.kill(stages[3], signal.SIGSTOP)
        with trio.move_on_after(0.3) as patience:
            await translate(instance, "The cat is black.")
        assert patience.cancelled_caught
        assert child_processes() == set()

        assert await translate(instance, "The dog is black.") == "El perro es negro."


@pytest.mark.slow
@pytest.mark.parametrize("after_ms", [0, 5, 20, 60, 120])
async def test_a_cancelled_owner_leaves_no_process_behind(
    after_ms: int, engine: ApertiumEngine, child_processes: ChildProcesses
) -> None:
    with trio.move_on_after(after_ms / 1_000) as owner:
        async with engine.open(OFFLOAD) as instance:
            while True:
                await translate(instance, "The cat is black. " * 100)
    assert owner.cancelled_caught
    assert child_processes() == set()
