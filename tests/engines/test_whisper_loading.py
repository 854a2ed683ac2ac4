"""Whisper: what it needs of a machine and of a folder, and what is said where that is missing."""

from __future__ import annotations

import json
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from sts_trio.config import Settings
from sts_trio.engines.base import EngineUnavailable
from sts_trio.engines.registry import build_asr
from sts_trio.engines.whisper import WhisperEngine
from sts_trio.offload import thread_offload
from sts_trio.testing.engines import inline_offload

OFFLOAD = thread_offload(1)


def whisper(folder: Path, device: str = "cpu", compute_type: str = "auto", slots: int = 2) -> WhisperEngine:
    return WhisperEngine(folder, str(folder), device, compute_type, slots=slots, max_batch=4)


# ------------------------------------------------------------------------------------------ what it needs


@pytest.mark.parametrize("package", ["faster_whisper", "ctranslate2"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(EngineUnavailable, match=rf"{package}.*pip install 'sts-trio\[asr\]'"):
        whisper(model)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine one with so many GPUs, that can do these kinds of arithmetic."""

    def become(gpus: int, *compute_types: str) -> None:
        monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: gpus)
        monkeypatch.setattr("ctranslate2.get_supported_compute_types", lambda device: set(compute_types))

    return become


def test_auto_is_the_best_that_the_machine_can_do(model: Path, machine: Callable[..., None]) -> None:
    machine(1, "float16", "float32", "int8", "int8_float16")
    assert (whisper(model, "auto").device, whisper(model, "auto").compute_type) == ("cuda", "float16")
    machine(1, "float32", "int8", "int8_float32")  # an old one
    assert whisper(model, "auto").compute_type == "int8_float32"
    machine(0, "float32", "int8")
    assert (whisper(model, "auto").device, whisper(model, "auto").compute_type) == ("cpu", "int8")
    machine(1, "float32", "int8")
    assert whisper(model, "cpu").device == "cpu"


def test_what_the_machine_cannot_do_is_named_with_its_setting(model: Path, machine: Callable[..., None]) -> None:
    machine(0, "float32", "int8")
    with pytest.raises(EngineUnavailable, match=r"ASR_DEVICE=cuda.*ASR_DEVICE=cpu"):
        whisper(model, "cuda")
    with pytest.raises(EngineUnavailable, match=r"ASR_COMPUTE_TYPE=float16: the CPU.*float32, int8"):
        whisper(model, "cpu", "float16")


def test_memory_is_taken_of_a_gpu_only_and_grows_with_the_arithmetic(model: Path, machine: Callable[..., None]) -> None:
    machine(1, "float16", "float32", "int8_float16")

    assert whisper(model, "cpu", "float32").gpu_memory_bytes == 0
    light, usual, heavy = (
        whisper(model, "cuda", kind).gpu_memory_bytes for kind in ("int8_float16", "float16", "float32")
    )
    assert (model / "model.bin").stat().st_size < light < usual < heavy


def test_it_knows_the_languages_that_the_model_has_tokens_for(model: Path, english_model: Path) -> None:
    multilingual, english = whisper(model), whisper(english_model)

    assert all(multilingual.supports(tag) for tag in ("en-GB", "es", "zh-Hans", "cmn", "nb-NO", "jv", "haw", "fil"))
    assert not any(multilingual.supports(tag) for tag in ("yue", "tlh", "eo", ""))
    assert english.supports("en-US")
    assert not english.supports("es")


def test_a_vocabulary_that_cannot_be_read_is_named(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "vocabulary.json").write_text("{")
    with pytest.raises(EngineUnavailable, match=r"model/vocabulary\.json cannot be read"):
        whisper(folder)
    (folder / "vocabulary.json").unlink()
    with pytest.raises(EngineUnavailable, match=r"has no vocabulary\.json"):
        whisper(folder)


def test_an_old_vocabulary_is_a_text_file(model: Path, english_model: Path, tmp_path: Path) -> None:
    for source, languages in ((model, 99), (english_model, 1)):
        folder = shutil.copytree(source, tmp_path / source.name)
        tokens = json.loads((folder / "vocabulary.json").read_text())
        (folder / "vocabulary.json").unlink()
        (folder / "vocabulary.txt").write_text("".join(f"{token}\n" for token in tokens))
        assert len(whisper(folder).languages) == languages


def test_it_is_configured_by_a_path(model: Path) -> None:
    engine = build_asr(Settings.load({"ASR_MODEL": str(model), "ASR_DEVICE": "cpu", "ASR_MAX_BATCH": "3"}))

    assert (engine.name, engine.max_batch) == (model.name, 3)


# ------------------------------------------------------------------------------------------ loading


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.bin", "tokenizer.json", "config.json", "preprocessor_config.json"])
async def test_half_a_model_is_an_error_at_start_that_names_its_folder(file: str, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])

    with pytest.raises(EngineUnavailable, match=rf"model in {folder} cannot be loaded.*convert or copy it again"):
        async with whisper(folder).open(OFFLOAD):
            pytest.fail("it was loaded")


async def test_a_tokenizer_of_another_model_is_an_error_at_start(
    model: Path, english_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    shutil.copy(english_model / "tokenizer.json", folder)

    with pytest.raises(EngineUnavailable, match=r"tokenizer\.json is of another model"):
        async with whisper(folder).open(OFFLOAD):
            pytest.fail("it was loaded")


async def test_a_model_of_the_catalogue_can_be_pulled_again(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "faster-whisper-base")
    (folder / "model.bin").write_bytes(b"no model")

    # What was put there by hand is replaced by force only.
    with pytest.raises(EngineUnavailable, match="sts-trio models pull faster-whisper-base --force"):
        async with WhisperEngine(folder, "faster-whisper-base", "cpu", "auto", 1, 1).open(inline_offload):
            pytest.fail("it was loaded")


async def test_a_gpu_that_is_full_is_an_error_at_start_that_names_what_would_help(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA failed with error out of memory")

    monkeypatch.setattr("faster_whisper.WhisperModel.encode", full)

    with pytest.raises(EngineUnavailable, match=r"ASR_SLOTS.*ASR_DEVICE=cpu"):
        async with whisper(model).open(inline_offload):
            pytest.fail("it was loaded")


@pytest.mark.slow
async def test_instances_share_the_cores_and_free_their_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, models = [], []
    import faster_whisper

    real = faster_whisper.WhisperModel

    def load(*args: object, cpu_threads: int, **options: object) -> object:
        loaded = real(*args, cpu_threads=cpu_threads, **options)
        threads.append(cpu_threads)
        models.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr("faster_whisper.WhisperModel", load)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for slots in (1, 3, 20):
        async with whisper(model, slots=slots).open(OFFLOAD):
            assert models[-1]() is not None
        assert models[-1]() is None
    assert threads == [8, 2, 1]
