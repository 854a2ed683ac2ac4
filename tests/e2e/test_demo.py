"""The demo as people run it: real speech in, real engines, and every promise it makes checked on what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from sts_trio.client.media import read_media

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORDS = jiwer.Compose(
    [
        jiwer.ToLowerCase(),
        jiwer.SubstituteRegexes({r"[^\w\s']": ""}),
        jiwer.RemoveMultipleSpaces(),
        jiwer.Strip(),
        jiwer.ReduceToListOfListOfWords(),
    ]
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run of the demo leaves."""
    out = tmp_path_factory.mktemp("demo")
    run = subprocess.run(
        [sys.executable, ROOT / "demo" / "run.py", "--out", out], capture_output=True, text=True, timeout=180
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return out


@pytest.fixture(scope="module")
def report(demo: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((demo / "report.json").read_text())
    return body


def test_every_fragment_is_a_success(report: dict[str, Any]) -> None:
    assert len(report["fragments"]) >= 5
    assert [fragment["sequence_number"] for fragment in report["fragments"]] == list(range(len(report["fragments"])))
    assert {fragment["status"] for fragment in report["fragments"]} == {"success"}
    assert {fragment["error"] for fragment in report["fragments"]} == {None}


def test_under_10_percent_of_the_words_are_misheard(report: dict[str, Any]) -> None:
    spoken = (ROOT / "demo" / "programme.txt").read_text()
    heard = " ".join(fragment["transcript"] for fragment in report["fragments"])
    errors = jiwer.wer(" ".join(spoken.split()), heard, reference_transform=WORDS, hypothesis_transform=WORDS)
    assert errors < 0.10, heard


def test_every_fragment_is_translated(report: dict[str, Any]) -> None:
    for fragment in report["fragments"]:
        assert len(fragment["translated_text"].split()) > 3
        assert fragment["translated_text"].lower() != fragment["transcript"].lower()
    assert "lluvia" in " ".join(fragment["translated_text"] for fragment in report["fragments"])


def test_the_dub_is_as_long_as_the_source_to_the_sample(demo: Path, report: dict[str, Any]) -> None:
    source, dubbed = read_media(demo / "source.wav"), read_media(demo / "dubbed.wav")
    assert dubbed.samples.shape == source.samples.shape
    assert dubbed.rate_hz == source.rate_hz
    assert abs(report["duration_ms"] - len(source.samples) * 1000 / source.rate_hz) < 1
    assert sum(fragment["original_duration_ms"] for fragment in report["fragments"]) == report["duration_ms"]
    assert sum(fragment["dubbed_duration_ms"] for fragment in report["fragments"]) == report["duration_ms"]


def test_someone_speaks_in_every_fragment_and_says_something_else(demo: Path, report: dict[str, Any]) -> None:
    source, dubbed = read_media(demo / "source.wav"), read_media(demo / "dubbed.wav")
    ends = np.cumsum([fragment["original_duration_ms"] for fragment in report["fragments"]]) * dubbed.rate_hz // 1000
    for place in np.split(dubbed.samples[:, 0], ends[:-1]):
        loud = np.abs(place.astype(int)) > 500
        assert loud.mean() > 0.1
    assert not np.array_equal(source.samples, dubbed.samples)


def test_the_subtitles_are_the_translation(demo: Path, report: dict[str, Any]) -> None:
    lines = (demo / "subtitles.vtt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "WEBVTT"
    shown = " ".join(line for line in lines[1:] if line and "-->" not in line)
    assert shown.split() == " ".join(fragment["translated_text"] for fragment in report["fragments"]).split()
