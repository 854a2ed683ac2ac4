"""report.json: what became of each fragment."""

from __future__ import annotations

import json

from protocol.errors import ErrorCode
from sts_trio.client.report import report

from .fake_server import dubbed, failed, fragment


def test_every_field_of_a_success() -> None:
    body = json.loads(report("in.wav", "out.wav", 12_345, [dubbed(fragment(0))]))
    assert body == {
        "source": "in.wav",
        "output": "out.wav",
        "duration_ms": 12_345,
        "fragments": [
            {
                "sequence_number": 0,
                "status": "success",
                "transcript": "said 0",
                "translated_text": "dicho 0",
                "processing_time_ms": 10,
                "stage_timings": {"asr_ms": 5, "translation_ms": 1, "tts_ms": 4},
                "original_duration_ms": 10,
                "dubbed_duration_ms": 10,
                "error": None,
            }
        ],
    }


def test_a_failure_says_where_and_why() -> None:
    body = json.loads(report("in.wav", "out.wav", 1_000, [failed(fragment(0), ErrorCode.TIMEOUT)]))
    assert body["fragments"][0]["status"] == "failed"
    assert body["fragments"][0]["error"] == {
        "code": "TIMEOUT",
        "message": "a scripted failure",
        "stage": "translation",
        "retryable": True,
    }


def test_fragments_stand_in_the_order_of_the_programme() -> None:
    body = json.loads(report("in.wav", "out.wav", 1_000, [dubbed(fragment(2)), dubbed(fragment(0))]))
    assert [entry["sequence_number"] for entry in body["fragments"]] == [0, 2]
