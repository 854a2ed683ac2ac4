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
    """One stream's fallback audio. Keeps the last silence it encoded: live fragments are all of one length."""

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

    async def encoded(self, fragment: Fragment) -> bytes:
        """Audio of exactly the fragment's slot. The original is not there where decoding it is what failed.

        Raises:
            EngineFailure: it cannot be encoded now.
        """
        if fragment.original is not None:
            return await self._encode(fragment, fragment.original, fragment.data.audio.sample_rate_hz)
        if self._silence_ms != fragment.slot_ms:
            nothing = np.zeros(0, dtype=np.float32)
            self._silence = await self._encode(fragment, nothing, self.config.sample_rate_hz)
            self._silence_ms = fragment.slot_ms
        return self._silence

    async def _encode(self, fragment: Fragment, samples: Samples, sample_rate_hz: int) -> bytes:
        request = EncodeRequest(
            samples=samples,
            sample_rate_hz=sample_rate_hz,
            format=self.config.format,
            output_rate_hz=self.config.sample_rate_hz,
            output_channels=self.config.channels,
            duration_ms=fragment.slot_ms,
        )
        return await self.encode.submit(request, stream=self.stream_id)
