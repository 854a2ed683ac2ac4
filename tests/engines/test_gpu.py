"""A GPU that is too small, or full: recognised before models load, and after."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from structlog.testing import capture_logs

from sts_trio.engines.base import EngineUnavailable
from sts_trio.engines.gpu import (
    Demand,
    check_memory,
    is_device_lost,
    is_out_of_memory,
    preload_cublas,
    release_memory,
)

from .conftest import need

GIB = 2**30
ASR = Demand("ASR_SLOTS", 2, GIB)
TTS = Demand("TTS_SLOTS", 2, 5 * GIB // 2)


def test_models_that_fit_are_loaded() -> None:
    check_memory([ASR, TTS], 7 * GIB)


def test_models_that_do_not_fit_are_not_begun_with() -> None:
    with pytest.raises(EngineUnavailable) as refused:
        check_memory([ASR, TTS], 7 * GIB - 1)
    assert str(refused.value) == (
        "the models need about 7.0 GiB of GPU memory (ASR_SLOTS=2 x 1.0 GiB, TTS_SLOTS=2 x 2.5 GiB), and 7.0 GiB are "
        "free: set fewer slots, a smaller ASR_MODEL, ASR_DEVICE=cpu, or end what else uses the GPU"
    )


def test_who_needs_nothing_is_not_named() -> None:
    with pytest.raises(EngineUnavailable, match=r"\(TTS_SLOTS=2 x 2.5 GiB\)"):
        check_memory([Demand("ASR_SLOTS", 2, 0), TTS], GIB)


def test_memory_that_cannot_be_told_is_not_judged_but_logged() -> None:
    with capture_logs() as lines:
        check_memory([ASR], None)
    assert [(line["event"], line["log_level"]) for line in lines] == [("gpu_memory_unchecked", "warning")]


@pytest.mark.parametrize("free_bytes", [None, 0])
def test_who_needs_no_gpu_is_not_asked_for_one(free_bytes: int | None) -> None:
    with capture_logs() as lines:
        check_memory([], free_bytes)
        check_memory([Demand("ASR_SLOTS", 4, 0)], free_bytes)
    assert lines == []


@pytest.mark.slow
def test_what_torch_raises_when_memory_runs_out() -> None:
    need(importlib.util.find_spec("torch"), "pip install 'sts-trio[tts]'")
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(torch.cuda.OutOfMemoryError())
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2) + torch.zeros(3)
    assert not is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("CUDA failed with error out of memory"), True),
        (RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN failed with status CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA failed with error an illegal memory access was encountered"), False),
        (RuntimeError("Library libcublas.so.12 is not found or cannot be loaded"), False),
        (ValueError("the text says: out of memory"), False),
        (MemoryError("out of memory"), False),
    ],
)
def test_what_ctranslate2_says_when_memory_runs_out(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


# ------------------------------------------------------------------------------------------- cuBLAS 12


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr("ctypes.CDLL", lambda name, mode: calls.append((name, mode)))
    return calls


def put_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`folder` is where the package ``nvidia`` is, which is a namespace: other packages of NVIDIA share it."""
    nvidia = ModuleType("nvidia")
    nvidia.__spec__ = ModuleSpec("nvidia", None, is_package=True)
    nvidia.__spec__.submodule_search_locations = [str(folder)]
    monkeypatch.setitem(sys.modules, "nvidia", nvidia)


def test_the_librarys_two_halves_are_loaded_for_everybody_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[tuple[str, int]]
) -> None:
    libraries = tmp_path / "cublas" / "lib"
    libraries.mkdir(parents=True)
    for name in ("libcublas.so.12", "libcublasLt.so.12", "libnvblas.so.12"):
        (libraries / name).touch()
    put_package(tmp_path, monkeypatch)
    preload_cublas()
    names = [str(libraries / name) for name in ("libcublasLt.so.12", "libcublas.so.12")]
    assert loaded == [(name, ctypes.RTLD_GLOBAL) for name in names]


@pytest.mark.parametrize("there", ["nothing", "another package of NVIDIA"])
def test_where_it_is_not_installed_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[tuple[str, int]], there: str
) -> None:
    """CTranslate2 may find one of the system's, and says so itself where it does not."""
    if there == "nothing":
        monkeypatch.setitem(sys.modules, "nvidia", None)
    else:
        put_package(tmp_path, monkeypatch)
    preload_cublas()
    assert loaded == []


@pytest.mark.slow
def test_it_can_be_called_on_this_machine_as_it_is() -> None:
    code = "from sts_trio.engines.gpu import preload_cublas; preload_cublas(); preload_cublas()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA failed with error an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUDA failed with error out of memory"), False),
        (RuntimeError("illegal memory access of the novel"), False),
        (ValueError("CUDA error: misaligned address"), False),
    ],
)
def test_a_gpu_that_is_lost_is_known_by_its_error(error: Exception, lost: bool) -> None:
    assert is_device_lost(error) is lost


def test_memory_is_given_back_where_torch_uses_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[str] = []
    torch = ModuleType("torch")
    vars(torch)["cuda"] = SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: given_back.append("cache"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    release_memory()
    vars(torch)["cuda"].is_initialized = lambda: False
    release_memory()
    monkeypatch.delitem(sys.modules, "torch")
    release_memory()
    assert given_back == ["cache"]
