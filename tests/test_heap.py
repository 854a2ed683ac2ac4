"""Freed memory goes back to the system. In processes of their own: malloc is set up once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

FREED = """
import os, trio
from sts_trio import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

async def main():
    b"x" * 4_000_000  # from here on glibc has such blocks in its heap
    before = resident()
    small, large = [], []
    for _ in range(40):  # large blocks, and behind each a smaller one that stays
        large.append(b"x" * 3_000_000)
        small.append(b"y" * 20_000)
    del large
    heap.TRIM_INTERVAL_S = 0.01
    with trio.move_on_after({seconds}):
        await heap.keep_heap_small()
    print(resident() - before)

trio.run(main)
"""


def kept_mib(seconds: float, **environment: str) -> int:
    """Of 120 MiB that were freed, after so many seconds of `keep_heap_small`."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC", "GLIBC", "LD_"))}
    command = [sys.executable, "-c", FREED.format(seconds=seconds)]
    return int(subprocess.run(command, env=clean | environment, check=True, capture_output=True).stdout)


def test_what_is_freed_goes_back() -> None:
    assert kept_mib(seconds=0) > 60
    assert kept_mib(seconds=0.2) < 20


def test_the_environment_has_the_last_word() -> None:
    assert kept_mib(seconds=0.2, MALLOC_ARENA_MAX="8") > 60
