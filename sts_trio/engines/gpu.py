"""What the engines that run on a GPU share: whether it is large enough, and what running out of it looks like."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog
from attrs import frozen

from .base import EngineLost, EngineUnavailable

log = structlog.get_logger(__name__)


@frozen
class Demand:
    """What the instances of one engine will take of the GPU.

    Attributes:
        variable: the setting that says how many `slots` there are.
    """

    variable: str
    slots: int
    bytes_each: int


def check_memory(demands: Sequence[Demand], free_bytes: int | None) -> None:
    """See that all instances fit, before the first is loaded: a GPU that fills up half-way says nothing useful.

    Args:
        free_bytes: of the GPU; None where that cannot be told, and nothing is checked.

    Raises:
        EngineUnavailable: they do not fit; the message has the figures and names the settings.
    """
    needed = sum(demand.slots * demand.bytes_each for demand in demands)
    if not needed:
        return
    if free_bytes is None:
        log.warning("gpu_memory_unchecked", reason="nvidia-ml-py is not installed, or it sees no GPU (extra: gpu)")
        return
    if needed > free_bytes:
        parts = ", ".join(
            f"{demand.variable}={demand.slots} x {_gib(demand.bytes_each)}" for demand in demands if demand.bytes_each
        )
        raise EngineUnavailable(
            f"the models need about {_gib(needed)} of GPU memory ({parts}), and {_gib(free_bytes)} are free: "
            "set fewer slots, a smaller ASR_MODEL, ASR_DEVICE=cpu, or end what else uses the GPU"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library ran out of GPU memory: torch has a type for it, CTranslate2 only words."""
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "cublas_status_alloc_failed" in message or "cudnn_status_alloc_failed" in message
    )


_LOST: Final = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "uncorrectable ecc error",
    "hardware stack error",
)
"""Of the errors of CUDA those after which nothing in the process can use the GPU any more (CUDA Runtime API, "Error
handling": "the process must be terminated and relaunched")."""


def is_device_lost(error: BaseException) -> bool:
    """Whether a library's error leaves the GPU of no use to this process."""
    message = str(error).lower()
    return isinstance(error, RuntimeError) and "cuda" in message and any(words in message for words in _LOST)


def raise_if_lost(error: BaseException) -> None:
    """
    Raises:
        EngineLost: `error` left the GPU of no use to this process.
    """
    if is_device_lost(error):
        raise EngineLost(f"the GPU cannot be used by this process any more: {str(error).splitlines()[0]}") from error


def release_memory() -> None:
    """Give back the GPU memory that torch keeps for later, where it is loaded: another library may have run out."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def preload_cublas() -> None:
    """Load the cuBLAS 12 of the package ``nvidia-cublas-cu12``, where it is installed, before CTranslate2 asks for it.

    CTranslate2 opens ``libcublas.so.12`` by name when it first multiplies, and finds it if the process has it already.
    A torch built for another CUDA brings another cuBLAS under another name: both live in one process.
    """
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in ("libcublasLt.so.12", "libcublas.so.12"):  # the second needs the first
            path = Path(folder) / "cublas" / "lib" / name
            if path.is_file():
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
