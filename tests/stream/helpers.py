"""What tests of a stream share: opening one, sending to it, and reading what came back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pybase64

from sts_trio.engines.base import Transcript
from sts_trio.testing.engines import ScriptedAsr, Step
from sts_trio.testing.memory import MemoryServer, MemoryWorker
from sts_trio.testing.payloads import fragment, stream_init


async def opened(server: MemoryServer, **changes: Any) -> MemoryWorker:
    worker = server.worker()
    await worker.say("stream:init", stream_init(**changes))
    await worker.wait_for("stream:ready")
    return worker


async def send(worker: MemoryWorker, *numbers: int) -> None:
    for number in numbers:
        await worker.say("fragment:data", fragment(number))


def numbers(worker: MemoryWorker) -> list[int]:
    return [result["sequence_number"] for result in worker.got("fragment:processed")]


def pcm(result: dict[str, Any]) -> Any:
    return np.frombuffer(pybase64.b64decode(result["dubbed_audio"]["data_base64"]), "<i2")


def slow_asr(seconds: float) -> ScriptedAsr:
    return ScriptedAsr(script=lambda _: Step(Transcript("hello"), seconds))
