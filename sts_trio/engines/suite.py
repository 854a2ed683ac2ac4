"""All engines of a server: three models and the codec work around them, each behind its pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from attrs import frozen

from ..config import Settings
from ..observe.gpu import free_gpu_memory
from ..observe.metrics import Metrics
from ..offload import Offload
from . import codec
from .base import (
    AsrEngine,
    AsrRequest,
    Engine,
    Samples,
    Speech,
    SpeechRequest,
    Transcript,
    Translation,
    TranslationEngine,
    TranslationRequest,
    TtsEngine,
)
from .codec import DecodedAudio, DecodeRequest, EncodeRequest, StretchRequest
from .gpu import Demand, check_memory
from .pool import Pool, Req, Res
from .registry import build_asr, build_translation, build_tts


@frozen
class Models:
    """The three configured models. Building them checks that they can run; nothing is loaded yet."""

    asr: AsrEngine
    translation: TranslationEngine
    tts: TtsEngine

    @classmethod
    def build(cls, settings: Settings) -> Models:
        """
        Raises:
            EngineUnavailable: a model cannot run here; the message names what is missing and the remedy.
        """
        return cls(build_asr(settings), build_translation(settings), build_tts(settings))


def threads_needed(settings: Settings) -> int:
    """Threads for every blocking call there can be at once: each slot of each pool, and one for sampling."""
    return 3 * settings.codec_slots + settings.asr_slots + settings.translation_slots + settings.tts_slots + 1


def gpu_demands(asr: AsrEngine | None, tts: TtsEngine | None, *, asr_slots: int, tts_slots: int) -> Sequence[Demand]:
    """What the models, as far as there are any, take of the GPU; nothing where they run on the CPU."""
    demands = (
        Demand("ASR_SLOTS", asr_slots, asr.gpu_memory_bytes if asr else 0),
        Demand("TTS_SLOTS", tts_slots, tts.gpu_memory_bytes if tts else 0),
    )
    return [demand for demand in demands if demand.bytes_each]


@frozen(eq=False)
class EngineSuite:
    """What the stages of every stream call."""

    models: Models
    offload: Offload
    decode: Pool[DecodeRequest, DecodedAudio]
    transcribe: Pool[AsrRequest, Transcript]
    translate: Pool[TranslationRequest, Translation]
    speak: Pool[SpeechRequest, Speech]
    stretch: Pool[StretchRequest, Samples]
    encode: Pool[EncodeRequest, bytes]

    @classmethod
    def assemble(cls, models: Models, settings: Settings, offload: Offload, metrics: Metrics) -> EngineSuite:
        """Put each engine behind a pool with the configured number of slots."""
        # Each stream has at most 10 fragments in process, and each of them one request at a time, beside its silence.
        most_waiting = settings.max_concurrent_streams * 20

        def pool(label: str, engine: Engine[Req, Res], slots: int) -> Pool[Req, Res]:
            return Pool(label, engine, slots=slots, max_waiting=most_waiting, offload=offload, metrics=metrics)

        return cls(
            models=models,
            offload=offload,
            decode=pool("decode", codec.decoder(), settings.codec_slots),
            transcribe=pool("asr", models.asr, settings.asr_slots),
            translate=pool("translation", models.translation, settings.translation_slots),
            speak=pool("tts", models.tts, settings.tts_slots),
            stretch=pool("stretch", codec.stretcher(), settings.codec_slots),
            encode=pool("encode", codec.encoder(), settings.codec_slots),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load and warm every instance, report, and serve until cancelled.

        Raises:
            EngineUnavailable: an instance cannot be loaded, or a GPU is too small for all of them.
        """
        demands = gpu_demands(
            self.models.asr, self.models.tts, asr_slots=self.transcribe.slots, tts_slots=self.speak.slots
        )
        if demands:
            check_memory(demands, await self.offload(free_gpu_memory))
        async with trio.open_nursery() as pools:
            async with trio.open_nursery() as loading:
                for pool in self.pools:
                    loading.start_soon(pools.start, pool.run)
            task_status.started()

    @property
    def pools(self) -> tuple[Pool[Any, Any], ...]:
        """All of them, in the order in which a fragment meets them."""
        return (self.decode, self.transcribe, self.translate, self.speak, self.stretch, self.encode)
