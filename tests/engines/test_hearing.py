"""What of a recogniser's answer is believed, and where in the audio it was said."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from sts_trio.engines.hearing import (
    Answer,
    Piece,
    Stretch,
    Verdict,
    compression,
    is_loop,
    judge,
    original_position,
    stretches,
    windows,
)

NEWS = {
    "en": "The city council voted on Tuesday to build a new bridge across the river. Officials said the project will "
    "cost forty million dollars and take three years. Schools in the area will open again on Monday morning.",
    "hi": "नगर परिषद ने मंगलवार को नदी पर एक नया पुल बनाने के लिए मतदान किया। अधिकारियों ने कहा कि इस परियोजना पर "
    "चार करोड़ डॉलर खर्च होंगे और इसमें तीन साल लगेंगे।",
    "th": "สภาเมืองลงมติเมื่อวันอังคารให้สร้างสะพานใหม่ข้ามแม่น้ำ เจ้าหน้าที่กล่าวว่าโครงการนี้จะใช้เงินสี่สิบล้านดอลลาร์และใช้เวลาสามปี",
    "ka": "საქალაქო საბჭომ სამშაბათს ხმა მისცა მდინარეზე ახალი ხიდის აშენებას. ოფიციალურმა პირებმა განაცხადეს, რომ "
    "პროექტი ორმოცი მილიონი დოლარი დაჯდება და სამ წელს გაგრძელდება.",
    "ru": "Городской совет во вторник проголосовал за строительство нового моста через реку. Чиновники заявили, что "
    "проект обойдётся в сорок миллионов долларов и займёт три года.",
    "ja": "市議会は火曜日に川に新しい橋を架けることを決議しました。"
    "当局者によると、この計画には四千万ドルの費用と三年の期間がかかるということです。",
}

SAID = Answer("The city council voted on Tuesday.", 6.0, mean_log_probability=-0.2, no_speech_probability=0.01)


# ------------------------------------------------------------------------------------------ judging


@pytest.mark.parametrize("language", NEWS)
def test_news_are_believed_in_every_script(language: str) -> None:
    assert judge(evolve(SAID, text=NEWS[language], seconds=15.0)) is Verdict.BELIEVED


def test_figures_that_are_no_numbers_are_believed_by_nobody() -> None:
    assert judge(evolve(SAID, mean_log_probability=float("nan"))) is Verdict.FAILED
    assert judge(evolve(SAID, no_speech_probability=float("nan"))) is Verdict.FAILED


@pytest.mark.parametrize("text", ["", " ", "...", "♪♪", "- -", "。"])
def test_what_has_no_words_is_silence(text: str) -> None:
    assert judge(evolve(SAID, text=text)) is Verdict.SILENCE


@pytest.mark.parametrize(
    ("no_speech", "log_probability", "verdict"),
    [
        (0.95, -0.2, Verdict.BELIEVED),  # whoever is that sure of the words has heard them
        (0.5, -0.9, Verdict.BELIEVED),
        (0.7, -0.9, Verdict.BELIEVED),
        (0.7, -1.1, Verdict.SILENCE),
        (0.878, -0.378, Verdict.SILENCE),  # published: subtitles said into silence
        (0.977, -0.307, Verdict.SILENCE),
        (0.5, -1.1, Verdict.FAILED),
    ],
)
def test_the_surer_it_is_that_nobody_speaks_the_surer_it_must_be_of_the_words(
    no_speech: float, log_probability: float, verdict: Verdict
) -> None:
    answer = evolve(SAID, no_speech_probability=no_speech, mean_log_probability=log_probability)

    assert judge(answer) is verdict


@pytest.mark.parametrize(
    "text",
    [
        "Thank you. " * 8,
        "you " * 30,
        "So here we are. " + "I'm going to be a bad person, " * 5,
        "ご視聴ありがとうございました" * 5,
        "धन्यवाद " * 8,
        "謝謝" * 5,
    ],
)
def test_loops_are_not_believed(text: str) -> None:
    assert is_loop(text)
    assert judge(evolve(SAID, text=text, seconds=30.0)) is Verdict.FAILED


@pytest.mark.parametrize(
    "text",
    [
        "No, no, no, no, no, no, no!",
        "Thank you, thank you, thank you, thank you.",
        "Location, location, location.",
        "One for all and all for one, and one for me.",
        "ha ha ha ha",
        *NEWS.values(),
    ],
)
def test_people_do_repeat_themselves(text: str) -> None:
    assert not is_loop(text)
    assert judge(evolve(SAID, text=text, seconds=15.0)) is Verdict.BELIEVED


def test_a_text_that_varies_a_little_is_a_loop_to_compression() -> None:
    text = " ".join(
        f"and we will see you in the {n} video" for n in ("next", "third", "new", "last", "next", "old") * 2
    )

    assert not is_loop(text)
    assert compression(text) > 2.4
    assert judge(evolve(SAID, text=text, seconds=30.0)) is Verdict.FAILED


def test_scripts_of_several_bytes_are_no_more_repetitive_than_others() -> None:
    assert all(compression(text) < 1.8 for text in NEWS.values())


def test_nobody_says_a_sentence_in_half_a_second() -> None:
    subtitle = "Thanks for watching, and I'll see you next time."

    assert judge(evolve(SAID, text=subtitle, seconds=0.5)) is Verdict.FAILED
    assert judge(evolve(SAID, text="Thank you.", seconds=0.5)) is Verdict.BELIEVED
    assert judge(evolve(SAID, text=subtitle, seconds=3.0)) is Verdict.BELIEVED


@given(st.text(), st.floats(0.01, 60), st.floats(-10, 0), st.floats(0, 1))
def test_every_answer_has_a_verdict(text: str, seconds: float, log_probability: float, no_speech: float) -> None:
    assert judge(Answer(text, seconds, log_probability, no_speech)) in Verdict


@given(st.lists(st.sampled_from(["yes", "no", "may", "be"]), min_size=1, max_size=4), st.integers(8, 20))
def test_whatever_is_said_often_enough_is_a_loop(phrase: list[str], times: int) -> None:
    assert is_loop(" ".join(phrase * times))


# ------------------------------------------------------------------------------------------ windows


@st.composite
def speech(draw: st.DrawFn) -> list[Piece]:
    pieces, position = [], 0
    for pause, length in draw(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), min_size=1, max_size=20)):
        pieces.append((position + pause, position + pause + length))
        position += pause + length
    return pieces


@given(speech())
def test_windows_hold_all_pieces_in_order_and_none_is_too_long(pieces: list[Piece]) -> None:
    filled = windows(pieces, 30)

    assert [piece for window in filled for piece in window] == pieces
    assert all(0 < sum(end - start for start, end in window) <= 30 for window in filled)


def test_without_speech_there_is_no_window() -> None:
    assert windows([], 30) == []


@given(speech())
def test_each_moment_of_a_window_is_found_in_the_audio(pieces: list[Piece]) -> None:
    moments = [moment for start, end in pieces for moment in range(start, end)]

    assert [original_position(i, pieces, end=False) for i in range(len(moments))] == moments


def test_where_two_pieces_meet_an_end_is_in_the_first_and_a_start_in_the_second() -> None:
    pieces = [(100, 110), (200, 220)]

    assert original_position(10, pieces, end=True) == 110
    assert original_position(10, pieces, end=False) == 200
    assert original_position(30, pieces, end=True) == 220
    assert original_position(30, pieces, end=False) == 220


# ------------------------------------------------------------------------------------------ stretches

T = 1_000  # the token of time 0


def taken_apart(*tokens: int, length: int = 60) -> list[Stretch]:
    return stretches(tokens, first_time=T, time_step=10, length=length)


def test_an_answer_is_taken_apart_at_its_times() -> None:
    assert taken_apart(T, 1, 2, T + 2, T + 3, 3, T + 5) == [Stretch(0, 20, (1, 2)), Stretch(30, 50, (3,))]


def test_what_has_no_end_goes_on_to_the_end() -> None:
    assert taken_apart(T + 1, 1, T + 2, T + 2, 2) == [Stretch(10, 20, (1,)), Stretch(20, 60, (2,))]
    assert taken_apart(1, 2) == [Stretch(0, 60, (1, 2))]


def test_what_takes_no_time_or_comes_after_the_audio_was_not_said() -> None:
    assert taken_apart(T + 1, 1, T + 1, T + 2, 2, T + 9, T + 10, 3, T + 12) == [Stretch(20, 60, (2,))]
    assert taken_apart(T + 7, 1) == []
    assert taken_apart() == []


@given(st.lists(st.one_of(st.integers(0, T - 1), st.integers(T, T + 1_500))), st.integers(1, 3_000))
def test_stretches_lie_in_the_window(tokens: list[int], length: int) -> None:
    for stretch in taken_apart(*tokens, length=length):
        assert 0 <= stretch.start < stretch.end <= length
        assert stretch.tokens
