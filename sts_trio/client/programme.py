"""A whole programme through a worker: its slots out as fragments, dubbed fragments back into its slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import structlog
import trio
from attrs import define, evolve

from protocol.dubbing import Audio, FragmentError, FragmentProcessed
from protocol.errors import ErrorCode, Stage

from ..audio import AudioError, decode, encode, fit, frame_count
from ..offload import Offload
from .connection import DubbingError, first_failure
from .cut import Slot
from .media import Media, Pcm, scratch
from .worker import Worker

log = structlog.get_logger(__name__)


@define
class Dub:
    """A dubbed programme.

    Attributes:
        samples: exactly as many as the source has; silence where a fragment failed and brought no fallback.
        results: one for each slot, in order.
    """

    samples: Pcm
    results: list[FragmentProcessed]


async def dub_programme(
    worker: Worker,
    media: Media,
    slots: Sequence[Slot],
    *,
    format: str,
    offload: Offload,
    on_result: Callable[[FragmentProcessed], None] = lambda result: None,
) -> Dub:
    """Have every slot of `media` dubbed.

    Args:
        worker: one that has sent nothing yet.
        slots: where it is cut; together they are all of it.
        format: what fragments travel as: ``pcm_s16le``, ``wav`` or ``m4a``.
        offload: runs the encoding and decoding of fragments.
        on_result: told of each result as it comes.

    Raises:
        DubbingError: the stream ended before the programme did.
    """
    dubbed = scratch(*media.samples.shape)
    results: dict[int, FragmentProcessed] = {}

    async def send() -> None:
        for slot in slots:
            await worker.send(await offload(_fragment, media, slot, format))
        worker.end()

    failure: DubbingError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for result in worker:
                number = result.sequence_number
                results[number] = await offload(_lay, result, dubbed[slots[number].frames(media.rate_hz)])
                on_result(results[number])
    except* DubbingError as group:  # both tasks learn of the same end
        failure = first_failure(group)
    if failure is not None:
        raise failure
    return Dub(dubbed, [results[number] for number in sorted(results)])


def _fragment(media: Media, slot: Slot, format: str) -> Audio:
    """A slot's audio, exactly as long as its duration says; what a last slot has too little is silence."""
    frames = slot.frames(media.rate_hz)
    length = frame_count(slot.duration_ms, media.rate_hz)
    samples = media.samples[frames.start : frames.start + length].astype(np.float32) / np.float32(2**15)
    data = encode(fit(samples, length), media.rate_hz, format)
    return Audio(format, media.rate_hz, media.samples.shape[1], slot.duration_ms, data)


def _lay(result: FragmentProcessed, place: Pcm) -> FragmentProcessed:
    """Put a result's audio in its place; the result, failed if the audio cannot be played."""
    audio = result.dubbed_audio
    if audio is None:
        return result
    try:
        samples = decode(audio)
    except AudioError as error:
        log.warning("unplayable_result", sequence_number=result.sequence_number, reason=error.reason)
        unplayable = FragmentError(
            ErrorCode.INVALID_AUDIO_FORMAT, f"the dubbed audio: {error.reason}", Stage.ENCODE, retryable=False
        )
        return evolve(result, status="failed", dubbed_audio=None, error=unplayable)
    place[:] = np.rint(fit(samples, len(place), fade_frames=0) * 2**15).clip(-(2**15), 2**15 - 1)
    return evolve(result, dubbed_audio=None)  # it is laid: a programme's worth of encoded audio need not be kept
