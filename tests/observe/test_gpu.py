"""The GPU sampler, against a fake NVML."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from sts_trio.observe.gpu import sample_gpu
from sts_trio.observe.metrics import Metrics

T = TypeVar("T")


async def inline(function: Callable[..., T], /, *args: object) -> T:
    await trio.lowlevel.checkpoint()
    return function(*args)


class FakeNvml(ModuleType):
    """The part of pynvml the sampler uses, with GPUs whose load a test sets."""

    class NVMLError(Exception):
        pass

    def __init__(self, loads: dict[str, int], *, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.loads = loads
        self.driver = driver
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

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


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml({"GPU-a": 10, "GPU-b": 70})
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


async def test_load_of_the_busiest_gpu_is_published_at_each_interval(
    nvml: FakeNvml, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    metrics = Metrics()
    nursery.start_soon(lambda: sample_gpu(metrics, inline, 5.0, environment={}))
    await trio.sleep(1)
    assert metrics.gpu_utilization == 70
    nvml.loads["GPU-a"] = 90
    await trio.sleep(3)
    assert metrics.gpu_utilization == 70
    await trio.sleep(2)
    assert metrics.gpu_utilization == 90
    assert b"sts_gpu_utilization_percent 90.0" in metrics.render()[0]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("visible", "load"),
    [("0", 10), ("1", 70), ("0,1", 70), ("GPU-a", 10), ("0,9,1", 10), ("", None), ("9", None), ("-1", None)],
)
async def test_only_gpus_that_cuda_sees_are_sampled(
    nvml: FakeNvml,
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    visible: str,
    load: int | None,
) -> None:
    metrics = Metrics()
    nursery.start_soon(lambda: sample_gpu(metrics, inline, 5.0, environment={"CUDA_VISIBLE_DEVICES": visible}))
    await trio.sleep(1)
    assert metrics.gpu_utilization == load
    nursery.cancel_scope.cancel()


async def test_without_a_driver_it_returns_and_nothing_is_published(nvml: FakeNvml) -> None:
    nvml.driver = False
    metrics = Metrics()
    await sample_gpu(metrics, inline, 5.0, environment={})
    assert metrics.gpu_utilization is None
    assert b"sts_gpu_utilization_percent" not in metrics.render()[0]


async def test_without_the_package_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    await sample_gpu(Metrics(), inline, 5.0, environment={})


async def test_a_load_that_cannot_be_read_any_more_is_forgotten(
    nvml: FakeNvml, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    metrics = Metrics()
    nursery.start_soon(lambda: sample_gpu(metrics, inline, 5.0, environment={}))
    await trio.sleep(1)
    nvml.loads["GPU-b"] = -1
    await trio.sleep(5)
    assert metrics.gpu_utilization is None
    assert b"sts_gpu_utilization_percent" not in metrics.render()[0]
    assert nvml.open == 0


async def test_a_driver_that_cannot_even_be_closed_harms_nobody(
    nvml: FakeNvml, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise nvml.NVMLError("Driver lost")

    monkeypatch.setattr(nvml, "nvmlShutdown", broken)
    with trio.move_on_after(12):
        await sample_gpu(Metrics(), inline, 5.0, environment={})


async def test_nvml_is_closed_on_cancel(nvml: FakeNvml, autojump_clock: MockClock) -> None:
    with trio.move_on_after(12):
        await sample_gpu(Metrics(), inline, 5.0, environment={})
    assert nvml.open == 0
