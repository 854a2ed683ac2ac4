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
    """One stream's fallback audio, quick enough for the moment after a deadline.

    Live fragments are all of one length and come in the format in which they go back, so that as a rule nothing must be
    encoded: the silence of that length was made when the stream began, and the original is sent back as it came.
    """

    stream_id: str
    config: StreamConfig
    mode: str
    encode: Pool[EncodeRequest, bytes]
    _silence: bytes = field(default=b"", init=False)
    _silence_ms: int = field(default=-1, init=False)

    @property
    def needs_original(self) -> bool:
        """Whether a fragment's decoded audio may be asked for later."""
        return self.mode == "original"

    async def prepare(self) -> None:
        """Encode the silence of a fragment before it is needed.

        Raises:
            EngineFailure: it cannot be encoded now; it is tried again when it is needed.
        """
        await self._silent(self.config.chunk_duration_ms)

    async def encoded(self, fragment: Fragment) -> bytes:
        """Audio of exactly the fragment's slot. The original is not there where decoding it is what failed.

        Raises:
            EngineFailure: it cannot be encoded now.
        """
        if fragment.original is None:
            return await self._silent(fragment.slot_ms)
        sent, config = fragment.data.audio, self.config
        if sent.format == "m4a" and (sent.format, sent.sample_rate_hz, sent.channels) == (
            config.format,
            config.sample_rate_hz,
            config.channels,
        ):
            return sent.data
        return await self._encode(fragment.original, sent.sample_rate_hz, fragment.slot_ms)

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
