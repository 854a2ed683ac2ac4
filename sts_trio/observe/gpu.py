"""The load of the GPUs this service may use, sampled through NVML.

NVML sees every GPU of the machine, CUDA those that ``CUDA_VISIBLE_DEVICES`` leaves: the same selection is made here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog
import trio

from ..offload import Offload
from .metrics import Metrics

log = structlog.get_logger(__name__)


async def sample_gpu(
    metrics: Metrics, offload: Offload, interval_s: float, *, environment: Mapping[str, str] = os.environ
) -> None:
    """Sample until cancelled; return at once where there is nothing to sample. Logs either way, once.

    Needs the package ``nvidia-ml-py`` (extra ``gpu``) and a driver. A sample that fails ends the sampling: the last
    value is forgotten, not shown for ever.
    """
    try:
        import pynvml  # optional, and only where a server runs
    except ImportError:
        log.info("gpu_unsampled", reason="nvidia-ml-py is not installed (extra: gpu)")
        return
    try:
        await offload(pynvml.nvmlInit)
    except pynvml.NVMLError as error:
        log.info("gpu_unsampled", reason=str(error))
        return
    try:
        devices = await offload(_visible_devices, pynvml, environment.get("CUDA_VISIBLE_DEVICES"))
        if not devices:
            log.info("gpu_unsampled", reason="no GPU is visible")
            return
        log.info("gpu_sampling", devices=len(devices), interval_s=interval_s)
        while True:
            metrics.set_gpu_utilization(await offload(_busiest, pynvml, devices))
            await trio.sleep(interval_s)
    except pynvml.NVMLError as error:
        log.warning("gpu_unsampled", reason=str(error))
    finally:
        metrics.forget_gpu_utilization()
        with suppress(pynvml.NVMLError):  # the driver is what may just have failed
            pynvml.nvmlShutdown()


def free_gpu_memory(environment: Mapping[str, str] = os.environ) -> int | None:
    """Bytes that nobody uses of the first visible GPU, which is the one the models go to; None where none is seen.

    Blocks for a moment: call it off the event loop.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            devices = _visible_devices(pynvml, environment.get("CUDA_VISIBLE_DEVICES"))
            return int(pynvml.nvmlDeviceGetMemoryInfo(devices[0]).free) if devices else None
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _visible_devices(nvml: Any, selection: str | None) -> list[Any]:
    """NVML handles of what `selection` names; like CUDA, it ends at the first entry that names no device."""
    if selection is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    devices = []
    for entry in selection.split(","):
        try:
            if entry.strip().isdecimal():
                devices.append(nvml.nvmlDeviceGetHandleByIndex(int(entry)))
            else:
                devices.append(nvml.nvmlDeviceGetHandleByUUID(entry.strip()))
        except nvml.NVMLError:
            break
    return devices


def _busiest(nvml: Any, devices: list[Any]) -> int:
    return max(int(nvml.nvmlDeviceGetUtilizationRates(device).gpu) for device in devices)
