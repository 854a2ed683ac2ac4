"""A worker that may be killed at any moment, as a process; it goes on where its journal says it was.

    python -m tests.e2e.chaos_worker '{"port": 8000, "journal": "w.jsonl", ...}'   # the fields of `Options`

It is written as existing workers are, on python-socketio's AsyncClient. As a *resuming* worker it takes its session up
again after each loss, acknowledges results, and never sends again what the server has accepted. As an *existing* one it
starts afresh each time and sends again what has no result.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import socketio
from attrs import frozen

from sts_trio.testing.tones import pitch_hz, tone

from .journal import Entry, Journal, pitch_of

RATE_HZ = 16_000
FRAGMENT_MS = 1_000
TIMEOUT_MS = 3_000
MAX_RETRIES = 2

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 3.0
PATIENCE_S = 12.0
"""Over any time that a server can take for a fragment: what has no result then is lost."""


@frozen(kw_only=True)
class Options:
    """
    Attributes:
        seed: of the pitches of its fragments.
        resumes: whether it is a resuming worker, or an existing one.
        window: fragments without a result at most.
        interval_s: between two fragments.
        audio: ``pcm``, ``binary`` (the same as an attachment) or ``m4a``.
        media: folder with a file ``{pitch}.m4a`` for each pitch.
        finish: once this file is there, no new fragments are sent.
    """

    port: int
    name: str
    seed: int
    journal: str
    finish: str
    media: str
    resumes: bool = True
    window: int = 5
    interval_s: float = 0.2
    audio: str = "pcm"


class Lost(Exception):
    """This connection is no use any more."""


class Progress:
    """Where the worker is, read from its journal entry by entry."""

    def __init__(self, entries: list[Entry]) -> None:
        self.session_id: str | None = None
        self.next_number = 0
        self.to_send: set[int] = set()  # sent, but perhaps not received; or to be tried again
        self.waiting: set[int] = set()  # accepted, in the present session
        self.known: set[str] = set()  # results of the present session, by digest: they may come again
        self.retries: dict[int, int] = {}
        self.not_before: dict[int, float] = {}
        self.ending = self.done = False
        for entry in entries:
            self.take(entry)

    @property
    def open(self) -> set[int]:
        return self.to_send | self.waiting

    def take(self, entry: Entry) -> None:
        n = entry.get("n", -1)
        match entry["what"]:
            case "ready":
                if entry["session"] != self.session_id:
                    self.to_send |= self.waiting
                    self.waiting.clear()
                    self.known.clear()
                self.session_id = entry["session"]
            case "sent":
                self.next_number = max(self.next_number, n + 1)
                self.to_send.add(n)
            case "accepted":
                self.to_send.discard(n)
                self.waiting.add(n)
            case "refused":
                self.to_send.add(n)
                self.not_before[n] = time.monotonic() + 0.3
            case "result" if entry["digest"] not in self.known:
                self.known.add(entry["digest"])
                self.to_send.discard(n)
                self.waiting.discard(n)
                if entry["again"] and self.retries.get(n, 0) < MAX_RETRIES:
                    self.retries[n] = self.retries.get(n, 0) + 1
                    self.to_send.add(n)
            case "denied":
                self.session_id = None
            case "ending":
                self.ending = True
            case "done":
                self.done = True


class Worker:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.journal = Journal(Path(options.journal))
        self.progress = Progress(self.journal.entries)
        self.news = asyncio.Event()
        self.crashed: BaseException | None = None
        self.client = socketio.AsyncClient()
        self.asked: set[int] = set()  # sent over this connection, and not answered
        self.acknowledging: set[asyncio.Task[None]] = set()
        self.lost = False
        self.is_ready = False
        self.complete = False
        self.refusal: str | None = None

    def write(self, what: str, **fields: Any) -> None:
        self.progress.take(self.journal.write(what, **fields))

    async def run(self) -> None:
        """One connection after the other, until all is dubbed."""
        while not self.progress.done:
            async with aiohttp.ClientSession() as session:
                self.client = socketio.AsyncClient(reconnection=False, http_session=session)
                self.lost = self.is_ready = self.complete = False
                self.refusal = None
                self.asked.clear()
                try:
                    await self.converse()
                except (Lost, TimeoutError, OSError, aiohttp.ClientError, socketio.exceptions.SocketIOError):
                    await asyncio.sleep(0.1)
                finally:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            await self.client.disconnect()
            if self.crashed is not None:
                raise self.crashed

    async def converse(self) -> None:
        self.client.on("*", self.guarded(self.take))
        self.client.on("disconnect", self.guarded(self.take_loss))
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await self.client.connect(f"http://127.0.0.1:{self.options.port}", transports=["websocket"])
        await self.open()
        if self.progress.done:
            return
        await self.dub()
        self.write("ending")
        await self.emit("stream:end", {"stream_id": self.options.name})
        await self.until(lambda: self.complete)
        self.write("done")

    async def open(self) -> None:
        session_id = self.progress.session_id if self.options.resumes else None
        pcm = self.options.audio != "m4a"
        config = {
            "source_language": "en",
            "target_language": "es",
            "voice_profile": "default",
            "format": "pcm_s16le" if pcm else "m4a",
            "sample_rate_hz": RATE_HZ if pcm else 48_000,
            "channels": 1 if pcm else 2,
            "chunk_duration_ms": FRAGMENT_MS,
        }
        init: dict[str, Any] = {
            "stream_id": self.options.name,
            "worker_id": self.options.name,
            "config": config,
            "timeout_ms": TIMEOUT_MS,
        }
        if session_id is not None:
            init["resume"] = {"session_id": session_id}
            if self.progress.next_number % 2:  # both ways are allowed
                init["resume"]["next_sequence_number"] = min(self.progress.open, default=self.progress.next_number)
        await self.emit("stream:init", init)
        await self.until(lambda: self.is_ready or self.refusal is not None)
        if self.refusal is not None:
            if session_id is None:
                raise Lost
            if self.progress.ending:  # it has completed, and only the word of it was lost
                self.write("done")
                return
            self.write("denied", code=self.refusal)
            raise Lost

    async def dub(self) -> None:
        """Send what is due, one fragment every so often, until the file that ends it is there and all have results."""
        heard_at = time.monotonic()
        while True:
            finishing = self.is_finishing()
            if finishing and not self.progress.open:
                return
            if (number := self.next_due(finishing)) is not None:
                self.write("sent", n=number)
                self.asked.add(number)
                await self.emit("fragment:data", self.fragment(number))
            self.news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.interval_s):
                    await self.news.wait()
                heard_at = time.monotonic()
            if number is not None:
                await asyncio.sleep(self.options.interval_s)
            if self.lost:
                raise Lost
            if time.monotonic() - heard_at > PATIENCE_S:
                raise RuntimeError(f"nothing comes any more, and {sorted(self.progress.open)} have no result")

    def is_finishing(self) -> bool:
        return Path(self.options.finish).exists()

    def next_due(self, finishing: bool) -> int | None:
        now = time.monotonic()
        again = [n for n in self.progress.to_send - self.asked if self.progress.not_before.get(n, 0) <= now]
        if again:
            return min(again)
        if finishing or len(self.progress.open) >= self.options.window:
            return None
        return self.progress.next_number

    def fragment(self, number: int) -> dict[str, Any]:
        pitch = pitch_of(self.options.seed, number)
        audio: dict[str, Any]
        if self.options.audio == "m4a":
            data = (Path(self.options.media) / f"{pitch}.m4a").read_bytes()
            audio = {"format": "m4a", "sample_rate_hz": 48_000, "channels": 2}
        else:
            data = (tone(pitch, FRAGMENT_MS / 1000, RATE_HZ) * 2**15).astype("<i2").tobytes()
            audio = {"format": "pcm_s16le", "sample_rate_hz": RATE_HZ, "channels": 1}
        audio |= {"data": data} if self.options.audio == "binary" else {"data_base64": base64.b64encode(data).decode()}
        return {
            "fragment_id": f"{self.options.name}-{number}",
            "stream_id": self.options.name,
            "sequence_number": number,
            "timestamp": time.time_ns() // 1_000_000,
            "audio": audio | {"duration_ms": FRAGMENT_MS},
            "metadata": {"number": number},
        }

    async def emit(self, event: str, payload: dict[str, Any], callback: Any = None) -> None:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await self.client.emit(event, payload, callback=callback)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while not condition():
                if self.lost:
                    raise Lost
                self.news.clear()
                await self.news.wait()

    # ---------------------------------------------------------------- what the server says

    def guarded(self, handler: Any) -> Any:
        """A handler of this connection's events, whose defects are not lost in a log."""
        client = self.client

        def handle(*args: Any) -> None:
            if client is not self.client:
                return
            try:
                handler(*args)
            except BaseException as error:
                self.crashed = error
                self.lost = True
                raise
            finally:
                self.news.set()

        return handle

    def take_loss(self, *_: Any) -> None:
        self.lost = True

    def take(self, event: str, payload: dict[str, Any]) -> None:
        match event:
            case "stream:ready":
                self.write("ready", session=payload["session_id"])
                self.is_ready = True
            case "fragment:ack":
                self.write("accepted", n=self.number(payload))
                self.asked.discard(self.number(payload))
            case "error" if payload["code"] == "SEQUENCE_GAP":
                raise RuntimeError(f"there is no gap: {payload}")
            case "error" if "fragment_id" in payload:
                self.write("refused", n=self.number(payload), code=payload["code"])
                self.asked.discard(self.number(payload))
            case "error":
                self.refusal = payload["code"]
            case "fragment:processed":
                self.take_result(payload)
            case "stream:complete":
                self.complete = True

    def take_result(self, result: dict[str, Any]) -> None:
        number = self.number(result)
        error = result.get("error") or {}
        heard = re.search(r"(\d+) Hz", result.get("transcript") or "")
        digest = hashlib.sha1(json.dumps(result, sort_keys=True, default=bytes.hex).encode()).hexdigest()
        self.write(
            "result",
            n=number,
            digest=digest,
            status=result["status"],
            code=error.get("code"),
            again=self.options.resumes and bool(error.get("retryable")),  # existing workers try nothing again
            late="late" in result["metadata"],
            pitch=int(heard[1]) if heard else 0,
            sound=self.sound(result),
        )
        self.asked.discard(number)
        assert result["metadata"]["number"] == number
        # What is tried again is not acknowledged before it is over: the server would take it for its next result.
        if self.options.resumes and number not in self.progress.open:
            body = {"fragment_id": result["fragment_id"], "status": "applied", "timestamp": time.time_ns() // 1_000_000}
            confirm = self.guarded(lambda *_: self.write("confirmed", n=number, digest=digest))
            task = asyncio.get_running_loop().create_task(self.acknowledge(body, confirm))
            self.acknowledging.add(task)  # or it could be forgotten before it is done
            task.add_done_callback(self.acknowledging.discard)

    async def acknowledge(self, body: dict[str, Any], confirm: Any) -> None:
        with suppress(socketio.exceptions.SocketIOError, TimeoutError, OSError):
            await self.emit("fragment:ack", body, confirm)

    def sound(self, result: dict[str, Any]) -> int | None:
        """The pitch of the dub, where that is quickly found out."""
        if self.options.audio == "m4a" or result["status"] == "failed":
            return None
        audio = result["dubbed_audio"]
        data = audio["data"] if self.options.audio == "binary" else base64.b64decode(audio["data_base64"])
        assert len(data) == 2 * FRAGMENT_MS * RATE_HZ // 1000
        return pitch_hz(np.frombuffer(data, "<i2").astype(np.float32) / np.float32(2**15), RATE_HZ)

    def number(self, payload: dict[str, Any]) -> int:
        return int(payload["fragment_id"].rpartition("-")[2])


if __name__ == "__main__":
    asyncio.run(Worker(Options(**json.loads(sys.argv[1]))).run())
