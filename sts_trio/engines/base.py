"""What an engine promises, whatever model is behind it.

An *engine* is a configured model; an *instance* is one loaded copy of it. The pool opens one instance per slot and is
its only caller, one call at a time, so an instance needs no locks. A call gets a batch and answers with one result or
one typed failure per request, in the same order: a request that fails never takes its neighbours with it.

Cancellation: a call runs inside a cancel scope of the pool, whose deadline (`trio.current_effective_deadline`) is when
the last who waits for it gives up: an instance that retries knows from it how long that is worth it. An instance over a
child process lets `trio.Cancelled` through and kills the child; an instance over a blocking library calls it through
the `offload` it was opened with and lets the library stop at its next `offload.check_cancelled()`. After a cancelled
call the next one works: an instance heals itself.

Requests and results are plain values without references to streams, so a pool could stand on another machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from protocol.errors import ErrorCode

from ..audio import Samples as Samples
from ..offload import Offload as Offload

ASR_SAMPLE_RATE_HZ = 16_000
"""What every ASR engine is given: 16 kHz mono."""

Take: TypeAlias = NDArray[np.float32]
"""What an engine made of a text before it had a speed: an array that only the engine can read."""

Req = TypeVar("Req", contravariant=True)
Res = TypeVar("Res", covariant=True)


class EngineUnavailable(Exception):
    """An engine cannot be built here. Raised at start only; the message names what is missing and the remedy."""


class EngineFailure(Exception):
    """A request failed in a way the contract has a code for.

    Attributes:
        code: what the worker is told; decides whether a retry can help.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(well_formed(message))
        self.code = code


class EngineLost(Exception):
    """What an engine runs on is lost to this process, as a GPU is after a fault: only a new process can go on.

    An instance raises it; it ends the server.
    """


class Instance(Protocol[Req, Res]):
    """One loaded model, with one caller."""

    async def __call__(self, batch: Sequence[Req], /) -> Sequence[Res | EngineFailure]:
        """Answer each request of `batch` in order.

        Raises:
            EngineFailure: the whole batch failed for the same reason.
            EngineLost: no call of any instance can succeed any more.
        """
        ...


class Engine(Protocol[Req, Res]):
    """A configured model. Building one checks that it can run here (`EngineUnavailable`) and loads nothing."""

    @property
    def name(self) -> str:
        """The configured name, as metadata and logs give it."""
        ...

    @property
    def max_batch(self) -> int:
        """How many requests one call may carry."""
        ...

    def open(self, offload: Offload) -> AbstractAsyncContextManager[Instance[Req, Res]]:
        """Load and warm one instance; leaving the context releases all it holds, child processes included.

        Raises:
            EngineUnavailable: the model cannot be loaded.
        """
        ...


# -------------------------------------------------------------------------------------- speech recognition


@frozen
class AsrRequest:
    """Audio to transcribe.

    Attributes:
        samples: 16 kHz mono, shape ``(frames,)``, at least one frame.
        language: BCP 47 tag of what is spoken.
        hints: words that are likely in this programme.
        previous_text: what the stream said last; empty where unknown.
    """

    samples: Samples = field(eq=False, repr=False)
    language: str
    hints: tuple[str, ...] = ()
    previous_text: str = ""


@frozen
class Segment:
    """A stretch of speech. Times are ms from the start of the request's audio; `confidence` is 0..1."""

    start_ms: int
    end_ms: int
    text: str
    confidence: float


@frozen
class Transcript:
    """What was said; an empty `text` means that nothing was."""

    text: str
    segments: tuple[Segment, ...] = ()


class AsrEngine(Engine[AsrRequest, Transcript], Protocol):
    """Speech to text."""

    @property
    def gpu_memory_bytes(self) -> int:
        """What one instance takes of a GPU, work space included; 0 where it runs on the CPU."""
        ...

    def supports(self, language: str) -> bool:
        """Whether it transcribes this BCP 47 tag."""
        ...


# -------------------------------------------------------------------------------------- translation


@frozen
class TranslationRequest:
    """Text to translate. `context` is the source text before it, not to be translated."""

    text: str
    source_language: str
    target_language: str
    context: str = ""


@frozen
class Translation:
    """Text in the target language.

    Attributes:
        model: who translated it, where that is not the engine itself but one of several behind it.
    """

    text: str
    model: str = ""


class TranslationEngine(Engine[TranslationRequest, Translation], Protocol):
    """Text to text."""

    def supports(self, source: str, target: str) -> bool:
        """Whether it translates between these BCP 47 tags."""
        ...


# -------------------------------------------------------------------------------------- speech


@frozen
class SpeechRequest:
    """Text to speak.

    Attributes:
        voice: a voice profile that `has_voice` accepts for `language`.
        rate: wanted speed relative to the voice's natural one, within the engine's `rate_range`.
        take: the `Speech.take` of the same text in the same voice at another rate, where there is one.
    """

    text: str
    language: str
    voice: str
    rate: float = 1.0
    take: Take | None = field(default=None, eq=False, repr=False)


@frozen
class Speech:
    """Spoken text: mono, shape ``(frames,)``, without silence around it; at 24 kHz at most, or a stream can take more
    memory than it is counted with.

    Attributes:
        take: what the engine made of the text before it had a speed, where it works that way. Handed back with a
            request for another rate it saves most of the work, and the same performance is heard. It should weigh no
            more than the samples.
    """

    samples: Samples = field(eq=False, repr=False)
    sample_rate_hz: int
    take: Take | None = field(default=None, eq=False, repr=False)


@frozen
class Voice:
    """A voice profile that streams can ask for.

    Attributes:
        languages: BCP 47 tags of what it speaks.
    """

    id: str
    languages: tuple[str, ...]
    description: str = ""


class TtsEngine(Engine[SpeechRequest, Speech], Protocol):
    """Text to speech."""

    @property
    def rate_range(self) -> tuple[float, float]:
        """Slowest and fastest `SpeechRequest.rate` that still sounds natural; (1, 1) where speed cannot be asked."""
        ...

    def supports(self, language: str) -> bool:
        """Whether it speaks this BCP 47 tag."""
        ...

    @property
    def gpu_memory_bytes(self) -> int:
        """As `AsrEngine.gpu_memory_bytes`."""
        ...

    def has_voice(self, voice: str, language: str) -> bool:
        """Whether `voice` exists and speaks `language`; ``default`` exists for each language it supports."""
        ...

    def voices(self) -> Sequence[Voice]:
        """What can be asked for, ``default`` first."""
        ...


def well_formed(text: str) -> str:
    """`text` without lone surrogates, which a service may answer in JSON and nothing can write in UTF-8."""
    return text.encode("utf-8", "replace").decode()


def primary_subtag(language: str) -> str:
    """``en`` of ``en-US`` or ``en_US`` (RFC 5646, 2.2.1)."""
    return language.replace("_", "-").split("-", 1)[0].lower()
