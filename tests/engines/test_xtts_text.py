"""What XTTS is given to say: cleaned, and cut where a speaker would pause."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_trio.engines.xtts_text import (
    CLAUSE_PAUSE_MS,
    SENTENCE_PAUSE_MS,
    Piece,
    digits_apart,
    has_words,
    speakable,
    split_text,
)


def cut(text: str, longest: int) -> list[str]:
    return [piece.text for piece in split_text(text, lambda it: len(it) <= longest)]


def test_what_fits_is_one_piece() -> None:
    text = "Dr. Smith came at 3.15 p.m. He left! Did he?"
    assert split_text(text, lambda _: True) == [Piece(text)]


def test_a_long_text_is_cut_between_sentences_and_neighbours_stay_together() -> None:
    assert cut("It rains. We go home! Why? Nobody knows it.", 24) == ["It rains. We go home!", "Why? Nobody knows it."]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Das war am 3. Mai. Danach kam nichts mehr.", "Das war am 3. Mai."),
        ("Wir trafen Dr. Meier. Danach kam nichts mehr.", "Wir trafen Dr. Meier."),
        ("J. R. R. Tolkien schrieb. Danach kam nichts mehr.", "J. R. R. Tolkien schrieb."),
        ("Er sagte: „Nein.“ Danach kam nichts mehr.", "Er sagte: „Nein.“"),
        ("今天天气很好。我们去公园吧,大家都去。", "今天天气很好。"),
        ("今天好吗!我们去公园吧,大家都去好了。", "今天好吗!"),
        ("यह एक वाक्य है। यह दूसरा वाक्य है जो लंबा है।", "यह एक वाक्य है।"),
    ],
)
def test_a_sentence_ends_where_a_reader_says_so(text: str, first: str) -> None:
    assert cut(text, len(text) - 5)[0] == first


def test_a_long_sentence_is_cut_between_clauses_then_words_then_anywhere() -> None:
    assert cut("When it rains, we go home, and wait.", 20) == ["When it rains,", "we go home,", "and wait."]
    assert cut("one two three four", 9) == ["one two", "three", "four"]
    assert cut("abcdefgh", 3) == ["ab", "cd", "ef", "gh"]
    assert cut("3,141 is pi", 8) == ["3,141 is", "pi"]


def test_a_pause_is_as_long_as_the_border_is_strong() -> None:
    pieces = split_text("It rains, we go home. Nobody knows why it does.", lambda it: len(it) <= 16)
    assert [(piece.text, piece.pause_ms) for piece in pieces[:3]] == [
        ("It rains,", CLAUSE_PAUSE_MS),
        ("we go home.", SENTENCE_PAUSE_MS),
        ("Nobody knows why", 0),
    ]


def test_what_has_no_words_is_no_piece() -> None:
    assert cut("Yes. ... No! ?!", 5) == ["Yes.", "No!"]
    assert cut("...", 5) == []
    assert cut("", 5) == []


@given(st.text(st.sampled_from("ab1 .,!?;。、“”'\n다あ中"), max_size=60), st.integers(1, 20))
def test_nothing_is_lost_nothing_is_moved_and_all_of_it_fits(text: str, longest: int) -> None:
    pieces = cut(text, longest)

    assert all(len(piece) <= longest for piece in pieces)
    words = [it for it in text if it.isalnum()]
    assert [it for it in "".join(pieces) if it.isalnum()] == words


@given(st.text(max_size=40), st.sampled_from(["cs", "de", "en", "es", "hi", "zh"]))
def test_cleaned_text_has_single_spaces_and_is_clean(text: str, language: str) -> None:
    cleaned = speakable(text, language)

    assert cleaned == " ".join(cleaned.split())
    assert cleaned.isprintable()


@pytest.mark.parametrize(
    ("language", "text", "cleaned"),
    [
        ("en", " Hello\n\tworld ", "Hello world"),
        ("en", "I ❤️ you 👩‍💻!", "I you !"),
        ("en", "90 °C © 2024", "90 °C © 2024"),
        ("zh", "２０２４年，ＡＢＣ！", "2024年,ABC!"),
        ("ar", "عام ١٩٨٤", "عام 1984"),
        ("en", "card 4000123412341234", "card 4 0 0 0 1 2 3 4 1 2 3 4 1 2 3 4"),
        ("en", "in 123456789012 days", "in 123456789012 days"),
        ("de", "20 € und 3 $", "20€ und 3$"),
        ("en", "2 $20 bills", "2 $20 bills"),
        ("fr", "1\u202f000\u00a0000 €", "1000000€"),
        ("de", "Das war 1984.", "Das war 1984 ."),
        ("de", "1984. Am 3. Mai", "1984 . Am 3. Mai"),
        ("cs", "3. května 1984.", "3 května 1984 ."),
        ("hi", "3.5 और 1984", "तीन दशमलव पाँच और एक नौ आठ चार"),
    ],
)
def test_text_is_put_as_the_library_understands_it(language: str, text: str, cleaned: str) -> None:
    assert speakable(text, language) == cleaned


def test_digits_apart_are_those_of_numbers() -> None:
    assert digits_apart("about 0.00012 g, the 10th b4") == "about 0.0 0 0 1 2 g, the 1 0 th b4"


def test_a_text_without_letters_and_digits_has_no_words() -> None:
    assert not any(map(has_words, ["", "...", "—«»", "🙂", "% $"]))
    assert all(map(has_words, ["a", "7", "中", "हाँ"]))
