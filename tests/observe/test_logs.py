"""Log lines: their form, their context, and that writing them never blocks."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
import trio
from structlog.contextvars import bound_contextvars

from sts_trio.observe import logs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    before = structlog.get_config()
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK)
    yield reader, writer
    structlog.configure(**before)
    logging.basicConfig(handlers=[logging.NullHandler()], level=logging.WARNING, force=True)
    os.close(reader)
    os.close(writer)


@pytest.fixture
def lines(pipe: tuple[int, int]) -> Callable[[], list[dict[str, Any]]]:
    """Reads the JSON lines written so far."""

    def read() -> list[dict[str, Any]]:
        chunks = []
        while True:
            try:
                chunks.append(os.read(pipe[0], 2**16))
            except BlockingIOError:
                return [json.loads(line) for line in b"".join(chunks).splitlines()]

    logs.configure("INFO", "json", fd=pipe[1])
    return read


Lines = Callable[[], list[dict[str, Any]]]


def test_a_line_is_one_json_object_with_utc_time_level_logger_and_event(lines: Lines) -> None:
    structlog.get_logger("sts_trio.x").info("stream_opened", worker="w")
    [line] = lines()
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["timestamp"].endswith("Z")
    assert line | {"timestamp": ""} == {
        "timestamp": "",
        "level": "info",
        "event": "stream_opened",
        "logger": "sts_trio.x",
        "worker": "w",
    }


def test_lines_below_the_level_are_not_written(lines: Lines) -> None:
    structlog.get_logger().debug("quiet")
    logging.getLogger("library").debug("quiet")
    assert lines() == []


async def test_context_of_a_task_and_its_children_is_on_their_lines_only(lines: Lines) -> None:
    async def fragment(number: int) -> None:
        with bound_contextvars(fragment_id=f"f{number}", sequence_number=number):
            await trio.lowlevel.checkpoint()
            structlog.get_logger().info("done")

    with bound_contextvars(stream_id="s"):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(fragment, number)
        structlog.get_logger().info("closed")
    *done, closed = lines()
    assert {(line["stream_id"], line["fragment_id"], line["sequence_number"]) for line in done} == {
        ("s", "f0", 0),
        ("s", "f1", 1),
        ("s", "f2", 2),
    }
    assert closed["stream_id"] == "s"
    assert "fragment_id" not in closed


def test_library_lines_have_the_same_form_and_context(lines: Lines) -> None:
    with bound_contextvars(stream_id="s"):
        logging.getLogger("hypercorn.error").warning("%d of %d", 1, 2)
    [line] = lines()
    assert line["event"] == "1 of 2"
    assert (line["logger"], line["level"], line["stream_id"]) == ("hypercorn.error", "warning", "s")


def test_exceptions_are_whole_tracebacks(lines: Lines) -> None:
    try:
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    except ExceptionGroup:
        structlog.get_logger().exception("broke", error_id="e1")
        logging.getLogger("library").exception("broke too")
    ours, theirs = lines()
    for line in (ours, theirs):
        assert "ValueError: one" in line["exception"]
        assert "KeyError: 'two'" in line["exception"]
        assert __file__ in line["exception"]
    assert ours["error_id"] == "e1"


def test_secrets_are_not_written(lines: Lines) -> None:
    structlog.get_logger().info("connected", token="hunter2", auth={"token": "hunter2"})
    assert "hunter2" not in json.dumps(lines())


@pytest.mark.parametrize("value", [2**70, "\ud800", object(), b"\xff", {1: 2}, float("nan")])
def test_no_value_makes_a_log_call_fail(lines: Lines, value: object) -> None:
    structlog.get_logger().info("odd", value=value)
    assert [line["event"] for line in lines()] == ["odd"]


def test_console_lines_are_for_people_and_show_no_local_variables(pipe: tuple[int, int]) -> None:
    logs.configure("INFO", "console", fd=pipe[1])
    hidden = "hunter" + "2"
    try:
        raise ValueError(len(hidden))
    except ValueError:
        structlog.get_logger().exception("broke", stream_id="s")
    text = os.read(pipe[0], 2**16).decode()
    assert "broke" in text
    assert "stream_id=s" in text
    assert "ValueError: 7" in text
    assert "hunter2" not in text
    assert "\x1b[" not in text


def test_text_from_outside_cannot_steer_a_terminal(pipe: tuple[int, int]) -> None:
    logs.configure("INFO", "console", fd=pipe[1])
    structlog.get_logger().info("refused", fragment_id="\x1b[2J\x07é\n")
    text = os.read(pipe[0], 2**16).decode()
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert r"\x1b[2J\x07é\n" in text


def test_a_reader_that_stalls_costs_lines_not_time(pipe: tuple[int, int], lines: Lines) -> None:
    """The pipe holds 64 KiB and the buffer 1 MiB: of 2 MiB a part is dropped, and the next line says how much."""
    log = structlog.get_logger()
    for number in range(200):
        log.info("x", number=number, padding="." * 10_000)  # would block for ever on a plain write
    first = os.read(pipe[0], 2**20)
    for _ in range(40):
        log.info("drain")
        try:
            first += os.read(pipe[0], 2**20)
        except BlockingIOError:
            break
    written = [json.loads(line) for line in first.splitlines()]
    numbers = [line["number"] for line in written if line["event"] == "x"]
    assert numbers == list(range(len(numbers)))
    assert 100 < len(numbers) < 120
    assert [line["lines_dropped"] for line in written if "lines_dropped" in line] == [200 - len(numbers)]


def test_a_closed_reader_is_no_error(pipe: tuple[int, int], lines: Lines) -> None:
    spare = os.dup(pipe[0])
    null = os.open(os.devnull, os.O_RDONLY)
    os.close(spare)
    os.dup2(null, pipe[0])  # closes the reading end, keeps the number for the fixture
    os.close(null)
    structlog.get_logger().info("nobody hears this")
    structlog.get_logger().info("nor this")
