"""``python -m tests.e2e.hanging WHAT``: a server in which a library hangs in a thread and never looks up."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import click
import trio

from sts_trio.config import Settings
from sts_trio.engines import pool
from sts_trio.engines.base import (
    AsrRequest,
    EngineFailure,
    EngineLost,
    EngineUnavailable,
    Instance,
    Transcript,
    Translation,
    TranslationRequest,
)
from sts_trio.observe import logs
from sts_trio.offload import Offload
from sts_trio.server import app
from sts_trio.testing.engines import ScriptedAsr, ScriptedTranslation, scripted_models

HOUR_S = 3_600.0


class Unavailable(ScriptedTranslation):
    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[TranslationRequest, Translation]]:
        await trio.sleep(0.5)
        raise EngineUnavailable("no such pair: install it")
        yield  # type: ignore[unreachable]


class Hanging(ScriptedAsr):
    """Hangs in its first call of an instance; `loses` the server in the first call of another one meanwhile."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._calls = 0

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[AsrRequest, Transcript]]:
        if self._what in ("load", "unavailable"):
            await offload(time.sleep, HOUR_S)

        async def call(batch: Sequence[AsrRequest], /) -> Sequence[Transcript | EngineFailure]:
            self._calls += 1
            if self._what == "lost" and self._calls == 2:
                raise EngineLost("the GPU is gone")
            await offload(time.sleep, HOUR_S)
            return [Transcript("")] * len(batch)

        yield call


@click.command()
@click.argument("what", type=click.Choice(["call", "lost", "load", "unavailable"]))
def main(what: str) -> None:
    pool.HUNG_AFTER_S = 0.5  # type: ignore[misc]
    app.STUCK_AFTER_S = 1.0  # type: ignore[misc]
    logs.configure("INFO", "json")
    models = scripted_models(Hanging(what), Unavailable() if what == "unavailable" else None)
    sys.exit(0 if trio.run(app.serve, Settings.load(), models) else 1)


if __name__ == "__main__":
    main()
