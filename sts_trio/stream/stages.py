"""What each stage does to a fragment: decode, ASR, translation, TTS with duration matching, encode.

A stage is a coroutine over one `Fragment`. It calls engines through their pools and leaves what it made in the
fragment. What goes wrong it raises as `EngineFailure`; deadlines, order and failed fragments are the pipeline's.
"""

from __future__ import annotations

from contextlib import suppress

from attrs import define, evolve, field

from protocol.dubbing import Audio, StreamConfig
from protocol.errors import ErrorCode

from ..audio import trim_silence_end
from ..engines.base import (
    AsrRequest,
    EngineFailure,
    Samples,
    Speech,
    SpeechRequest,
    Take,
    Transcript,
    Translation,
    TranslationRequest,
    well_formed,
)
from ..engines.codec import DecodeRequest, StretchRequest
from ..engines.suite import EngineSuite
from .assets import AssetStatus, AudioAsset, AudioSpan, Fragment, TextAsset, TranscriptAsset
from .duration import SlotFitter, Verdict
from .fallback import Fallback, encode_request

MAX_CONTEXT_CHARACTERS = 500
"""Of what a stream said before, as much as helps a model and no more."""


@define
class Stages:
    """The stages of one stream, with the state that passes from one fragment to the next.

    `transcribe` is called for one fragment at a time, so the text before a fragment is what was said before it.
    """

    stream_id: str
    config: StreamConfig
    engines: EngineSuite
    fallback: Fallback
    fitter: SlotFitter = field(factory=SlotFitter)
    _last_said: tuple[int, str] = field(default=(-1, ""), init=False)
    """The number of the fragment that was understood last, and what it said."""

    async def decode(self, fragment: Fragment) -> None:
        """The sent audio to samples, at its own rate and at ASR's."""
        decoded = await self.engines.decode.submit(DecodeRequest(fragment.data.audio), stream=self.stream_id)
        with suppress(EngineFailure):  # it is not the fragment's own failure
            await self.fallback.keep_original(fragment, decoded.samples)
        fragment.speech = decoded.speech

    async def transcribe(self, fragment: Fragment) -> None:
        """Samples to a `TranscriptAsset`; an empty transcript where nothing is said."""
        assert fragment.speech is not None
        answer = Transcript("")
        number, said = self._last_said
        if number == fragment.number - 1:  # what was lost, failed or late leaves a hole in what is known
            fragment.context = said
        if fragment.speech.size:
            request = AsrRequest(
                samples=fragment.speech,
                language=self.config.source_language,
                hints=self.config.domain_hints or (),
                previous_text=fragment.context,
            )
            answer = await self.engines.transcribe.submit(request, stream=self.stream_id)
        transcript = well_formed(answer.text).strip()
        fragment.speech = None  # the largest thing nobody needs any more
        fragment.transcript = TranscriptAsset(
            asset_id=fragment.asset_id("transcript"),
            parent_asset_ids=(f"fragment:{fragment.id}",),
            covers=AudioSpan(fragment.id, 0, fragment.slot_ms),
            transcript=transcript,
            segments=answer.segments,
        )
        if not fragment.late:  # what a retry says was said long ago
            self._last_said = fragment.number, transcript[-MAX_CONTEXT_CHARACTERS:]

    async def translate(self, fragment: Fragment) -> None:
        """Transcript to a `TextAsset`; an empty one without asking anybody where nothing was said."""
        assert fragment.transcript is not None
        answer = Translation("")
        if fragment.transcript.transcript:
            request = TranslationRequest(
                text=fragment.transcript.transcript,
                source_language=self.config.source_language,
                target_language=self.config.target_language,
                context=fragment.context,
            )
            answer = await self.engines.translate.submit(request, stream=self.stream_id)
        fragment.text = TextAsset(
            asset_id=fragment.asset_id("translation"),
            parent_asset_ids=(fragment.transcript.asset_id,),
            source_text=fragment.transcript.transcript,
            translated_text=well_formed(answer.text).strip(),
            model=answer.model,
        )

    async def speak(self, fragment: Fragment) -> None:
        """Text to an `AudioAsset` as long as the slot allows; none where there is nothing to say.

        Raises:
            EngineFailure: `DURATION_MISMATCH_EXCEEDED`: too long even at the fastest allowed speed, which is known as
                soon as it was spoken once.
        """
        assert fragment.text is not None
        if not fragment.text.translated_text:
            return
        text, slot_ms = fragment.text.translated_text, fragment.slot_ms
        spoken, rate_hz, natural_ms = await self._speak_in(text, slot_ms)
        speed = self.fitter.remaining(_length_ms(spoken, rate_hz), slot_ms, natural_ms)
        if speed != 1.0:
            spoken = await self.engines.stretch.submit(StretchRequest(spoken, rate_hz, speed), stream=self.stream_id)
        duration_ms = _length_ms(spoken, rate_hz)
        verdict = _tolerable(self.fitter.judge(duration_ms, slot_ms), natural_ms, slot_ms)
        fragment.audio = AudioAsset(
            asset_id=fragment.asset_id("audio"),
            parent_asset_ids=(fragment.text.asset_id,),
            status=AssetStatus(verdict.status),
            samples=spoken,
            sample_rate_hz=rate_hz,
            duration_ms=round(duration_ms),
            speed_ratio=round(natural_ms / duration_ms, 3),
            variance_percent=round(verdict.variance_percent, 1),
            warning=verdict.warning,
        )

    async def encode(self, fragment: Fragment) -> None:
        """The dubbed audio in the stream's own format, exactly as long as the slot."""
        if fragment.audio is None:
            await self.fall_back(fragment)
            return
        audio = fragment.audio
        request = encode_request(self.config, audio.samples, audio.sample_rate_hz, fragment.slot_ms)
        self._deliver(fragment, await self.engines.encode.submit(request, stream=self.stream_id))

    async def fall_back(self, fragment: Fragment) -> None:
        """Silence or the original in place of speech."""
        self._deliver(fragment, await self.fallback.encoded(fragment))

    def fall_back_at_once(self, fragment: Fragment) -> None:
        """The same, as far as it is at hand."""
        if (data := self.fallback.at_hand(fragment)) is not None:
            self._deliver(fragment, data)

    async def _speak_in(self, text: str, slot_ms: int) -> tuple[Samples, int, float]:
        """Speech at the engine's best rate for a slot, its sample rate in Hz, and how long it is by nature, in ms."""
        speech = await self._synthesize(text, slot_ms, 1.0)
        natural_ms = _length_ms(speech.samples, speech.sample_rate_hz)
        plan = self.fitter.plan(natural_ms, slot_ms, self.engines.models.tts.rate_range)
        if plan.engine_rate != 1.0:
            take = speech.take
            del speech  # it can be long, and the next one be long in coming
            speech = await self._synthesize(text, slot_ms, plan.engine_rate, take)
        return speech.samples, speech.sample_rate_hz, natural_ms

    async def _synthesize(self, text: str, slot_ms: int, rate: float, take: Take | None = None) -> Speech:
        """Speech that can be made to fit; where it is too long, silence at its end is none of it."""
        request = SpeechRequest(text, self.config.target_language, self.config.voice_profile, rate, take)
        speech = await self.engines.speak.submit(request, stream=self.stream_id)
        samples, rate_hz = speech.samples, speech.sample_rate_hz
        if _length_ms(samples, rate_hz) <= slot_ms:
            _audible(samples)
            return speech
        samples = _audible(trim_silence_end(samples, rate_hz))
        length_ms = _length_ms(samples, rate_hz)
        _tolerable(self.fitter.at_best(length_ms, slot_ms), length_ms, slot_ms)
        return speech if len(samples) == len(speech.samples) else evolve(speech, samples=samples.copy())

    def _deliver(self, fragment: Fragment, data: bytes) -> None:
        fragment.dubbed = Audio(
            format=self.config.format,
            sample_rate_hz=self.config.sample_rate_hz,
            channels=self.config.channels,
            duration_ms=fragment.slot_ms,
            data=data,
            binary=fragment.data.audio.binary,  # it goes back the way it came
        )


def _audible(samples: Samples) -> Samples:
    if not samples.size:
        raise EngineFailure(ErrorCode.TTS_SYNTHESIS_FAILED, "the engine spoke nothing")
    return samples


def _tolerable(verdict: Verdict, speech_ms: float, slot_ms: int) -> Verdict:
    if verdict.status == "failed":
        raise EngineFailure(
            ErrorCode.DURATION_MISMATCH_EXCEEDED,
            f"speech of {speech_ms:.0f} ms is still {verdict.variance_percent:.0f} % too long for {slot_ms} ms "
            "at the fastest speed",
        )
    return verdict


def _length_ms(samples: Samples, sample_rate_hz: int) -> float:
    return 1000 * len(samples) / sample_rate_hz
