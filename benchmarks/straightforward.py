"""What one would write in an afternoon: the same engines behind python-socketio, one stage after the other.

It is what `bench_dub.py` measures against: correct on a quiet day, with no deadlines, no order, no flow control and no
duration matching. Recognition runs in a thread, as the library's own examples do; the other two are commands.
"""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import threading
import time
from typing import Any

import socketio
from aiohttp import web
from pocketsphinx import Decoder

server = socketio.AsyncServer(async_mode="aiohttp", max_http_buffer_size=50_000_000)
decoders = threading.local()


def dub(pcm: bytes) -> dict[str, Any]:
    """16 kHz mono in, 22.05 kHz mono out, however long it is."""
    decoder = getattr(decoders, "one", None)
    if decoder is None:
        decoder = decoders.one = Decoder(samprate=16_000, loglevel="FATAL", maxhmmpf=4_000)
    decoder.start_utt()
    decoder.process_raw(pcm, False, True)
    decoder.end_utt()
    heard = decoder.hyp().hypstr if decoder.hyp() else ""
    said = subprocess.run(["apertium", "-u", "eng-spa"], input=heard.encode(), capture_output=True, check=True).stdout
    spoken = subprocess.run(["espeak-ng", "-v", "es", "--stdout"], input=said, capture_output=True, check=True).stdout
    return {
        "transcript": heard,
        "translated_text": said.decode(),
        "data_base64": base64.b64encode(spoken[44:]).decode(),
    }


@server.on("stream:init")
async def init(sid: str, body: dict[str, Any]) -> None:
    await server.emit("stream:ready", {"stream_id": body["stream_id"], "max_inflight": 3}, to=sid)


@server.on("fragment:data")
async def fragment(sid: str, body: dict[str, Any]) -> None:
    await server.emit("fragment:ack", {"fragment_id": body["fragment_id"]}, to=sid)
    began = time.monotonic()
    result = await asyncio.to_thread(dub, base64.b64decode(body["audio"]["data_base64"]))
    result["processing_time_ms"] = round((time.monotonic() - began) * 1000)
    await server.emit("fragment:processed", {"fragment_id": body["fragment_id"], **result}, to=sid)


if __name__ == "__main__":
    app = web.Application()
    server.attach(app)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=lambda *_: None)
