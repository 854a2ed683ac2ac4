"""Speech recognition with pocketsphinx: English only, no key, no download.

The library holds the interpreter lock for as long as it decodes, so each instance has a child process of its own, and
killing the child is how a call is cancelled. The next call starts another and loads the model again (about half a
second).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import structlog
import trio
from attrs import define, field, frozen

from protocol.errors import ErrorCode

from .base import (
    ASR_SAMPLE_RATE_HZ,
    AsrRequest,
    EngineFailure,
    EngineUnavailable,
    Instance,
    Offload,
    Samples,
    Segment,
    Transcript,
)
from .languages import language_code

if TYPE_CHECKING:
    from trio_parallel import WorkerContext

    from .pocketsphinx_child import Word

T = TypeVar("T")

log = structlog.get_logger(__name__)

SILENCE_RMS: Final = 10 ** (-55 / 20)
"""Where no 30 ms are louder than this nobody speaks. Digital silence would be decoded into a word."""

MIN_CONFIDENCE: Final = 0.2
"""Mean confidence of all words below which they are music or noise; real speech, however hard, has 0.3 and more."""

SEGMENT_PAUSE_MS: Final = 300
"""A pause as long as this ends a segment."""

CLOSE_TIMEOUT_S: Final = 5.0
"""What an idle child is given to exit before it is killed."""


@frozen
class PocketsphinxEngine:
    """`AsrEngine` on pocketsphinx and the US English model of its wheel. Hints and previous text make no difference."""

    name: str = "pocketsphinx"
    max_batch: int = 1
    gpu_memory_bytes: int = 0

    def __attrs_post_init__(self) -> None:
        for module in ("pocketsphinx", "trio_parallel"):
            if importlib.util.find_spec(module) is None:
                package = module.replace("_", "-")
                raise EngineUnavailable(
                    f"ASR_MODEL={self.name} needs the Python package {package}: pip install 'sts-trio[embedded]'"
                )

    def supports(self, language: str) -> bool:
        """English, of whatever region."""
        return language_code(language) == "en"

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[AsrRequest, Transcript]]:
        """Start a child and load the model in it; leaving the context ends the child."""
        try:
            from .pocketsphinx_child import warm
        except ImportError as error:
            raise EngineUnavailable(f"{self.name} is installed but cannot be imported: {error}") from error
        async with _child() as workers:
            instance = _Instance(workers)
            try:
                await instance.run(warm)
            except EngineFailure as failure:
                raise EngineUnavailable(f"{self.name} cannot load its model: {failure}") from failure
            yield instance


@asynccontextmanager
async def _child() -> AsyncIterator[WorkerContext]:
    """A place for one child process at a time: started when first needed, kept warm, gone at the end."""
    from trio_parallel import BrokenWorkerError, open_worker_context

    opening = open_worker_context(idle_timeout=math.inf, grace_period=CLOSE_TIMEOUT_S)
    workers = await opening.__aenter__()
    try:
        yield workers
    finally:
        try:
            await opening.__aexit__(None, None, None)
        except BrokenWorkerError as error:
            # It had died while idle, or did not exit in time and was killed. It is gone, which is what was asked for;
            # raising would hide why the context is being left.
            log.warning("asr_child_ended_badly", reason=str(error))


@define(eq=False)
class _Instance:
    _workers: WorkerContext
    # Ours alone: the library's default one would let all instances together run as many children as there are cores.
    _one_child: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))

    async def __call__(self, batch: Sequence[AsrRequest], /) -> Sequence[Transcript | EngineFailure]:
        return [await self._transcribe(request) for request in batch]

    async def _transcribe(self, request: AsrRequest) -> Transcript | EngineFailure:
        from .pocketsphinx_child import transcribe

        if _is_silent(request.samples):
            await trio.lowlevel.checkpoint()
            return Transcript("")
        try:
            return transcript(await self.run(transcribe, _pcm(request.samples)))
        except EngineFailure as failure:
            return failure

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call `function` in the child; a cancel kills the child.

        Raises:
            EngineFailure: `TEMPORARY_UNAVAILABLE`: the child died, as when memory is short; the next call has another.
                `ASR_FAILED`: what it called failed.
        """
        from trio_parallel import BrokenWorkerError

        try:
            result: T = await self._workers.run_sync(function, *args, kill_on_cancel=True, limiter=self._one_child)
        except BrokenWorkerError as error:
            raise EngineFailure(ErrorCode.TEMPORARY_UNAVAILABLE, "the speech recognition process died") from error
        # What pocketsphinx raises; what importing it in the child raises; no process could be started.
        except (RuntimeError, ImportError, OSError) as error:
            raise EngineFailure(ErrorCode.ASR_FAILED, f"speech recognition failed: {error}") from error
        return result


def transcript(words: Sequence[Word]) -> Transcript:
    """Words in the order they were spoken, as segments between pauses; nothing where they are hardly believable."""
    if not words or _mean_confidence(words) < MIN_CONFIDENCE:
        return Transcript("")
    stretches = [[words[0]]]
    for word in words[1:]:
        _, _, end_ms, _ = stretches[-1][-1]
        _, start_ms, _, _ = word
        if start_ms - end_ms < SEGMENT_PAUSE_MS:
            stretches[-1].append(word)
        else:
            stretches.append([word])
    segments = tuple(
        Segment(
            start_ms=stretch[0][1],
            end_ms=stretch[-1][2],
            text=" ".join(text for text, *_ in stretch),
            confidence=round(_mean_confidence(stretch), 3),
        )
        for stretch in stretches
    )
    return Transcript(" ".join(segment.text for segment in segments), segments)


def _mean_confidence(words: Sequence[Word]) -> float:
    return sum(confidence for *_, confidence in words) / len(words)


def _is_silent(samples: Samples) -> bool:
    if not len(samples):
        return True
    frame = min(30 * ASR_SAMPLE_RATE_HZ // 1_000, len(samples))
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    return bool(np.sqrt(np.mean(np.square(frames), axis=1)).max() < SILENCE_RMS)


def _pcm(samples: Samples) -> bytes:
    return (np.clip(samples, -1.0, 1.0) * 32_767).astype("<i2").tobytes()
