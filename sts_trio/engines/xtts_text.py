"""What XTTS is given to say: text it can read, in pieces that it can hold.

The model was trained on single sentences. It refuses more than about 400 tokens, and speaks badly beyond a number of
characters that depends on the language. So a text that is too long is cut: at the ends of sentences where that is
enough, else between clauses, else between words. Neighbours that fit together stay together: one piece is one
performance, with one melody.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

from attrs import evolve, frozen

SENTENCE_PAUSE_MS: Final = 250
CLAUSE_PAUSE_MS: Final = 100

LONGEST_NUMBER: Final = 12
"""Digits that are read as a number; a longer row is a serial or card number, and read digit by digit."""

_CLOSING: Final = r"""["'”’“»«)\]」』]*"""
_WIDE: Final = r"(?=[⺀-鿿가-힯])"  # scripts that put no space between sentences

_SENTENCE: Final = re.compile(
    # A full stop after fewer than three letters may be that of an abbreviation, an initial or an ordinal.
    rf"(?:(?<=[^\W\d_]{{3}})\.|[!?؟।]|\.\.){_CLOSING}\s+|[!?]{_CLOSING}{_WIDE}|[。।]{_CLOSING}\s*"
)
_CLAUSE: Final = re.compile(rf"[.,;:،؛]{_CLOSING}\s+|\s[-–—]+\s+|[、]\s*|[,;:]{_WIDE}")
_WORD: Final = re.compile(r"\s+")
_BORDERS: Final = ((_SENTENCE, SENTENCE_PAUSE_MS), (_CLAUSE, CLAUSE_PAUSE_MS), (_WORD, 0))

_GROUPED: Final = re.compile(r"\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)")
"""Thousands with a space that may not break, which is a space like any other after NFKC."""

_APART_FROM_CURRENCY: Final = re.compile(r"(\d) ([€$£])(?!\d)")

_ORDINAL_STOP: Final = frozenset({"cs", "de", "hu", "tr"})
"""Where the library takes a number with a full stop for an ordinal."""

_NO_ORDINAL: Final = re.compile(rf"(?<=\d\d\d)\.(?=\s)|(?<=\d)\.(?={_CLOSING}$)")
"""A year, or the end of the text."""

_CZECH_ORDINAL: Final = re.compile(r"(?<=\d)\.(?=\s)")
"""The library fails at them, for num2words has none in Czech; they are read as numbers."""

_HINDI_DIGITS: Final = ("शून्य", "एक", "दो", "तीन", "चार", "पाँच", "छह", "सात", "आठ", "नौ")
"""num2words has no Hindi at all: digits are read one by one, which is understood."""

_BETWEEN_DIGITS: Final = re.compile(r"(?<=\d)(?=[^\W_])")
_LONG_NUMBER: Final = re.compile(rf"\d{{{LONGEST_NUMBER + 1},}}")
_UNSPOKEN: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
_VARIATION_SELECTORS: Final = range(0xFE00, 0xFE10)


@frozen
class Piece:
    """What is spoken at once, and the pause after it where another follows."""

    text: str
    pause_ms: int = 0


def speakable(text: str, language: str) -> str:
    """`text` without what nobody can say (emoji, control characters), its numbers as the library understands them.

    Compatibility forms become what they stand for (NFKC: full-width letters, ligatures), and the digits of every script
    become 0 to 9. The library makes words of them, and of ``20€``; what it cannot do with them is done here.

    Args:
        language: by its shortest code.
    """
    text = _GROUPED.sub(lambda number: re.sub(r"\s", "", number[0]), text)
    text = "".join(_spoken(character) for character in unicodedata.normalize("NFKC", text))
    text = " ".join(text.split())
    text = _LONG_NUMBER.sub(lambda digits: " ".join(digits[0]), text)
    text = _APART_FROM_CURRENCY.sub(r"\1\2", text)
    if language in _ORDINAL_STOP:
        text = _NO_ORDINAL.sub(" .", text)
    if language == "cs":
        text = _CZECH_ORDINAL.sub("", text)
    if language == "hi":
        text = re.sub(r"(?<=\d)[.,](?=\d)", " दशमलव ", text)
        text = re.sub(r"\d", lambda digit: f" {_HINDI_DIGITS[int(digit[0])]} ", text)
    return " ".join(text.split())


def digits_apart(text: str) -> str:
    """`text` with its digits to be read one by one, for numbers that the library cannot make words of."""
    return _BETWEEN_DIGITS.sub(" ", text)


def has_words(text: str) -> bool:
    """Whether there is a letter or digit in it."""
    return any(character.isalnum() for character in text)


def split_text(text: str, fits: Callable[[str], bool]) -> Sequence[Piece]:
    """Pieces of `text` that `fits` accepts, in order; nothing of it is lost but spaces and what has no words.

    A single character is accepted whatever `fits` says, so that there is an end to it.
    """
    return [piece for piece in _split(text, fits, _BORDERS) if has_words(piece.text)]


def _split(text: str, fits: Callable[[str], bool], borders: Sequence[tuple[re.Pattern[str], int]]) -> Sequence[Piece]:
    text = text.strip()
    if len(text) <= 1 or fits(text):
        return [Piece(text)]
    if not borders:
        middle = len(text) // 2
        return [*_split(text[:middle], fits, ()), *_split(text[middle:], fits, ())]
    (border, pause_ms), *finer = borders
    ends = [match.end() for match in border.finditer(text, 0, len(text) - 1)] + [len(text)]
    pieces: list[Piece] = []
    start = 0
    while start < len(text):
        further = [end for end in ends if end > start]
        end = further[0]
        for candidate in further[1:]:
            if not fits(text[start:candidate].strip()):
                break
            end = candidate
        *before, last = _split(text[start:end], fits, finer)
        pieces += [*before, evolve(last, pause_ms=pause_ms)]
        start = end
    return pieces


def _spoken(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    category = unicodedata.category(character)
    if character.isspace():
        return " "
    # Symbols below U+2000 (°, ©) are words to the library or harmless; above there are emoji and dingbats.
    if category in _UNSPOKEN or (category in ("So", "Sk") and ord(character) >= 0x2000):
        return " " if category in ("So", "Zl", "Zp") else ""
    return "" if ord(character) in _VARIATION_SELECTORS else character
