"""Subtitles: WebVTT that players read and people can follow."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sts_trio.client.cut import Slot
from sts_trio.client.subtitles import CUE_LINES, LINE_CHARACTERS, Cue, cues, webvtt

LONG = (
    "El gobierno dijo el lunes que se gastará más dinero en escuelas y hospitales nuevos, "
    "y que la lluvia ha cerrado varias carreteras en el norte del país."
)


def test_a_file_of_two_fragments() -> None:
    fragments = [(Slot(0, 5_365), "Buenas noches."), (Slot(5_365, 3_725_040), "¿Qué tal?")]
    assert webvtt(cues(fragments)) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:05.365\nBuenas noches.\n\n00:00:05.365 --> 01:02:05.040\n¿Qué tal?\n"
    )


def test_fragments_without_text_have_no_cue() -> None:
    assert cues([(Slot(0, 1_000), ""), (Slot(1_000, 2_000), " \n ")]) == []
    assert webvtt([]) == "WEBVTT\n"


def test_a_long_fragment_is_shown_in_several_cues_for_its_whole_slot() -> None:
    made = cues([(Slot(1_000, 10_000), LONG)])
    assert len(made) == 2
    assert made[0].start_ms == 1_000
    assert made[0].end_ms == made[1].start_ms
    assert made[1].end_ms == 10_000
    assert all(len(cue.lines) == CUE_LINES for cue in made)
    assert abs(made[0].end_ms - 5_500) < 1_000  # about half the text, about half the time


def test_lines_of_a_cue_are_about_equally_long() -> None:
    (cue,) = cues([(Slot(0, 4_000), "Científicos han encontrado un tipo nuevo de pájaro.")])
    assert cue.lines == ("Científicos han encontrado", "un tipo nuevo de pájaro.")


def test_what_means_something_in_webvtt_is_escaped() -> None:
    (cue,) = cues([(Slot(0, 1_000), "<b>M&S --> A</b>")])
    assert webvtt([cue]).endswith("\n&lt;b&gt;M&amp;S --&gt; A&lt;/b&gt;\n")


def test_a_slot_shorter_than_its_cues_has_no_cue_of_no_length() -> None:
    assert all(cue.end_ms > cue.start_ms for cue in cues([(Slot(0, 2), LONG * 20)]))


@given(
    st.lists(st.tuples(st.integers(1, 60_000), st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])))),
)
def test_cues_keep_all_words_in_order_and_never_overlap(fragments: list[tuple[int, str]]) -> None:
    slots, start = [], 0
    for duration, text in fragments:
        slots.append((Slot(start, start + duration), text))
        start += duration
    made = cues(slots)
    shown = "".join("".join(cue.lines) for cue in made)
    assert len(shown.replace(" ", "")) <= sum(len("".join(text.split())) for _, text in slots)
    if all(duration > 1_000 for duration, _ in fragments):
        assert "".join(shown.split()) == "".join("".join(text.split()) for _, text in slots)
    for cue in made:
        assert 1 <= len(cue.lines) <= CUE_LINES
        assert all(0 < len(line) <= LINE_CHARACTERS for line in cue.lines)
    for before, after in itertools.pairwise(made):
        assert before.start_ms < before.end_ms <= after.start_ms


def test_a_word_longer_than_a_line_is_broken() -> None:
    assert cues([(Slot(0, 1_000), "a" * 50)]) == [Cue(0, 1_000, ("a" * 25, "a" * 25))]
