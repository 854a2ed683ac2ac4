"""The meeting of real clients and servers that all tests here ask about."""

from __future__ import annotations

import sys

import pytest
import trio

from .meeting import Meeting, meet


@pytest.fixture(scope="session")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Meeting:
    folder = tmp_path_factory.mktemp("clients")
    try:
        return trio.run(meet, folder)
    finally:
        for log in sorted(folder.iterdir()):
            sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')}")
