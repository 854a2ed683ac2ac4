"""``report.json``: what became of each fragment, for programs that come after. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from attrs import asdict

from protocol.dubbing import FragmentProcessed


def report(source: str, output: str, duration_ms: int, results: Iterable[FragmentProcessed]) -> bytes:
    """The report as JSON, fragments by sequence number.

    Args:
        duration_ms: of the whole programme.
    """
    fragments = [_fragment(result) for result in sorted(results, key=lambda result: result.sequence_number)]
    body = {"source": source, "output": output, "duration_ms": duration_ms, "fragments": fragments}
    return orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _fragment(result: FragmentProcessed) -> dict[str, Any]:
    return {
        "sequence_number": result.sequence_number,
        "status": result.status,
        "transcript": result.transcript,
        "translated_text": result.translated_text,
        "processing_time_ms": result.processing_time_ms,
        "stage_timings": asdict(result.stage_timings),
        "original_duration_ms": result.metadata.get("original_duration_ms"),
        "dubbed_duration_ms": result.metadata.get("dubbed_duration_ms"),
        "error": None if result.error is None else asdict(result.error),
    }
