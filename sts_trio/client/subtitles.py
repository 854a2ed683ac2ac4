"""The translation as subtitles: WebVTT (W3C, https://www.w3.org/TR/webvtt1/). Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Final

from attrs import frozen

from .cut import Slot

LINE_CHARACTERS: Final = 42
"""The longest line that reads well; broadcasters agree on 37 to 42."""

CUE_LINES: Final = 2

_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # WebVTT 4.2.2: cue text


@frozen
class Cue:
    """Text on screen from `start_ms` to `end_ms`."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def cues(fragments: Iterable[tuple[Slot, str]]) -> list[Cue]:
    """Cues for what is said in each slot; a slot without text has none.

    Text that is longer than a cue is shown in several, each for its share of the slot by number of characters.
    """
    made: list[Cue] = []
    for slot, text in fragments:
        blocks = _blocks(text)
        total = sum(len(" ".join(block)) for block in blocks)
        start, said = slot.start_ms, 0
        for block in blocks:
            said += len(" ".join(block))
            end = slot.start_ms + slot.duration_ms * said // total
            if end > start:  # a cue must not end where it starts (WebVTT 4.1)
                made.append(Cue(start, end, block))
            start = end
    return made


def webvtt(cues: Iterable[Cue]) -> str:
    """The file's text."""
    blocks = ["WEBVTT"]
    for cue in cues:
        text = "\n".join(line.translate(_ESCAPES) for line in cue.lines)
        blocks.append(f"{_time(cue.start_ms)} --> {_time(cue.end_ms)}\n{text}")
    return "\n\n".join(blocks) + "\n"


def _blocks(text: str) -> list[tuple[str, ...]]:
    """Lines of `text` in groups that fit a cue, the groups about equally long."""
    text = " ".join(text.split())
    if not text:
        return []
    lines = textwrap.wrap(text, LINE_CHARACTERS)
    if len(lines) > 1:  # the narrowest lines that need no further cue, so that no cue is left with a single word
        wanted = -(-len(lines) // CUE_LINES) * CUE_LINES
        width = -(-len(text) // wanted)
        while len(lines := textwrap.wrap(text, width)) > wanted:
            width += 1
    return [tuple(lines[at : at + CUE_LINES]) for at in range(0, len(lines), CUE_LINES)]


def _time(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}.{ms:03}"
