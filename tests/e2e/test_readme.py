"""What the README says to run, run: the worker snippets, word for word."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm for socket.io-client")
def test_the_javascript_worker(server: int, tmp_path: Path) -> None:
    folder = ROOT / "build" / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(json.dumps({"type": "module", "private": True}))
    if not (folder / "node_modules" / "socket.io-client").is_dir():
        install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "socket.io-client@4"]
        subprocess.run(install, cwd=folder, check=True, timeout=180)
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
