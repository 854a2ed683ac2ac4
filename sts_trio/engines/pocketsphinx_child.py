"""The part of the pocketsphinx engine that runs in a child process.

It imports pocketsphinx and nothing else, because every child pays for what it imports. One child runs one call at a
time.
"""

from __future__ import annotations

import signal
from functools import cache
from typing import Final, TypeAlias

from pocketsphinx import Decoder, Vad

SAMPLE_RATE_HZ: Final = 16_000

MAX_ACTIVE_HMMS: Final = 4_000
"""How wide the search may get per frame. It bounds the time of a decode, noise included, to about half of real time
on one core; the library's default of 30,000 does not. Narrower than this costs accuracy on real speech."""

MIN_SPEECH_S: Final = 0.15
"""Less than this within a request is a click, not a word."""

MAX_WORD_S: Final = 1.5
"""No word lasts longer: steady noise is decoded into one that fills seconds, and with full confidence."""

Word: TypeAlias = tuple[str, int, int, float]
"""Text, start and end in ms, confidence 0..1."""


@cache
def decoder() -> Decoder:
    """The decoder with the English model of the wheel, loaded once per child."""
    return Decoder(samprate=SAMPLE_RATE_HZ, loglevel="FATAL", maxhmmpf=MAX_ACTIVE_HMMS)


def warm() -> None:
    """Load what `transcribe` needs."""
    # A signal to the whole process group is for the server, which may still need us to finish what is in flight.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    decoder()


def transcribe(pcm: bytes) -> list[Word]:
    """The words in 16 kHz mono audio, as signed 16-bit samples; none where nobody speaks.

    Raises:
        RuntimeError: the decoder failed.
    """
    if not _has_speech(pcm):
        return []
    decode = decoder()
    decode.reinit_feat()  # forgets the sound of the request before, which belonged to another stream
    decode.start_utt()
    try:
        # As one whole utterance, which is normalised over itself; in pieces it would be over a guess.
        decode.process_raw(pcm, False, True)
    finally:
        decode.end_utt()
    if decode.hyp() is None:
        return []
    ms_per_frame = 1_000 // 100  # the model's frame rate, frames per second
    return [
        # A pronunciation's number follows the word: "to(3)".
        (
            segment.word.split("(", 1)[0],
            segment.start_frame * ms_per_frame,
            (segment.end_frame + 1) * ms_per_frame,
            min(max(segment.prob, 0.0), 1.0),
        )
        for segment in decode.seg()
        if segment.word[0] not in "<[+"  # <s>, <sil>, [NOISE], ++BREATH++
        and (segment.end_frame + 1 - segment.start_frame) * ms_per_frame <= 1_000 * MAX_WORD_S
    ]


def _has_speech(pcm: bytes) -> bool:
    vad = Vad(2)  # a new one each time: it adapts to what it hears
    size = vad.frame_bytes
    frames = (pcm[start : start + size] for start in range(0, len(pcm) - size + 1, size))
    speech_s: float = sum(map(vad.is_speech, frames)) * vad.frame_length
    return speech_s >= MIN_SPEECH_S
