"""How the C library's heap gives memory back, for a process that runs for months.

Audio is large, short-lived, and allocated by several threads at once. glibc gives threads heaps of their own
("arenas"), up to eight for each core, and what is freed in the middle of one stays with the process (mallopt(3),
M_ARENA_MAX; malloc_trim(3)). So an hour's worst minute is what a server holds from then on, once for each arena. With
two arenas, and what is free in them given back now and then, it is what the server needs.

Taking large blocks from the system each time (M_MMAP_THRESHOLD) would do as well, but costs models that run on a CPU:
Whisper took a sixth longer to encode and a third longer to decode.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

import trio

from .offload import thread_offload

ARENAS: Final = 2
"""One for the event loop's thread, one for all others: they decode and encode, and allocate little while they do."""

TRIM_INTERVAL_S: Final = 30.0

_M_ARENA_MAX: Final = -8  # malloc.h
_VARIABLES: Final = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD")


async def keep_heap_small() -> None:
    """Have memory go back to the system that nobody uses any more; runs for ever, and from before there are threads.

    It returns at once where the C library is another one than glibc, or where the environment says itself how malloc is
    to work, or replaces it.
    """
    library = ctypes.CDLL(None)
    if any(name in os.environ for name in _VARIABLES) or not hasattr(library, "gnu_get_libc_version"):
        return
    library.mallopt(_M_ARENA_MAX, ARENAS)
    offload = thread_offload(1)  # it takes milliseconds, and allocations in the same arena wait for it
    while True:
        await trio.sleep(TRIM_INTERVAL_S)
        await offload(library.malloc_trim, 0)
