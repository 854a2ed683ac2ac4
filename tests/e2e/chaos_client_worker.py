"""As `chaos_worker`, with this project's own client, which takes sessions up, tries again and acknowledges by itself.

What it hands on must come once and in order, over all connections. After a ``kill -9`` it starts afresh and sends what
has no result.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import uuid
from pathlib import Path

import numpy as np
import structlog
import trio

from protocol.dubbing import Audio, FragmentProcessed, StreamConfig
from sts_trio.client.connection import DubbingError
from sts_trio.client.worker import Stream, Worker, open_worker
from sts_trio.testing.tones import pitch_hz, tone

from .chaos_worker import FRAGMENT_MS, RATE_HZ, TIMEOUT_MS, Options
from .journal import Journal, pitch_of

log = structlog.get_logger(__name__)


class ClientWorker:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.journal = Journal(Path(options.journal))
        sent = {entry["n"] for entry in self.journal.entries if entry["what"] == "sent"}
        self.next_number = max(sent, default=-1) + 1
        self.sent: list[int] = []  # by the client's own sequence numbers, which begin anew with it
        self.without_result = sent - {entry["n"] for entry in self.journal.entries if entry["what"] == "result"}

    async def run(self) -> None:
        config = StreamConfig("en", "es", "default", FRAGMENT_MS, RATE_HZ, 1, "pcm_s16le")
        name = self.options.name
        stream = Stream(config=config, stream_id=name, worker_id=name, timeout_ms=TIMEOUT_MS)
        while True:
            try:
                async with open_worker(f"http://127.0.0.1:{self.options.port}", stream) as worker:
                    self.journal.write("ready", session=uuid.uuid4().hex)
                    self.sent.clear()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self.send, worker)
                        async for result in worker:
                            self.take(result)
                    self.journal.write("done")
                    return
            except* DubbingError as lost:
                log.warning("afresh", reason=str(lost.exceptions))
            await trio.sleep(0.1)

    async def send(self, worker: Worker) -> None:
        again = sorted(self.without_result)
        while again or not self.is_finishing():
            number = again.pop(0) if again else self.next_number
            self.next_number = max(self.next_number, number + 1)
            self.without_result.add(number)
            self.journal.write("sent", n=number)
            sound = tone(pitch_of(self.options.seed, number), FRAGMENT_MS / 1000, RATE_HZ)
            audio = Audio("pcm_s16le", RATE_HZ, 1, FRAGMENT_MS, (sound * 2**15).astype("<i2").tobytes())
            self.sent.append(number)
            await worker.send(audio, {"number": number})
            await trio.sleep(self.options.interval_s)
        worker.end()

    def is_finishing(self) -> bool:
        return Path(self.options.finish).exists()

    def take(self, result: FragmentProcessed) -> None:
        number = self.sent[result.sequence_number]
        if "number" not in result.metadata:  # the client's own word, where the server did not take it
            self.journal.write("refused", n=number, code=result.error.code if result.error else None)
        heard = re.search(r"(\d+) Hz", result.transcript or "")
        data = result.dubbed_audio.data if result.dubbed_audio else b""
        self.journal.write(
            "result",
            n=number,
            status=result.status,
            code=result.error.code if result.error else None,
            late="late" in result.metadata,
            pitch=int(heard[1]) if heard else 0,
            sound=pitch_hz(np.frombuffer(data, "<i2").astype(np.float32) / np.float32(2**15), RATE_HZ),
            digest=hashlib.sha1(repr(result).encode()).hexdigest(),
        )
        self.without_result.discard(number)


if __name__ == "__main__":
    trio.run(ClientWorker(Options(**json.loads(sys.argv[1]))).run)
