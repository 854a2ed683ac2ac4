"""The contract as the `Ledger` holds it: each rule kept once, and broken once.

A conversation is written down as it goes, `;` between its steps. A fragment is named by its number, or by the name that
it was sent as.

* What the worker says: `send 0`, `send 0 invalid`, `send 0 as x`, `apply 0` (it acknowledges a result), `pause`,
  `go on`, `end`.
* What it hears: `ack 0`, `result 0`, `result 0 failed TIMEOUT`, `result 0 late`, `refuse 0 INVALID_FRAGMENT`,
  `gap 1 2`, `medium 3` (with so many in flight), `complete`.
* What happens: `wait 2.5`, `lose` (the connection), `resume`, `resume from 3`, `recover`, `drain`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

import pybase64
import pytest
from attrs import define, evolve, field

from protocol.errors import ErrorCode
from sts_trio.testing.ledger import RESULT_OVERHEAD_BYTES, Ledger
from sts_trio.testing.terms import Terms

TERMS: Final = Terms(max_inflight=2, timeout_s=4.0, critical=6, gap_timeout_s=2.0, kept_bytes=2**20, slot_ms=100)
LONGEST_S: Final = 2 * 4.1
"""One turn before it, and its own."""


def sound(**changes: Any) -> dict[str, Any]:
    """The audio of a result as it should be."""
    kind = {"format": "pcm_s16le", "sample_rate_hz": 8_000, "channels": 1, "duration_ms": TERMS.slot_ms}
    carried = {} if "data" in changes else {"data_base64": pybase64.b64encode_as_string(b"\x10\x00" * 800)}
    return kind | carried | changes


SILENCE: Final = sound(data_base64=pybase64.b64encode_as_string(bytes(TERMS.slot_bytes)))

ACTIONS: Final = {"low": "none", "medium": "slow_down", "high": "pause"}


def result(fragment_id: str, number: int, **changes: Any) -> dict[str, Any]:
    """A ``fragment:processed`` as it should be."""
    return {
        "fragment_id": fragment_id,
        "stream_id": "s",
        "sequence_number": number,
        "status": "success",
        "dubbed_audio": sound(),
        "transcript": "hello",
        "translated_text": "hola",
        "processing_time_ms": 1_000,
        "stage_timings": {"asr_ms": 300, "translation_ms": 300, "tts_ms": 300},
        "metadata": {},
    } | changes


def failure(code: str, **changes: Any) -> dict[str, Any]:
    """What a failed result has beside or instead of that."""
    error = {"code": code, "message": "", "stage": "tts", "retryable": ErrorCode(code).retryable}
    return {"status": "failed", "error": error | changes}


@define
class Talk:
    """A worker and its server, whose conversation a ledger judges."""

    ledger: Ledger
    now: float = 100.0
    statuses: dict[str, str] = field(factory=dict)
    numbers: dict[str, int] = field(factory=dict)

    def run(self, conversation: str) -> None:
        for step in conversation.split(";"):
            verb, *words = step.split()
            getattr(self, f"do_{verb}")(*words)

    def hears(self, event: str, **payload: Any) -> None:
        self.ledger.hears(event, payload, self.now)

    def do_wait(self, seconds: str) -> None:
        self.now += float(seconds)

    # what it says

    def do_send(self, number: str, *words: str) -> None:
        name = words[words.index("as") + 1] if "as" in words else number
        self.numbers[name] = int(number)
        self.ledger.sends(name, int(number), valid="invalid" not in words)

    def do_apply(self, name: str) -> None:
        self.ledger.acknowledges(name)

    def do_pause(self) -> None:
        self.ledger.pauses()

    def do_go(self, on: str) -> None:
        self.ledger.goes_on()

    def do_end(self) -> None:
        self.ledger.ends()

    # what it hears

    def do_ack(self, name: str) -> None:
        self.hears("fragment:ack", fragment_id=name, status="queued", queue_position=1)

    def do_result(self, name: str, *words: str) -> None:
        payload = result(name, self.numbers.get(name, 0), metadata={"late": True} if "late" in words else {})
        if "failed" in words:
            payload |= failure(words[words.index("failed") + 1])
        self.statuses.setdefault(name, payload["status"])
        self.hears("fragment:processed", **payload)

    def do_refuse(self, name: str, code: str) -> None:
        retryable = ErrorCode(code).retryable
        self.hears("error", fragment_id=name, code=code, message="", severity="error", retryable=retryable)

    def do_gap(self, *numbers: str) -> None:
        missing = {"missing": [int(number) for number in numbers]}
        self.hears("error", code="SEQUENCE_GAP", message="", severity="warning", retryable=False, metadata=missing)

    def do_low(self, in_flight: str, severity: str = "low") -> None:
        self.hears(
            "backpressure", severity=severity, action=ACTIONS[severity], current_inflight=int(in_flight), max_inflight=2
        )

    def do_medium(self, in_flight: str) -> None:
        self.do_low(in_flight, "medium")

    def do_high(self, in_flight: str) -> None:
        self.do_low(in_flight, "high")

    def do_complete(self) -> None:
        self.hears("stream:complete", **self.summary())

    def summary(self) -> dict[str, int]:
        counts = Counter(self.statuses.values())
        return {"total_fragments": counts.total()} | {
            f"{status}_count": counts[status] for status in ("success", "partial", "failed")
        }

    # what happens

    def do_lose(self) -> None:
        self.ledger.loses_connection()

    def do_resume(self, *words: str) -> None:
        self.ledger.resumes(int(words[1]) if words else None, self.now)

    def do_recover(self) -> None:
        self.ledger.recovers(self.now)

    def do_drain(self) -> None:
        self.ledger.draining = True


def talk(conversation: str, **terms: Any) -> Talk:
    talk = Talk(Ledger(evolve(TERMS, **terms)))
    talk.run(conversation)
    return talk


RIGHT: Final = {
    # One result for each accepted fragment.
    "a fragment is acknowledged and has its result": "send 0; ack 0; result 0; end; complete",
    "a fragment is refused by name": "send 0 invalid; refuse 0 INVALID_FRAGMENT; end; complete",
    "a failure is a result": "send 0; ack 0; result 0 failed TIMEOUT; end; complete",
    "an empty stream completes": "end; complete",
    "a draining server completes unasked": "send 0; ack 0; drain; result 0; complete",
    "what is on its way to a draining server needs no answer": "send 0; ack 0; drain; send 1; result 0; complete",
    "a result takes as long as those before it and a gap": f"send 0; ack 0; wait {LONGEST_S - 0.1}; result 0",
    # Order.
    "results come in order": "send 0; send 1; ack 0; ack 1; result 0; result 1",
    "the first fragment sets the start": "send 7; ack 7; result 7; send 8; ack 8; result 8",
    "a fragment may overtake another": "send 1; send 3; ack 1; ack 3; send 2; ack 2; medium 3; "
    "result 1; result 2; low 1; result 3",
    "a number that nobody sent is given up": "send 0; ack 0; result 0; send 2; ack 2; wait 2; gap 1; result 2",
    "what was given up is refused": "send 0; send 2; ack 0; ack 2; result 0; wait 2; gap 1; result 2; send 1; "
    "refuse 1 INVALID_SEQUENCE",
    "a gap needs no waiting when nothing more comes": "send 0; send 2; ack 0; ack 2; end; result 0; gap 1; result 2",
    "a refused number holds nobody up": "send 0; send 1 invalid; send 2; ack 0; refuse 1 INVALID_FRAGMENT; ack 2; "
    "result 0; result 2",
    "a gap names what nobody sent": "send 0; send 2 invalid; send 4; ack 0; refuse 2 INVALID_FRAGMENT; ack 4; "
    "result 0; wait 2; gap 1 3; result 4",
    "a number that another fragment uses is refused": "send 0; send 0 as x; ack 0; refuse x INVALID_SEQUENCE; result 0",
    "a number that has passed is refused": "send 5; ack 5; result 5; send 3; refuse 3 INVALID_SEQUENCE",
    # The same fragment again.
    "in flight it is acknowledged again": "send 0; ack 0; send 0; ack 0; result 0; end; complete",
    "done and kept its result is sent again": "send 0; ack 0; result 0; send 0; result 0",
    "failed for now it is processed again": "send 0; ack 0; result 0 failed TIMEOUT; send 0; ack 0; result 0 late",
    "refused, it may come again in its turn": "pause; send 0; refuse 0 STREAM_PAUSED; go on; send 0; ack 0; result 0",
    "refused, it may be sent again late": "send 0; ack 0; pause; send 1; refuse 1 STREAM_PAUSED; go on; send 2; ack 2; "
    "result 0; result 2; send 1; ack 1; result 1 late",
    # Pause, backpressure.
    "paused, nothing is taken": "send 0; ack 0; pause; send 1; refuse 1 STREAM_PAUSED; result 0",
    "what was sent before a pause is taken": "send 0; pause; ack 0; result 0",
    "the next may come before the server has gone on": "pause; go on; send 0; ack 0; result 0",
    "the levels of the load": "medium 3; high 5; low 1; medium 3; low 1; high 5",
    "a fragment over the critical threshold is refused": "send 0; send 1; send 2; send 3; send 4; send 5; send 6; "
    "ack 0; ack 1; ack 2; medium 3; ack 3; ack 4; high 5; ack 5; refuse 6 BACKPRESSURE_EXCEEDED",
    # A connection is lost.
    "what was lost needs no answer": "send 0; lose; resume; end; complete",
    "what was lost may have arrived": "send 0; lose; resume; result 0; end; complete",
    "an unacknowledged result comes again": "send 0; ack 0; result 0; lose; resume; result 0; end; complete",
    "so does one whose acknowledgement was lost": "send 0; ack 0; result 0; apply 0; lose; resume; result 0",
    "one of two was heard": "send 0; send 1; ack 0; ack 1; result 0; lose; resume; result 0; result 1; end; complete",
    "what is sent again after a loss is acknowledged again": "send 0; ack 0; lose; resume; send 0; ack 0; result 0",
    "what is sent again after a loss may be done": "send 0; lose; resume; send 0; result 0; end; complete",
    "a gap is given up while nobody hears it": "send 0; send 2; ack 0; ack 2; lose; resume; result 0; result 2",
    "a refusal is said while nobody hears it": "send 0; ack 0; result 0; send 1; lose; resume; send 2; ack 2; result 2",
    "what may have been refused may be late": "send 0; ack 0; send 1; lose; resume; send 2; ack 2; result 0; result 2; "
    "send 1; ack 1; result 1 late",
    "what was lost may have failed": "send 0; ack 0; lose; resume from 1; send 0; ack 0; result 0 late",
    "a draining server has no time for gaps": "send 0; send 2; ack 0; ack 2; drain; result 0; result 2; complete",
    "time without a connection counts for nobody": f"send 0; ack 0; lose; wait {LONGEST_S + 1}; resume; result 0",
    "a level is told anew to a new connection": "medium 3; lose; resume; medium 3",
    "recovered, what was missed is heard": "send 0; lose; recover; ack 0; result 0; end; complete",
    "recovered, a refusal that was missed is heard": "send 0 invalid; lose; recover; refuse 0 INVALID_FRAGMENT",
    # The end.
    "after the end nothing is taken": "end; send 0; refuse 0 STREAM_NOT_FOUND; complete",
    "a draining server takes nothing": "drain; send 0; refuse 0 TEMPORARY_UNAVAILABLE; complete",
    "after the last word the connection may be complained about": "end; complete; send 0; refuse 0 STREAM_NOT_FOUND",
}


@pytest.mark.parametrize("conversation", RIGHT.values(), ids=RIGHT)
def test_what_the_contract_allows(conversation: str) -> None:
    assert talk(conversation).ledger.violations == []


WRONG: Final = {
    # One result for each accepted fragment.
    "an accepted fragment has no result": ("send 0; ack 0; end; complete", "0 was accepted"),
    "a fragment has no answer": ("send 0; end; complete", "0 was sent and got no answer"),
    "a result comes unacknowledged": ("send 0; result 0", "the result of 0 came before its acknowledgement"),
    "a second result": ("send 0; ack 0; result 0; result 0", "the result of 0 came a second time"),
    "a second, other result": ("send 0; ack 0; result 0; result 0 failed TIMEOUT", "came a second time"),
    "a result of nothing": ("result 0", "a result of 0, which was never sent"),
    "an acknowledgement of nothing": ("ack 0", "0 was acknowledged, and nobody had sent it"),
    "two acknowledgements of one": ("send 0; ack 0; ack 0", "0 was acknowledged, and nobody had sent it"),
    "an acknowledgement of what is not valid": ("send 0 invalid; ack 0", "0 was acknowledged, and is not valid"),
    "a refusal of nothing": ("refuse 0 INVALID_FRAGMENT", "INVALID_FRAGMENT for 0, which nobody had sent"),
    "a result takes too long": (f"send 0; ack 0; wait {LONGEST_S + 0.1}; result 0", "0 came after 8.30 s"),
    "what is done is done again": ("send 0; ack 0; result 0; send 0; ack 0", "0 is processed again"),
    "a failure for good is tried again": (
        "send 0; ack 0; result 0 failed TTS_SYNTHESIS_FAILED; send 0; ack 0",
        "0 is processed again",
    ),
    # Order.
    "results out of order": ("send 0; send 1; ack 0; ack 1; result 1; result 0", "result 0 came after 1"),
    "a gap too early": ("send 0; send 2; ack 0; ack 2; result 0; wait 1.9; gap 1", r"\[1\] were given up after 1.9"),
    "an accepted number is given up": ("send 0; ack 0; send 1; ack 1; wait 2; gap 0", "0 was given up as missing"),
    "a number is passed over without a word": (
        "send 0; ack 0; result 0; send 2; ack 2; wait 2; result 2",
        r"the result of 2 came, and nothing was said of \[1\]",
    ),
    "not all are named": (
        "send 0; ack 0; result 0; send 3; ack 3; wait 2; gap 2; result 3",
        r"the result of 3 came, and nothing was said of \[1\]",
    ),
    "a number is passed over after a loss": (
        "lose; resume; send 0; ack 0; result 0; send 2; ack 2; wait 2; result 2",
        r"the result of 2 came, and nothing was said of \[1\]",
    ),
    "a number that has its result is given up": ("send 0; ack 0; result 0; gap 0", "0 was given up as missing"),
    "a first result is called late": ("send 0; ack 0; result 0 late", "0 is late, and was neither refused nor had it"),
    "a refused number was waited for": (
        "send 0; ack 0; result 0; send 1 invalid; refuse 1 INVALID_FRAGMENT; send 2; ack 2; wait 2; gap 1",
        "1 was waited for, and had been refused",
    ),
    # Refusals.
    "a valid fragment is called invalid": ("send 0; refuse 0 INVALID_FRAGMENT", "0 was refused: INVALID_FRAGMENT"),
    "a number in its turn is called passed": ("send 0; refuse 0 INVALID_SEQUENCE", "0 was refused: INVALID_SEQUENCE"),
    "too many in flight, and there are few": (
        "send 0; ack 0; send 1; refuse 1 BACKPRESSURE_EXCEEDED",
        "1 was refused: BACKPRESSURE_EXCEEDED",
    ),
    "paused, and nobody had asked for it": ("send 0; refuse 0 STREAM_PAUSED", "0 was refused: STREAM_PAUSED"),
    "paused for ever": (
        "pause; go on; send 0; ack 0; send 1; refuse 1 STREAM_PAUSED",
        "1 was refused: STREAM_PAUSED",
    ),
    "no such stream, and there is": ("send 0; refuse 0 STREAM_NOT_FOUND", "0 was refused: STREAM_NOT_FOUND"),
    "shutting down, and it is not": ("send 0; refuse 0 TEMPORARY_UNAVAILABLE", "0 was refused: TEMPORARY_UNAVAILABLE"),
    "refused for what is no reason": ("send 0; refuse 0 GPU_OOM", "0 was refused: GPU_OOM"),
    "what is in flight is refused when it comes again": (
        "send 0; ack 0; send 1; ack 1; send 0; refuse 0 INVALID_SEQUENCE",
        "0 was refused, and is in flight: INVALID_SEQUENCE",
    ),
    "what may be tried again is not": (
        "send 0; ack 0; result 0 failed TIMEOUT; send 0; result 0 failed TIMEOUT",
        "0 may be processed again, and was answered with its failure",
    ),
    # Pause, backpressure.
    "taken while paused": ("pause; send 0; ack 0", "0 was acknowledged while paused"),
    "the same level twice": ("medium 3; medium 4", "backpressure medium twice"),
    "an all-clear to who was never warned": ("low 1", "backpressure low twice"),
    "a warning without need": ("medium 2", "backpressure medium with 2 in flight"),
    "a stop without need": ("high 4", "backpressure high with 4 in flight"),
    "an all-clear too early": ("medium 3; low 2", "backpressure low with 2 in flight"),
    "more than may be in flight": ("high 7", "backpressure high with 7 in flight"),
    "more are taken than may be in flight": (
        "send 0; send 1; send 2; send 3; send 4; send 5; send 6; ack 0; ack 1; ack 2; medium 3; ack 3; ack 4; high 5; "
        "ack 5; ack 6",
        "7 are in flight",
    ),
    "a change of the load is not told": (
        "send 0; send 1; send 2; ack 0; ack 1; ack 2; result 0",
        "medium was due before fragment:processed",
    ),
    # A connection is lost.
    "a result comes again that must be known": (
        "send 0; ack 0; result 0; apply 0; send 1; ack 1; lose; resume; result 0",
        "the result of 0 came a second time",
    ),
    "a result comes again that was not asked for": (
        "send 0; send 1; ack 0; ack 1; result 0; result 1; lose; resume from 1; result 0",
        "the result of 0 came a second time",
    ),
    "a result that was not acknowledged does not come again": (
        "send 0; ack 0; result 0; lose; resume; end; complete",
        "did not come again",
    ),
    "a result comes again twice": ("send 0; ack 0; result 0; lose; resume; result 0; result 0", "came a second time"),
    "a result comes again without a loss": ("send 0; ack 0; result 0; send 1; ack 1; result 0", "came a second time"),
    "an accepted fragment is forgotten": ("send 0; ack 0; lose; resume; end; complete", "0 was accepted"),
    "nothing is heard of a recovered fragment": ("send 0; ack 0; lose; recover; end; complete", "0 was accepted"),
    # The end.
    "completed unasked": ("send 0; ack 0; result 0; complete", "completed, and nobody had asked for it"),
    "completed, and it goes on": ("end; complete; low 1", "backpressure after stream:complete"),
}


@pytest.mark.parametrize(("conversation", "violation"), WRONG.values(), ids=WRONG)
def test_what_the_contract_does_not_allow(conversation: str, violation: str) -> None:
    violations = talk(conversation).ledger.violations
    assert violations
    assert re.search(violation, violations[0])
    assert talk(conversation.rpartition(";")[0] or "wait 0").ledger.violations == []  # it was the last step


# -------------------------------------------------------------------------------------- what a result has in it


@pytest.mark.parametrize(
    ("changes", "violation"),
    [
        ({"status": "failed"}, "0 is failed with the error None"),
        (failure("TIMEOUT") | {"status": "success"}, "0 is success with the error"),
        (failure("TIMEOUT", stage=None), "0: TIMEOUT of no stage"),
        (failure("TIMEOUT", retryable=False), "0: TIMEOUT with retryable False"),
        (failure("TTS_SYNTHESIS_FAILED", retryable=True), "0: TTS_SYNTHESIS_FAILED with retryable True"),
        ({"stage_timings": {"asr_ms": 4_000, "tts_ms": 102}}, "0 was 4102 ms in its stages"),
        ({"processing_time_ms": 4 * 4_101 + 1}, "0 took 16405 ms"),
        ({"dubbed_audio": None}, "0 has no audio"),
        ({"stream_id": "t"}, "0 is of the stream t"),
        ({"status": "bogus"}, "0 is bogus"),
        ({"processing_time_ms": -1}, "0 took -1 ms"),
        ({"dubbed_audio": sound(sample_rate_hz=44_100)}, "0 has audio of another kind"),
        ({"stage_timings": None}, "cannot be read"),
        (failure("TEMPORARY_UNAVAILABLE") | {"dubbed_audio": None}, "0 has no audio"),
        ({"dubbed_audio": sound(data_base64="EAAQ")}, "0 does not fill its slot: 3 bytes"),
        ({"dubbed_audio": sound(data=b"\1" * 1_602)}, "0 does not fill its slot: 1602 bytes"),
        ({"sequence_number": 1}, "0 has the number 1"),
        ({"dubbed_audio": SILENCE}, "0 is silent, and has words"),
    ],
)
def test_a_result_that_is_not_as_it_should_be(changes: dict[str, Any], violation: str) -> None:
    conversation = talk("send 0; ack 0")
    conversation.hears("fragment:processed", **result("0", 0, **changes))
    [found] = conversation.ledger.violations
    assert violation in found


@pytest.mark.parametrize(
    "changes",
    [
        {"stage_timings": {"asr_ms": 4_000, "tts_ms": 101}},
        {"processing_time_ms": 4 * 4_101},
        {"translated_text": "", "dubbed_audio": SILENCE},
        failure("TIMEOUT") | {"dubbed_audio": SILENCE},
        {"status": "partial"},
        {"dubbed_audio": sound(data=b"\1" * 1_600)},
    ],
    ids=[
        "as long as it may be",
        "as long as it may wait",
        "silence for no words",
        "silence for a failure",
        "partial",
        "attached",
    ],
)
def test_a_result_that_is_just_as_it_should_be(changes: dict[str, Any]) -> None:
    conversation = talk("send 0; ack 0")
    conversation.hears("fragment:processed", **result("0", 0, **changes))
    assert conversation.ledger.violations == []


def test_a_server_that_has_no_time_left_may_leave_out_the_audio() -> None:
    conversation = talk("send 0; ack 0; drain")
    conversation.hears("fragment:processed", **result("0", 0, dubbed_audio=None) | failure("TEMPORARY_UNAVAILABLE"))
    assert conversation.ledger.violations == []


# -------------------------------------------------------------------------------------- what else is heard


@pytest.mark.parametrize(
    ("wrong", "violation"),
    [
        ({"total_fragments": 2}, "total_fragments 2, results heard 1"),
        ({"success_count": 0}, "success_count 0"),
        ({"failed_count": 1}, "failed_count 1"),
    ],
)
def test_a_stream_is_completed_with_its_counts(wrong: dict[str, int], violation: str) -> None:
    conversation = talk("send 0; ack 0; result 0; end")
    conversation.hears("stream:complete", **conversation.summary() | wrong)
    [found] = conversation.ledger.violations
    assert violation in found


def test_a_retry_is_counted_once() -> None:
    conversation = talk("send 0; ack 0; result 0 failed TIMEOUT; send 0; ack 0; result 0 late; end; complete")
    assert conversation.summary() == {"total_fragments": 1, "success_count": 0, "partial_count": 0, "failed_count": 1}
    assert conversation.ledger.violations == []


def test_an_event_that_the_contract_does_not_know() -> None:
    conversation = talk("wait 1")
    conversation.hears("fragment:lost")
    assert conversation.ledger.violations == ["unknown event fragment:lost"]


def test_an_action_that_does_not_go_with_its_severity() -> None:
    conversation = talk("wait 1")
    conversation.hears("backpressure", severity="high", action="slow_down", current_inflight=5, max_inflight=2)
    assert conversation.ledger.violations == ["backpressure high with slow_down"]


def test_a_defect_of_the_server_is_never_right() -> None:
    conversation = talk("wait 1")
    conversation.hears("error", code="INTERNAL_ERROR", message="internal error 7", severity="error", retryable=True)
    assert conversation.ledger.violations == ["INTERNAL_ERROR: internal error 7"]


# -------------------------------------------------------------------------------------- a small budget, a slow network


BUDGET: Final = TERMS.slot_bytes + RESULT_OVERHEAD_BYTES


def test_results_over_the_budget_may_be_forgotten() -> None:
    lost = "send 0; ack 0; send 1; ack 1; lose; resume; result 1; end; complete"
    assert talk(lost, kept_bytes=BUDGET).ledger.violations == []
    assert talk(lost, kept_bytes=2 * BUDGET).ledger.violations == ["0 was accepted and has no result"]


def test_no_more_comes_again_than_is_kept() -> None:
    again = "send 0; send 1; ack 0; ack 1; result 0; result 1; lose; resume; result 0; result 1"
    assert talk(again, kept_bytes=2 * TERMS.slot_bytes).ledger.violations == []
    assert talk(again, kept_bytes=TERMS.slot_bytes).ledger.violations == ["3200 bytes came again, over what is kept"]


def test_what_the_network_may_add() -> None:
    """To every time; and what was on its way when it was disturbed, is judged no more."""
    late = f"send 0; ack 0; wait {LONGEST_S + 0.5}; result 0"
    assert talk(late, slack_s=0.6).ledger.violations == []
    assert talk(late, slack_s=0.4).ledger.violations != []
    early = "send 0; send 2; ack 0; ack 2; result 0; wait 1.5; gap 1"
    assert talk(early, slack_s=0.6).ledger.violations == []
    assert talk(early, slack_s=0.4).ledger.violations != []


def test_what_was_accepted_before_a_disturbance_may_take_longer() -> None:
    conversation = talk("send 0; ack 0; wait 5")
    conversation.ledger.disturbed(conversation.now)
    conversation.run(f"wait {LONGEST_S}; result 0; send 1; ack 1; wait {LONGEST_S + 1}")
    assert conversation.ledger.violations == []
    conversation.run("result 1")
    assert conversation.ledger.violations == ["the result of 1 came after 9.20 s"]


# -------------------------------------------------------------------------------------- what a worker asks it


def test_what_is_owed() -> None:
    conversation = talk("send 0; send 1; send 2; ack 0; ack 1; result 0")
    assert conversation.ledger.owes == ["1"]


def test_where_to_take_up_again() -> None:
    assert talk("wait 1").ledger.next_number == 0
    assert talk("send 7; ack 7; send 8; ack 8; result 7").ledger.next_number == 8
    assert talk("send 7; ack 7; result 7; send 8; lose").ledger.next_number == 8
    assert talk("send 7; ack 7; result 7; apply 7").ledger.next_number == 8


def test_what_may_be_sent_again() -> None:
    conversation = talk(
        "send 0; send 1; ack 0; ack 1; result 0 failed TIMEOUT; result 1; pause; send 2; refuse 2 STREAM_PAUSED"
    )
    assert conversation.ledger.retryable() == [("0", 0), ("2", 2)]
    conversation.run("go on; send 0; ack 0")
    assert conversation.ledger.retryable() == [("2", 2)]
