"""The GPU sampler, against a fake NVML."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from sts_trio.observe.gpu import free_gpu_memory, sample_gpu
from sts_trio.observe.metrics import Metrics

from .fake_nvml import FakeNvml

T = TypeVar("T")


async def inline(function: Callable[..., T], /, *args: object) -> T:
    await trio.lowlevel.checkpoint()
    return function(*args)


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


@pytest.mark.parametrize(("visible", "free"), [(None, 7), ("1", 7), ("", None), ("9", None)])
def test_the_free_memory_is_that_of_the_first_gpu_that_cuda_sees(
    nvml: FakeNvml, visible: str | None, free: int | None
) -> None:
    nvml.free_bytes = 7
    assert free_gpu_memory({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == free
    assert nvml.open == 0


def test_without_a_driver_or_the_package_nobody_knows_what_is_free(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.driver = False
    assert free_gpu_memory({}) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert free_gpu_memory({}) is None
