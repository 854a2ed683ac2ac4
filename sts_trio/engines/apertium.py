"""Translation with Apertium: rules and dictionaries, no key, no download.

A language pair is a pipeline of programs, described by one line of shell in a *mode* file. Starting it takes hundreds
of milliseconds, a sentence a few, so an instance keeps the pipelines it has started. Between requests they are kept in
step by the null flush: every program answers a NUL with all it has and the NUL (https://wiki.apertium.org/wiki/
NUL_flush). Whatever ends a request early leaves bytes of it in the pipes, so its pipeline is killed, never reused.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

import trio
from attrs import define, field, frozen

from protocol.errors import ErrorCode

from .base import EngineFailure, EngineUnavailable, Instance, Offload, Translation, TranslationRequest
from .languages import language_code, subtags

MODES: Final = Path("/usr/share/apertium/modes")
"""Where Debian's language pairs put their mode files."""

MAX_PIPELINES: Final = 4
"""Pairs that one instance keeps started: each is a dozen processes and some 100 MB."""

KILL_TIMEOUT_S: Final = 5.0

_TRANSLATES: Final = re.compile(r"[a-z]{2,3}(_\w+)?-[a-z]{2,3}(_\w+)?")
"""Other modes stop half-way, for the authors of a pair (``eng-spa-tagger``), or convert scripts (``Cyrl-Latn``)."""

Commands: TypeAlias = tuple[tuple[str, ...], ...]
"""The programs of a pipeline with their arguments, in order."""

Variant: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""The subtags of source and target that a mode is made for: ``((), ("us",))`` of ``spa-eng_US``."""

# ---------------------------------------------------------------------------------------- engine


@frozen
class ApertiumEngine:
    """`TranslationEngine` on the language pairs that are installed. The context of a request makes no difference."""

    modes: Path = MODES
    name: str = "apertium"
    max_batch: int = 1
    _pairs: dict[tuple[str, str], dict[Variant, Commands]] = field(init=False, repr=False)

    @_pairs.default
    def _installed(self) -> dict[tuple[str, str], dict[Variant, Commands]]:
        pairs: dict[tuple[str, str], dict[Variant, Commands]] = {}
        for path in sorted(self.modes.glob("*.mode")):
            if not _TRANSLATES.fullmatch(path.stem):
                continue
            source, _, target = path.stem.partition("-")
            try:
                commands = read_mode(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise EngineUnavailable(
                    f"{path} cannot be read ({error}): apt install --reinstall its package"
                ) from error
            if all(shutil.which(program) for program, *_ in commands):
                variants = pairs.setdefault((language_code(source), language_code(target)), {})
                variants[subtags(source), subtags(target)] = commands
        if not pairs:
            raise EngineUnavailable(
                f"TRANSLATION_PROVIDER={self.name} finds no language pair in {self.modes}: "
                "apt install apertium apertium-eng-spa (or another pair)"
            )
        return pairs

    def supports(self, source: str, target: str) -> bool:
        """Whether a pair is installed for the two languages, of whatever region."""
        return (language_code(source), language_code(target)) in self._pairs

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[TranslationRequest, Translation]]:
        """An instance for every installed pair; starts the pipeline of a pair when it is first asked for."""
        instance = _Instance(self)
        try:
            yield instance
        finally:
            await instance.aclose()

    def commands(self, source: str, target: str) -> Commands | None:
        """The mode that suits two tags best: ``spa-eng_US`` from ``es`` to ``en-US``, ``spa-eng`` to ``en-GB``."""
        variants = self._pairs.get((language_code(source), language_code(target)))
        if variants is None:
            return None
        wanted = {*subtags(source), *subtags(target)}
        best = max(variants, key=lambda variant: (wanted.issuperset(sum(variant, ())), len(sum(variant, ()))))
        return variants[best]


def read_mode(line: str) -> Commands:
    """The commands of a mode file, with the null flush on in every program.

    Unknown words are left marked (``$1`` is ``-g``): the marks say which words to try as names.
    """
    stages = (shlex.split(stage) for stage in line.strip().split("|"))
    return tuple(
        (program, "-z", *("-g" if argument == "$1" else argument for argument in arguments if argument != "$2"))
        for program, *arguments in stages
    )


# ---------------------------------------------------------------------------------------- instance


@define(eq=False)
class _Instance:
    _engine: ApertiumEngine
    _pipelines: dict[Commands, _Pipeline] = field(factory=dict)
    """Least recently used first."""

    async def __call__(self, batch: Sequence[TranslationRequest], /) -> Sequence[Translation | EngineFailure]:
        return [await self._answer(request) for request in batch]

    async def aclose(self) -> None:
        for commands in list(self._pipelines):
            await self._drop(commands)

    async def _answer(self, request: TranslationRequest) -> Translation | EngineFailure:
        await trio.lowlevel.checkpoint()
        commands = self._engine.commands(request.source_language, request.target_language)
        if commands is None:
            pair = f"{request.source_language}-{request.target_language}"
            return EngineFailure(ErrorCode.UNSUPPORTED_LANGUAGE, f"{self._engine.name} has no pair {pair}")
        if not request.text.strip():
            return Translation("")
        try:
            try:
                return Translation(await self._translate(commands, request.text))
            except PipelineDied:  # perhaps long ago: once more with a new one
                return Translation(await self._translate(commands, request.text))
        except (NotStarted, OSError) as error:
            return EngineFailure(ErrorCode.TRANSLATION_FAILED, f"translation failed: {error}")
        except PipelineDied as error:  # as when memory is short; the next request has another
            return EngineFailure(ErrorCode.TEMPORARY_UNAVAILABLE, f"translation failed: {error}")

    async def _translate(self, commands: Commands, text: str) -> str:
        try:
            pipeline = await self._pipeline(commands)
            translated = await pipeline.flush(to_stream(text))
            names = unknown_words(translated)
            if names:
                translated = as_written(await pipeline.flush(to_stream(capitalized(text, names))), names)
        except BaseException:  # cancelled ones as well
            await self._drop(commands)
            raise
        return from_stream(translated)

    async def _pipeline(self, commands: Commands) -> _Pipeline:
        pipeline = self._pipelines.pop(commands, None)
        if pipeline is None:
            while len(self._pipelines) >= MAX_PIPELINES:
                await self._drop(next(iter(self._pipelines)))
            pipeline = await _Pipeline.start(commands)
        self._pipelines[commands] = pipeline
        return pipeline

    async def _drop(self, commands: Commands) -> None:
        pipeline = self._pipelines.pop(commands, None)
        if pipeline is not None:
            await pipeline.kill()


class PipelineDied(Exception):
    """A program of a pipeline has ended, and the pipeline with it."""


class NotStarted(PipelineDied):
    """It did so before it had anything to translate."""


@define(eq=False)
class _Pipeline:
    """The running programs of one pair. Each leads a session of its own, so that Ctrl-C does not reach it."""

    _processes: list[trio.Process] = field(factory=list)

    @classmethod
    async def start(cls, commands: Commands) -> _Pipeline:
        """
        Raises:
            OSError: a program cannot be started.
            NotStarted: it ended at once.
        """
        pipeline = cls()
        try:
            await pipeline._spawn(commands)
            # A pipeline remembers whether a sentence has just ended. Ending one now makes the first request like all.
            await pipeline.flush(to_stream(""))
        except BaseException as error:
            await pipeline.kill()
            if isinstance(error, PipelineDied):
                raise NotStarted("a program of the pipeline ends as soon as it is started") from error
            raise
        return pipeline

    async def _spawn(self, commands: Commands) -> None:
        with ExitStack() as our_ends:
            stdin: int = subprocess.PIPE
            for number, command in enumerate(commands, 1):
                after, stdout = -1, subprocess.PIPE
                if number < len(commands):
                    after, stdout = os.pipe()
                    our_ends.callback(os.close, after)
                    our_ends.callback(os.close, stdout)
                process = await trio.lowlevel.open_process(
                    command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, start_new_session=True
                )
                self._processes.append(process)
                stdin = after

    async def flush(self, stream: str) -> str:
        """Pass one request through all programs.

        Raises:
            PipelineDied: a program has ended.
        """
        stdout = self._processes[-1].stdout
        assert stdout is not None
        answer = bytearray()
        async with trio.open_nursery() as nursery:
            # At the same time: a long text fills the pipes, and the programs answer before they have read it all.
            nursery.start_soon(self._send, stream.encode(errors="replace") + b"\0")
            while not answer.endswith(b"\0"):
                received = await stdout.receive_some()
                if not received:
                    break
                answer += received
            nursery.cancel_scope.cancel()
        # Programs that lose the one before them end what they have with a NUL of their own.
        if answer.count(b"\0") != 1 or not answer.endswith(END_OF_TEXT.encode() + b"\0"):
            raise PipelineDied("a program of the pipeline ended unexpectedly")
        return answer[:-1].decode(errors="replace")

    async def _send(self, data: bytes) -> None:
        stdin = self._processes[0].stdin
        assert stdin is not None
        with suppress(trio.BrokenResourceError):  # the first program has ended; so will the last, and the reader sees
            await stdin.send_all(data)

    async def kill(self) -> None:
        """End and reap every program, also while being cancelled."""
        with trio.move_on_after(KILL_TIMEOUT_S, shield=True):
            for process in self._processes:
                process.kill()
            for process in self._processes:
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        await pipe.aclose()
                await process.wait()


# ---------------------------------------------------------------------------------------- Apertium's stream format

END_OF_TEXT: Final = "[]\n"
"""Formatting, which no program changes or moves: an answer that does not end with it is not complete."""

_SPECIAL: Final = re.compile(r"[\[\]{}^$/\\@<>]")
_LITERAL: Final = re.compile(r"(?:[*#~]|\\@)+")
_TOKEN: Final = re.compile(r"\\?@|[*#]|\[(?P<blank>(?:\\.|[^\]\\])*)\]|\\(?P<escaped>.)", re.DOTALL)
_UNKNOWN: Final = re.compile(r"\*(\w+)")


def to_stream(text: str) -> str:
    """Text as the first program wants it (https://wiki.apertium.org/wiki/Apertium_stream_format).

    What has a meaning in the stream is escaped; what would read like a mark on the way out, or be lost (``~``), is
    wrapped as formatting. A full stop ends the last sentence.
    """
    text = text.replace("\0", " ").replace("’", "'")  # of "don't": the dictionaries know only the straight one
    text = _SPECIAL.sub(r"\\\g<0>", text)
    text = _LITERAL.sub(r"[\g<0>]", text)
    return text + "." + END_OF_TEXT


def from_stream(stream: str) -> str:
    """What the last program says as plain text: the inverse of `to_stream`, without marks on words."""
    text = _TOKEN.sub(lambda token: token["escaped"] or (token["blank"] or "").replace("\\@", "@"), stream)
    text = text.removesuffix("\n").removesuffix(".")  # of `to_stream`
    return re.sub(" {2,}", " ", text).strip()


def unknown_words(stream: str) -> frozenset[str]:
    """Lower-case words that no dictionary has: perhaps names, which speech recognition does not capitalise."""
    return frozenset(word for word in _UNKNOWN.findall(stream) if word.islower())


def capitalized(text: str, words: frozenset[str]) -> str:
    """`text` with each of `words` as a name: "on tuesday i'm in london" as "on Tuesday I'm in London"."""
    return re.sub(r"\w+", lambda word: word[0].capitalize() if word[0] in words else word[0], text)


def as_written(stream: str, words: frozenset[str]) -> str:
    """A stream in which those of `words` that stayed unknown are in lower case again."""
    return _UNKNOWN.sub(lambda word: word[0].lower() if word[1].lower() in words else word[0], stream)
