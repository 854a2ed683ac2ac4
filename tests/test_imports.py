"""Starting is quick, and a missing extra is missed where it is used: heavy libraries are imported by their engines."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "TTS",
    "faster_whisper",
    "ctranslate2",
    "deepl",
    "pocketsphinx",
    "trio_parallel",
    "huggingface_hub",
    "pynvml",
    "socketio",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["sts_trio.server.app", "sts_trio.client.worker", "sts_trio.__main__", "protocol.dubbing"]
)
def test_no_heavy_library_is_imported_before_its_engine_is_opened(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {set(HEAVY)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_the_wire_needs_neither_trio_nor_a_socket() -> None:
    modules = "protocol.dubbing, protocol.engineio, protocol.socketio"
    code = f"import sys, {modules}; print({{'trio', 'hypercorn'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
