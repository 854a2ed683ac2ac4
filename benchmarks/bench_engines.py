"""What the engines of production cost: a fragment of 6 s through models of production size, on a CPU or a GPU.

    PYTHONPATH=. python benchmarks/bench_engines.py [--device cuda] [--whisper large] [--rounds 5] [--only asr|tts]

The weights are random: the arithmetic is that of the published models, what they say is not. Whisper hears speech of a
test voice; XTTS is made to write as many codes as 6 s of speech have. Medians of calls, one after the other. Needs 2 GB
for models in a temporary folder.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import trio
from attrs import evolve
from rich.console import Console
from rich.table import Table

from sts_trio.engines.base import ASR_SAMPLE_RATE_HZ, AsrRequest, EngineFailure, Instance, Samples, SpeechRequest
from sts_trio.engines.whisper import WhisperEngine
from sts_trio.engines.xtts import XttsEngine
from sts_trio.observe.gpu import free_gpu_memory
from sts_trio.offload import thread_offload
from tests.e2e.worker import speak
from tests.engines.tiny_whisper import write_whisper
from tests.engines.tiny_xtts import make_large_checkpoint

FRAGMENT_S = 6
BATCHES = (1, 2, 4, 8)
WHISPERS = {"base": (512, 6, 8), "small": (768, 12, 12), "large": (1280, 32, 20)}
"""Width, layers and heads."""
VOCABULARY = 51_865

TEXT = "El presidente ha hablado hoy a todos."
"""A model that does not stop is stopped after 1.5 s and a second for each 7 characters, which here are about 6 s."""


def speech() -> Samples:
    """Six seconds of a newsreader."""
    text = "the president will meet with leaders of the industry on monday and officials said prices are rising again"
    samples = speak(text, ASR_SAMPLE_RATE_HZ, 1)[: FRAGMENT_S * ASR_SAMPLE_RATE_HZ, 0]
    return (samples / 32_768).astype(np.float32)


async def measure(instance: Instance[Any, Any], batch: Sequence[Any], rounds: int) -> tuple[float, Any]:
    """Median ms of `rounds` calls after one that warms up, and the first answer of the last."""
    times = []
    for _ in range(rounds + 1):
        began = trio.current_time()
        answers = await instance(batch)
        times.append(1_000 * (trio.current_time() - began))
        assert not any(isinstance(answer, EngineFailure) for answer in answers), answers
    return statistics.median(times[1:]), answers[0]


async def bench_whisper(device: str, sizes: Sequence[str], rounds: int, folder: Path) -> Table:
    table = Table(title=f"Whisper on {device}: median ms of a batch, and of each fragment in it")
    for column in ("model", "arithmetic", "load s", *(f"batch of {count}" for count in BATCHES), "GPU MiB"):
        table.add_column(column, justify="right")
    request = AsrRequest(speech(), "en")
    for size in sizes:
        width, layers, heads = WHISPERS[size]
        write_whisper(folder / size, width=width, layers=layers, heads=heads, filler=VOCABULARY - 2_000)
        engine = WhisperEngine(folder / size, size, device, "auto", slots=1, max_batch=max(BATCHES))
        free, began = free_gpu_memory(), trio.current_time()
        async with engine.open(thread_offload(1)) as instance:
            load_s = trio.current_time() - began
            spent = [(await measure(instance, [request] * count, rounds))[0] for count in BATCHES]
            cells = [f"{ms:.0f} ({ms / count:.0f})" for count, ms in zip(BATCHES, spent, strict=True)]
            table.add_row(size, engine.compute_type, f"{load_s:.1f}", *cells, taken(free))
    return table


async def bench_xtts(device: str, rounds: int, folder: Path) -> Table:
    table = Table(title=f"XTTS v2 on {device}: median ms")
    for column in ("seconds of speech", "load s", "speak", "again at another rate, from its take", "GPU MiB"):
        table.add_column(column, justify="right")
    engine = XttsEngine(make_large_checkpoint(folder / "xtts"), "coqui-xtts-v2", device, None)
    free, began = free_gpu_memory(), trio.current_time()
    async with engine.open(thread_offload(1)) as instance:
        load_s = trio.current_time() - began
        request = SpeechRequest(TEXT, "es", "default")
        first_ms, spoken = await measure(instance, [request], rounds)
        again_ms, _ = await measure(instance, [evolve(request, rate=1.2, take=spoken.take)], rounds)
        seconds = len(spoken.samples) / spoken.sample_rate_hz
        table.add_row(f"{seconds:.1f}", f"{load_s:.1f}", f"{first_ms:.0f}", f"{again_ms:.0f}", taken(free))
    return table


def taken(free_before: int | None) -> str:
    """What was taken of the GPU since `free_before` bytes of it were free, in MiB."""
    free = free_gpu_memory()
    return "-" if free is None or free_before is None else f"{(free_before - free) / 2**20:.0f}"


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--whisper", "sizes", multiple=True, type=click.Choice(list(WHISPERS)), default=["base"])
@click.option("--only", type=click.Choice(["asr", "tts"]))
def main(device: str, rounds: int, sizes: Sequence[str], only: str | None) -> None:
    """Measure the engines of production at their real size."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        if only != "tts":
            console.print(trio.run(bench_whisper, device, sizes, rounds, Path(folder)))
        if only != "asr":
            console.print(trio.run(bench_xtts, device, rounds, Path(folder)))


if __name__ == "__main__":
    main()
