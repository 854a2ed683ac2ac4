"""What a stream's fragments hold, in bytes (docs/limits.md, "Memory"). Pure.

A fragment is counted when it is accepted, with the most that it can come to hold until its result has left: a few
kilobytes of silence in AAC become megabytes of samples, and of PCM that goes back. So what was accepted always has
room, and what has none is refused while its worker can still do something about it.

At most `processed_at_once` fragments hold samples; the others hold what came, or what goes back.
"""

from __future__ import annotations

from heapq import nlargest
from typing import Final

import orjson
from attrs import define, field, frozen

from protocol.dubbing import FragmentData, StreamConfig

OBJECTS: Final = 32
"""What values weigh as objects, in times of their length as JSON: most (28) are small objects with one key."""

FRAGMENT_BYTES: Final = 16 * 1024
"""What a fragment weighs beside its audio and metadata: ids, texts in two languages, segments, the objects."""

SAMPLES_BYTES_PER_MS: Final = 400
"""Samples of a slot's speech, float32: 64 bytes at 16 kHz for ASR, then 24 kHz of speech that is 2.4 times too long
beside the same made to fit, which are 345. What is longer is not kept (`stages.py`)."""

KEPT_SILENCE_BYTES: Final = 256 * 1024
"""What the encoded silences of a stream may have together, beside the one used last: seventy lengths of m4a, which
takes long to encode, and hardly any of PCM, which takes no time."""

_AAC_BYTES_PER_MS: Final = 9  # of one channel: 64 kbit/s, and the tables of the container
_CONTAINER_BYTES: Final = 8 * 1024  # and what the encoder has not spread yet


def json_bytes(value: object) -> int:
    """Memory of a value that came as JSON."""
    return OBJECTS * len(orjson.dumps(value)) if value else 0


def encoded_bytes(config: StreamConfig, duration_ms: int) -> int:
    """The most that `duration_ms` of audio has in the stream's own format."""
    if config.format == "m4a":
        return _AAC_BYTES_PER_MS * config.channels * duration_ms + _CONTAINER_BYTES
    return 2 * config.channels * (duration_ms * config.sample_rate_hz // 1000 + 1) + _CONTAINER_BYTES


@frozen
class Footprint:
    """The most that one fragment can hold.

    Attributes:
        slot_ms: its length; there will be silence of it.
        resting: while it waits, for a token with what came, or for its turn with what goes back.
        working: on top of that, while it is processed.
    """

    slot_ms: int
    resting: int
    working: int


@define
class StreamMemory:
    """The account of one stream's fragments in flight.

    Args:
        budget_bytes: beyond which no further fragment is taken, unless there is no other.
        processed_at_once: how many fragments can be in process.
    """

    budget_bytes: int
    processed_at_once: int
    config: StreamConfig
    _footprints: dict[str, Footprint] = field(factory=dict, init=False)

    def held_bytes(self, silence_ms: int) -> int:
        """The most that can be held for all fragments in flight together, and of silence beside.

        Args:
            silence_ms: the length of the silence that is kept whatever is in flight (`Fallback.longest_ms`).
        """
        return self._sum(list(self._footprints.values()), silence_ms)

    def footprint(self, data: FragmentData) -> Footprint:
        came, slot_ms = len(data.audio.data), data.audio.duration_ms
        back = encoded_bytes(self.config, slot_ms)
        return Footprint(
            slot_ms,
            resting=max(came, back) + json_bytes(data.metadata) + FRAGMENT_BYTES,
            working=min(came, back) + SAMPLES_BYTES_PER_MS * slot_ms + back,  # the last may stand in for speech
        )

    def admits(self, data: FragmentData, silence_ms: int) -> bool:
        """Whether there is room for one more, beside silence as above; always where it would be the only one."""
        footprints = [*self._footprints.values(), self.footprint(data)]
        return len(footprints) == 1 or self._sum(footprints, silence_ms) <= self.budget_bytes

    def add(self, data: FragmentData) -> None:
        """A fragment was accepted."""
        self._footprints[data.fragment_id] = self.footprint(data)

    def remove(self, fragment_id: str) -> None:
        """Its result has left."""
        self._footprints.pop(fragment_id, None)

    def clear(self) -> None:
        self._footprints.clear()

    def _sum(self, footprints: list[Footprint], silence_ms: int) -> int:
        if not footprints and not silence_ms:
            return 0  # nothing has been begun
        longest_ms = max(silence_ms, *(footprint.slot_ms for footprint in footprints), 0)
        resting = sum(footprint.resting for footprint in footprints)
        working = sum(nlargest(self.processed_at_once, (footprint.working for footprint in footprints)))
        return encoded_bytes(self.config, longest_ms) + KEPT_SILENCE_BYTES + resting + working
