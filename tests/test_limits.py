"""docs/limits.md says what the code does."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from attrs import fields

from protocol.socketio.packets import Limits
from sts_trio.config import Settings, variable
from sts_trio.server.connection import ConnectionSettings

ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in (Path(__file__).parent.parent / "docs" / "limits.md").read_text().splitlines()
    if line.startswith("| `")
]
ELSEWHERE = {
    "dubbing": "protocol.dubbing",
    "engineio": "protocol.engineio.server",
    "pool": "sts_trio.engines.pool",
    "reporting": "sts_trio.stream.reporting",
}


def numbers(cell: str) -> list[float]:
    """``50 MiB`` and ``128, 32``."""
    return [float(number) * (2**20 if unit else 1) for number, unit in re.findall(r"(?<!\w)([0-9.]+)( MiB)?", cell)]


def test_every_variable_that_limits_a_client_is_explained_with_its_default() -> None:
    names = [attribute.name for attribute in fields(Settings)]
    limits = names[names.index("ping_interval_s") : names.index("fallback_mode")]
    for attribute in (attribute for attribute in fields(Settings) if attribute.name in limits):
        (row,) = [row for row in ROWS if row[0].startswith(f"`{variable(attribute)}`")]
        if attribute.default is not None:
            assert numbers(row[1])[0] == attribute.default, row


def test_every_constant_has_the_value_that_is_told() -> None:
    told: dict[str, float] = {}
    for row in ROWS:
        constants = re.findall(r"`([A-Z_]+)`(?:, `([A-Z_]+)`)? \(([a-z]+)\)", row[0])
        pairs = [(name, module) for *names, module in constants for name in names if name]
        values = numbers(row[1])
        for number, (name, module) in enumerate(pairs):
            constant = getattr(importlib.import_module(ELSEWHERE.get(module, f"sts_trio.server.{module}")), name)
            told[name] = constant
            assert values[min(number, len(values) - 1)] == constant, row
    assert {"HEAD_BYTES", "LINGER_S", "PACKETS_PER_STEP", "WRITE_TIMEOUT_S", "MAX_HINTS_BYTES"} <= set(told)


def test_every_limit_of_a_packet_is_told() -> None:
    configured = {
        "attachments": "STS_MAX_ATTACHMENTS",
        "nesting": "STS_MAX_NESTING",
        "ack_id_digits": "STS_MAX_ACK_ID_DIGITS",
    }
    for attribute in fields(Limits):
        (row,) = [row for row in ROWS if row[0].startswith(f"`{configured.get(attribute.name, attribute.name)}`")]
        if attribute.name != "packet_bytes":
            assert numbers(row[1]) == [attribute.default], row
    for name in ("flush_timeout_s", "stranger_message_bytes"):
        (row,) = [row for row in ROWS if row[0].startswith(f"`{name}`")]
        assert numbers(row[1]) == [getattr(fields(ConnectionSettings), name).default]
