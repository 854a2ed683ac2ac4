"""Freed memory goes back to the system. In processes of their own: malloc is set up once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

FREED = """
import os
from sts_trio.heap import keep_heap_small

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

done = {done}
b"x" * 4_000_000  # from here on glibc has such blocks in its heap
before = resident()
small, large = [], []
for _ in range(40):  # large blocks, and behind each a smaller one that stays
    large.append(b"x" * 3_000_000)
    small.append(b"y" * 20_000)
del large
print(done, resident() - before)
"""


def run(done: str = "keep_heap_small()", **environment: str) -> tuple[str, int]:
    """What `keep_heap_small` says, and MiB that are kept of 120 that were freed."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC", "GLIBC", "LD_"))}
    command = [sys.executable, "-c", FREED.format(done=done)]
    said, kept = subprocess.run(command, env=clean | environment, check=True, capture_output=True).stdout.split()
    return said.decode(), int(kept)


def test_what_is_freed_is_not_kept() -> None:
    said, kept = run()
    assert said == "True"
    assert kept < 20


def test_it_would_be_kept() -> None:
    assert run("None")[1] > 60


def test_the_environment_has_the_last_word() -> None:
    assert run(MALLOC_ARENA_MAX="8")[0] == "False"
