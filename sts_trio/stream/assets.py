"""What a fragment becomes on its way, and the lineage of each part: Fragment -> Transcript -> Text -> Audio.

Assets are values: a stage makes one and never changes it. A `Fragment` is the one mutable thing, owned by one stage at
a time, since it travels through channels and is never shared.
"""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
from attrs import define, evolve, field, frozen

from protocol.dubbing import Audio, FragmentData, FragmentError
from protocol.errors import ErrorCode, Stage

from ..engines.base import Samples, Segment
from .order import Turn


class AssetStatus(StrEnum):
    """How well a stage did. A failed stage makes no asset: the fragment carries the typed error instead."""

    SUCCESS = "success"
    PARTIAL = "partial"


@frozen
class AudioSpan:
    """A stretch of a fragment's audio, in ms from its start."""

    fragment_id: str
    start_ms: int
    end_ms: int


@frozen
class TranscriptAsset:
    """What was said in `covers`; an empty transcript means that nothing was."""

    asset_id: str
    parent_asset_ids: tuple[str, ...]
    covers: AudioSpan
    transcript: str
    segments: tuple[Segment, ...]


@frozen
class TextAsset:
    """The transcript in the target language; `model` is who translated it, where several could have."""

    asset_id: str
    parent_asset_ids: tuple[str, ...]
    source_text: str
    translated_text: str
    model: str = ""


@frozen
class AudioAsset:
    """Speech fitted for its slot.

    Attributes:
        samples: mono, shape ``(frames,)``, at the engine's rate, not yet padded or trimmed to the slot.
        speed_ratio: natural length divided by the length here; 1.3 means spoken 30 % faster.
        variance_percent: by how much it exceeds the slot (0 where it fits and is padded).
        warning: ``duration_variance_high`` where the status is partial.
    """

    asset_id: str
    parent_asset_ids: tuple[str, ...]
    status: AssetStatus
    samples: Samples = field(eq=False, repr=False)
    sample_rate_hz: int
    duration_ms: int
    speed_ratio: float
    variance_percent: float
    warning: str | None = None


@define(eq=False)
class Fragment:
    """One accepted fragment on its way through the pipeline.

    Attributes:
        turn: when its result leaves.
        accepted_at, started_at, finished_at, deadline: trio's clock, in seconds. The deadline starts when processing
            does. What has not happened yet is infinite.
        token: on whose behalf one of the stream's tokens was taken.
        original: the sent audio, encoded as it would go back; only where it may stand in for speech.
        speech: the same at 16 kHz mono.
        context: what the stream said before this fragment; empty for a late one.
        dubbed: the encoded audio of the result, fallback included.
        timings_ms: time in each stage, waiting for a free instance included.
    """

    data: FragmentData
    turn: Turn
    accepted_at: float
    deadline: float = float("inf")
    started_at: float = float("inf")
    finished_at: float = float("inf")
    token: object = None
    original: bytes | None = field(default=None, repr=False)
    speech: Samples | None = field(default=None, repr=False)
    transcript: TranscriptAsset | None = None
    context: str = ""
    text: TextAsset | None = None
    audio: AudioAsset | None = None
    dubbed: Audio | None = None
    error: FragmentError | None = None
    timings_ms: dict[Stage, int] = field(factory=dict)

    @property
    def id(self) -> str:
        return self.data.fragment_id

    @property
    def number(self) -> int:
        return self.data.sequence_number

    @property
    def late(self) -> bool:
        """Whether its number has passed: its result leaves when it is ready."""
        return self.turn is not Turn.IN_ORDER

    @property
    def is_processing(self) -> bool:
        """Whether it has a token."""
        return math.isfinite(self.started_at) and math.isinf(self.finished_at)

    @property
    def stage(self) -> Stage:
        """The stage it is in, or waits for."""
        return next((stage for stage in Stage if stage not in self.timings_ms), Stage.ENCODE)

    @property
    def slot_ms(self) -> int:
        """The length its dubbed audio must have."""
        return self.data.audio.duration_ms

    @property
    def processing_time_ms(self) -> int:
        """From being accepted to being finished; waiting for earlier numbers to be emitted is not part of it."""
        return round((self.finished_at - self.accepted_at) * 1000)

    @property
    def busy_ms(self) -> int:
        """Of these, from getting its token on."""
        return round(max(0.0, self.finished_at - self.started_at) * 1000)

    @property
    def status(self) -> str:
        """``success``, ``partial`` or ``failed`` (contract, ``fragment:processed``)."""
        if self.error is not None:
            return "failed"
        return str(self.audio.status if self.audio is not None else AssetStatus.SUCCESS)

    @property
    def asset_ids(self) -> list[str]:
        """Ids of the assets made so far, oldest first."""
        return [asset.asset_id for asset in (self.transcript, self.text, self.audio) if asset is not None]

    def asset_id(self, kind: str) -> str:
        """The id of this fragment's asset of a kind, e.g. ``transcript-abc-123-42``."""
        return f"{kind}-{self.id}-{self.number}"

    def fail(self, stage: Stage, code: ErrorCode, message: str) -> None:
        """Record why no dubbed audio will come of it; the first reason stands."""
        if self.error is None:
            self.error = FragmentError(code, message, stage, code.retryable)

    def lose(self, error: FragmentError) -> None:
        """Its result cannot be told: whatever became of it, its worker is told `error`, without audio or text."""
        self.error = error
        self.transcript = self.text = self.audio = self.dubbed = None

    def shed(self) -> None:
        """Let go of all audio that its result has no need of: the result may wait long for an earlier number."""
        self.data = evolve(self.data, audio=evolve(self.data.audio, data=b""))
        self.original = self.speech = None
        if self.audio is not None:
            self.audio = evolve(self.audio, samples=np.zeros(0, np.float32))
