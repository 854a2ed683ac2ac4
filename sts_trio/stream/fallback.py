"""What stands in for speech: silence or the original audio (`FALLBACK_MODE`), in the stream's own format."""

from __future__ import annotations

import numpy as np
from attrs import define, field

from protocol.dubbing import StreamConfig

from ..engines.base import Samples
from ..engines.codec import EncodeRequest
from ..engines.pool import Pool
from .assets import Fragment


@define
class Fallback:
    """One stream's fallback audio, ready before it is needed: after a deadline there is no time to encode.

    Live fragments are all of one length, so their silence is encoded when the stream begins. Where the original is what
    stands in, each is encoded as soon as it was decoded: what came may differ from the slot in length, rate or kind.
    """

    stream_id: str
    config: StreamConfig
    mode: str
    encode: Pool[EncodeRequest, bytes]
    _silence: bytes = field(default=b"", init=False)
    _silence_ms: int = field(default=-1, init=False)

    async def prepare(self) -> None:
        """Encode the silence of a fragment before it is needed.

        Raises:
            EngineFailure: it cannot be encoded now; it is tried again when it is needed.
        """
        await self._silent(self.config.chunk_duration_ms)

    async def keep_original(self, fragment: Fragment, decoded: Samples) -> None:
        """Encode what came as what goes back, where that is wanted.

        Raises:
            EngineFailure: it cannot be encoded now; silence will stand in.
        """
        if self.mode == "original":
            rate_hz = fragment.data.audio.sample_rate_hz
            fragment.original = await self._encode(decoded, rate_hz, fragment.slot_ms)

    async def encoded(self, fragment: Fragment) -> bytes:
        """Audio of exactly the fragment's slot: the original where it was kept, else silence.

        Raises:
            EngineFailure: it cannot be encoded now.
        """
        return await self._silent(fragment.slot_ms) if fragment.original is None else fragment.original

    async def _silent(self, duration_ms: int) -> bytes:
        if self._silence_ms != duration_ms:
            nothing = np.zeros(0, dtype=np.float32)
            self._silence = await self._encode(nothing, self.config.sample_rate_hz, duration_ms)
            self._silence_ms = duration_ms
        return self._silence

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
