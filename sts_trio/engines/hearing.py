"""Rules around a speech recogniser that always says something: what it is given, and what of its answer is believed.

Whisper was trained on subtitles. Where it hears nothing it says what subtitles say ("Thanks for watching"), and where
it is lost it repeats itself. What it answers is therefore judged by figures: how sure the model was, whether it heard
speech at all, whether the text repeats itself, and whether anybody could have spoken it in that time. All of them
hold for every language; there is no list of phrases.

Pure: no model, no trio. Positions are sample frames.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from enum import Enum
from typing import Final

from attrs import frozen

Piece = tuple[int, int]
"""Where a stretch of speech begins and ends in the audio."""


# -------------------------------------------------------------------------------------- what is given


def windows(pieces: Sequence[Piece], longest: int) -> list[list[Piece]]:
    """Put `pieces` together, in order, so that each window holds at most `longest` frames.

    Args:
        pieces: none of them longer than a window.
    """
    filled: list[list[Piece]] = []
    room = 0
    for start, end in pieces:
        if end - start > room:
            filled.append([])
            room = longest
        filled[-1].append((start, end))
        room -= end - start
    return filled


def original_position(position: int, pieces: Sequence[Piece], *, end: bool) -> int:
    """Where in the audio something is that was heard at `position` of a window of `pieces`.

    Args:
        end: whether something ends there. Where one piece ends and the next begins, an end belongs to the first.
    """
    for piece_start, piece_end in pieces:
        length = piece_end - piece_start
        if position < length or (end and position == length):
            return piece_start + position
        position -= length
    return pieces[-1][1]


# -------------------------------------------------------------------------------------- what is answered


@frozen
class Stretch:
    """What was said between two times of a window, as tokens."""

    start: int
    end: int
    tokens: tuple[int, ...]


def stretches(tokens: Sequence[int], *, first_time: int, time_step: int, length: int) -> list[Stretch]:
    """Take an answer apart at its times. Text that takes no time, or comes after the audio, is left out.

    Args:
        first_time: the token of time 0; each token after it is `time_step` frames later.
        length: of what was heard; an answer without times covers all of it.
    """
    found = []
    start, text = 0, list[int]()
    for token in tokens:
        if token < first_time:
            text.append(token)
            continue
        time = min((token - first_time) * time_step, length)
        if text and time > start:
            found.append(Stretch(start, time, tuple(text)))
        start, text = time, []
    if text and length > start:
        found.append(Stretch(start, length, tuple(text)))
    return found


@frozen
class Answer:
    """What the model made of a window.

    Attributes:
        seconds: how long the window is, silence left out.
        mean_log_probability: of its tokens, the one that ends it included.
        no_speech_probability: that nobody speaks, as the model believes before it says anything.
    """

    text: str
    seconds: float
    mean_log_probability: float
    no_speech_probability: float


class Verdict(Enum):
    """What to do with an answer.

    `FAILED` is speech that was not understood: without the text before it as a prompt the model may do better, as most
    loops come of it.
    """

    BELIEVED = "believed"
    SILENCE = "silence"
    FAILED = "failed"


NO_SPEECH: Final = ((0.6, -1.0), (0.85, -0.3))
"""No-speech probability above which, with a mean log probability below, nobody spoke.

The first pair is OpenAI's own (whisper/transcribe.py). The second is for phrases that are said with confidence into
music and noise: published examples have 0.88 with -0.38 and 0.98 with -0.31 (faster-whisper issue 621).
"""

LEAST_LOG_PROBABILITY: Final = -1.0
"""Below it a decode has failed, as in OpenAI's transcribe.py and Radford et al. 2022, 4.5."""

MOST_COMPRESSION: Final = 2.4
"""Above it a text repeats itself, as in the same places, but counted in characters. Counted in bytes of UTF-8, two or
three a character, ordinary news has 2.5 in Hindi, 2.4 in Thai and 2.6 in Georgian; in characters 1.3 to 1.7 as in
English."""

MOST_REPEATS, MOST_REPEATED_WORDS = 4, 7
"""What anybody says the same how often: "no, no, no, no, no, no, no", and a phrase of several words four times. A
fragment is too short for compression to tell a loop: "thank you" said four times compresses to half."""

MOST_CHARACTERS_PER_S, SPARE_CHARACTERS = 30, 10
"""Faster than anybody speaks. Languages have 5 to 8 syllables a second (Pellegrino et al. 2011), of about three
letters. Catches a sentence that is said about a cough. The spare ones are for a word that is cut off and completed."""


def judge(answer: Answer) -> Verdict:
    """Whether an answer is what was said."""
    if not re.search(r"\w", answer.text):
        return Verdict.SILENCE
    if not math.isfinite(answer.mean_log_probability + answer.no_speech_probability):
        return Verdict.FAILED  # half precision has overflowed
    for no_speech, log_probability in NO_SPEECH:
        if answer.no_speech_probability > no_speech and answer.mean_log_probability < log_probability:
            return Verdict.SILENCE
    if (
        answer.mean_log_probability < LEAST_LOG_PROBABILITY
        or compression(answer.text) > MOST_COMPRESSION
        or is_loop(answer.text)
        or len(answer.text) > answer.seconds * MOST_CHARACTERS_PER_S + SPARE_CHARACTERS
    ):
        return Verdict.FAILED
    return Verdict.BELIEVED


def compression(text: str) -> float:
    """How many times smaller a text becomes when it is compressed, a byte for each character."""
    codes: dict[str, int] = {}
    data = bytes(codes.setdefault(character, len(codes) % 256) for character in text)
    return len(data) / len(zlib.compress(data))


# Thai to Tibetan, Burmese, Khmer, Kana, Han: words are not set apart by spaces, so each character counts as one.
_UNSPACED: Final = r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def is_loop(text: str) -> bool:
    """Whether some words follow themselves more often than anybody would say them."""
    words = _WORD.findall(text.lower())
    for period in range(1, len(words) // (MOST_REPEATS + 1) + 1):
        run = 0  # words in a row that are the same as those one period before
        for position in range(period, len(words)):
            run = run + 1 if words[position] == words[position - period] else 0
            repeated = run + period
            if repeated > MOST_REPEATED_WORDS and repeated >= (MOST_REPEATS + 1) * period:
                return True
    return False
