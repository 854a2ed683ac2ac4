"""NVML, NVIDIA's management library, for machines without a GPU."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace


class FakeNvml(ModuleType):
    """The part of pynvml that is used, with GPUs whose load and free memory a test sets."""

    class NVMLError(Exception):
        pass

    def __init__(self, loads: dict[str, int], *, driver: bool = True, free_bytes: int = 0) -> None:
        super().__init__("pynvml")
        self.loads = loads
        self.driver = driver
        self.free_bytes = free_bytes
        self.open = 0
        self.asked = 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1
        self.asked += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.loads)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        if index >= len(self.loads):
            raise self.NVMLError("Invalid Argument")
        return list(self.loads)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.loads:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, device: str) -> SimpleNamespace:  # noqa: N802
        if self.loads[device] < 0:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=self.loads[device])

    def nvmlDeviceGetMemoryInfo(self, device: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(free=self.free_bytes)
