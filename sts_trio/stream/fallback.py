"""What stands in for speech: silence or the original audio (`FALLBACK_MODE`), in the stream's own format."""

from __future__ import annotations

import numpy as np
import structlog
import trio
from attrs import define, field

from protocol.dubbing import StreamConfig

from ..engines.base import EngineFailure, Samples
from ..engines.codec import EncodeRequest
from ..engines.pool import Pool
from .assets import Fragment
from .memory import KEPT_SILENCE_BYTES

log = structlog.get_logger(__name__)


@define
class Fallback:
    """One stream's fallback audio, ready before it is needed: after a deadline there is no time to encode.

    Live fragments are all of one length, so their silence is encoded when the first begins; that of another length is
    when such a fragment begins. Where the original is what stands in, each is encoded as soon as it was decoded: what
    came may differ from the slot in length, rate or kind.
    """

    stream_id: str
    config: StreamConfig
    mode: str
    encode: Pool[EncodeRequest, bytes]
    _silences: dict[int, bytes] = field(factory=dict, init=False)  # by length in ms, the one used last is last
    _being_made: dict[int, trio.Event] = field(factory=dict, init=False)

    @property
    def longest_ms(self) -> int:
        """Of the silences that `KEPT_SILENCE_BYTES` does not bound the longest: those in the making, and the last."""
        return max([*self._being_made, *list(self._silences)[-1:]], default=0)

    async def expect(self, fragment: Fragment) -> None:
        """Encode the silence of a fragment that begins, where there is none of its length.

        Where that fails it is tried again when it is needed.
        """
        await self._try(fragment.slot_ms)

    async def keep_original(self, fragment: Fragment, decoded: Samples) -> None:
        """Encode what came as what goes back, where that is wanted.

        Raises:
            EngineFailure: it cannot be encoded now; silence will stand in.
        """
        if self.mode == "original":
            rate_hz = fragment.data.audio.sample_rate_hz
            fragment.original = await self._encode(decoded, rate_hz, fragment.slot_ms)

    def at_hand(self, fragment: Fragment) -> bytes | None:
        """As `encoded`, where nothing has to be encoded for it; else None."""
        return self._silences.get(fragment.slot_ms) if fragment.original is None else fragment.original

    async def encoded(self, fragment: Fragment) -> bytes:
        """Audio of exactly the fragment's slot: the original where it was kept, else silence.

        Raises:
            EngineFailure: it cannot be encoded now.
        """
        return await self._silent(fragment.slot_ms) if fragment.original is None else fragment.original

    async def _try(self, duration_ms: int) -> None:
        try:
            await self._silent(duration_ms)
        except EngineFailure as failure:
            log.debug("silence_not_ready", code=failure.code, reason=str(failure))
        except Exception:
            log.exception("silence_not_ready")  # a defect, which has cost no fragment anything yet

    async def _silent(self, duration_ms: int) -> bytes:
        while (data := self._silences.pop(duration_ms, None)) is None:
            being_made = self._being_made.get(duration_ms)
            if being_made is None:
                data = await self._make(duration_ms)
                break
            await being_made.wait()  # where that fails, it is tried here
        self._silences[duration_ms] = data
        while len(self._silences) > 1 and sum(map(len, self._silences.values())) - len(data) > KEPT_SILENCE_BYTES:
            del self._silences[next(iter(self._silences))]
        return data

    async def _make(self, duration_ms: int) -> bytes:
        made = self._being_made[duration_ms] = trio.Event()
        try:
            return await self._encode(np.zeros(0, dtype=np.float32), self.config.sample_rate_hz, duration_ms)
        finally:
            del self._being_made[duration_ms]
            made.set()

    async def _encode(self, samples: Samples, sample_rate_hz: int, duration_ms: int) -> bytes:
        request = encode_request(self.config, samples, sample_rate_hz, duration_ms)
        return await self.encode.submit(request, stream=self.stream_id)


def encode_request(config: StreamConfig, samples: Samples, sample_rate_hz: int, duration_ms: int) -> EncodeRequest:
    """`samples` as a slot of `duration_ms` in the stream's own format."""
    return EncodeRequest(
        samples=samples,
        sample_rate_hz=sample_rate_hz,
        format=config.format,
        output_rate_hz=config.sample_rate_hz,
        output_channels=config.channels,
        duration_ms=duration_ms,
    )
