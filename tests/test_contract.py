"""docs/contract.md says what the code does, as far as it has tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attrs import fields

from protocol.dubbing import SERVER_EVENTS, Backpressure, FragmentAck, FragmentProcessed, StreamReady
from protocol.errors import ErrorCode

TEXT = (Path(__file__).parent.parent / "docs" / "contract.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_every_error_is_told_once_and_whether_a_retry_can_help() -> None:
    told = [(code, retryable) for names, retryable, _ in rows("Errors") for code in re.findall(r"`([A-Z_]+)`", names)]
    assert sorted(told) == sorted((code.value, "yes" if code.retryable else "no") for code in ErrorCode)


@pytest.mark.parametrize("event", [StreamReady, FragmentAck, FragmentProcessed, Backpressure])
def test_every_field_of_an_event_is_told(event: type) -> None:
    (row,) = [row for row in rows("Server to worker") if row[0] == f"`{event.event}`"]  # type: ignore[attr-defined]
    for attribute in fields(event):
        assert re.search(rf"`{attribute.name}\b", row[1]), attribute.name


def test_every_event_is_told() -> None:
    assert {row[0].strip("`") for row in rows("Server to worker")} - {"event", "---"} == set(SERVER_EVENTS)
