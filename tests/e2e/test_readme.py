"""What the README says to run, run: the worker snippets, word for word."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..clients import npm
from .worker import speak

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TEXT = "the government said on friday that prices are rising again"


def snippet(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(code)


def check(results: list[dict[str, Any]]) -> None:
    (result,) = results
    assert result["status"] == "success", result
    assert "gobierno" in result["translated_text"]


def test_the_python_worker(server: int) -> None:
    namespace: dict[str, Any] = {}
    exec(snippet("python"), namespace)
    check(asyncio.run(namespace["dub"](f"http://127.0.0.1:{server}", speak(TEXT, 16_000, 1).tobytes())))


@pytest.mark.skipif(npm.MISSING is not None, reason=str(npm.MISSING))
def test_the_javascript_worker(server: int, tmp_path: Path) -> None:
    folder = npm.install()
    pcm, out = tmp_path / "speech.pcm", tmp_path / "results.json"
    pcm.write_bytes(speak(TEXT, 16_000, 1).tobytes())
    (folder / "worker.mjs").write_text(snippet("javascript"))
    (folder / "run.mjs").write_text(
        'import { dub } from "./worker.mjs";\nimport { readFileSync, writeFileSync } from "node:fs";\n'
        "const [url, pcm, out] = process.argv.slice(2);\n"
        "const results = await dub(url, readFileSync(pcm));\n"
        'const isBinary = (value) => (value.type === "Buffer" ? "binary" : value);\n'
        "writeFileSync(out, JSON.stringify(results, (_, value) => (value ? isBinary(value) : value)));\n"
    )
    subprocess.run(
        ["node", "run.mjs", f"http://127.0.0.1:{server}", str(pcm), str(out)], cwd=folder, check=True, timeout=90
    )
    results = json.loads(out.read_text())
    check(results)
    assert results[0]["dubbed_audio"]["data"] == "binary"
