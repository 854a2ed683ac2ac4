"""`sts-trio dub`: what it refuses, what it leaves, and how it ends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
from click.testing import CliRunner, Result
from trio.testing import MockClock

from protocol.dubbing import FragmentData, ResultAck
from protocol.errors import ErrorCode
from sts_trio.cli import dub as command
from sts_trio.client.connection import Address, Connection, DubbingError
from sts_trio.client.cut import cut_fixed
from sts_trio.client.media import Media, MediaError, Pcm, read_media, write_media
from sts_trio.client.programme import Dub
from sts_trio.client.worker import open_worker
from sts_trio.testing.engines import inline_offload

from .fake_server import CONFIG, URL, FakeServer, Peer, Script, dubbed, failed, fragment


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two seconds of a quiet tone at 22.05 kHz, and a bit."""
    tone = (np.sin(np.arange(44_107) / 10) * 300).astype(np.int16)[:, np.newaxis]
    path = tmp_path / "source.wav"
    write_media(path, tone, Media(path, tone, 22_050))
    return path


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sts_trio.observe.logs.configure", lambda *args, **kwargs: None)
    monkeypatch.delenv("STS_API_KEY", raising=False)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command.dub, [str(argument) for argument in arguments])


@pytest.fixture
def server_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_find_server", lambda *arguments: None)


@pytest.fixture
def undecodable(source: Path) -> Path:
    """Whoever tries to decode it says that it is no media file."""
    source.write_text("no sound")
    return source


@pytest.mark.usefixtures("server_found")
def test_what_it_refuses_before_it_starts(source: Path, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    out = tmp_path / "out.wav"
    for arguments, why in [
        ([tmp_path / "none.wav", "-o", out, "--to", "es"], "No such file"),
        ([tmp_path / "none.wav", "-o", source, "--to", "es"], "No such file"),
        ([tmp_path / "text.wav", "-o", out, "--to", "es"], "not a media file"),
        ([source, "-o", source, "--to", "es"], "never overwritten"),
        ([source, "-o", tmp_path / "out.doc", "--to", "es"], "must end in one of"),
        ([source, "-o", out], "Missing option '--to'"),
        ([source, "-o", out, "--to", "es", "--url", "localhost"], "http://localhost:8000"),
        ([source, "-o", out, "--to", "es", "--url", "http://localhost", "--profile", "embedded"], "--profile"),
        ([source, "-o", out, "--to", "es", "--fragment-ms", "99"], "100<=x<=60000"),
    ]:
        result = run(*arguments)
        assert result.exit_code != 0
        assert why in result.output.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.wav", "text.wav"]


def test_a_server_that_is_not_there_is_named_before_anything_is_decoded(undecodable: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = run(undecodable, "-o", tmp_path / "out.wav", "--to", "es", "--url", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert f"cannot connect to http://127.0.0.1:{port}: Connection refused (`sts-trio serve` starts a" in result.output
    assert not (tmp_path / "out.wav").exists()


def greeted_by(monkeypatch: pytest.MonkeyPatch, script: Script, source: Path) -> Result:
    """What `dub` says when its server greets it like this."""

    async def greet(url: str, token: str | None) -> None:
        async with trio.open_nursery() as nursery:
            server = FakeServer(nursery, script)
            connection = Connection(Address.parse(url), token=token, open_stream=server.open_stream)
            await nursery.start(connection.run)

    monkeypatch.setattr(command, "_greet", greet)
    return run(source, "-o", source.with_name("out.wav"), "--to", "es", "--url", URL)


def test_a_server_that_wants_its_key_is_told_how_to_give_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.reject("wrong token", {"code": "AUTH_FAILED"})

    result = greeted_by(monkeypatch, script, source)
    assert result.exit_code == 1
    assert "AUTH_FAILED: wrong token" in result.output
    assert "--token" in result.output
    assert "STS_API_KEY" in result.output


async def test_a_server_that_goes_and_does_not_come_back_is_told_with_how_far_it_got(
    source: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def gone_after_one(peer: Peer) -> None:
        await peer.open()
        await peer.send(dubbed(await peer.receive_one(FragmentData)))
        await peer.receive_one(ResultAck)

    options = command.Options(source, source.with_name("out.wav"), URL, None, CONFIG, "fixed", None, None, 8_000)
    monkeypatch.setattr("sts_trio.offload.thread_offload", lambda threads: inline_offload)
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery, gone_after_one)
        on_it = partial(open_worker, open_stream=server.open_stream)
        monkeypatch.setattr("sts_trio.client.worker.open_worker", on_it)
        with pytest.raises(DubbingError, match=r"after 1 of 2 fragments.* cannot connect to .*: connection refused$"):
            await command._dub(URL, options, read_media(source), cut_fixed(2_001, 1_000))
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("server_found")
def test_a_file_can_wait(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the contract allows, and not the deadline that a server has for broadcasts."""
    asked: list[int] = []

    def note(settings: object, models: object, options: command.Options, *arguments: object) -> Dub:
        asked.append(options.timeout_ms)
        return Dub(np.zeros((44_107, 1), np.int16), [dubbed(fragment(0))])

    monkeypatch.setattr(command, "_run", note)
    for arguments in [], ["--timeout-ms", 8_000]:
        result = run(source, "-o", source.with_name("out.wav"), "--to", "es", *arguments)
        assert "1 fragment: 1 success" in result.output
    assert asked == [30_000, 8_000]


def test_engines_that_cannot_run_here_are_named_before_anything_is_decoded(
    undecodable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASR_MODEL", "no-such-model")
    result = run(undecodable, "-o", tmp_path / "out.wav", "--to", "es", "--profile", "embedded")
    assert result.exit_code == 1
    assert "no-such-model" in result.output


@pytest.mark.usefixtures("server_found")
@pytest.mark.parametrize(("second", "code"), [("success", 0), ("partial", 0), ("failed", 1)])
def test_a_failed_fragment_shows_in_the_exit_status_and_the_report(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, code: int
) -> None:
    results = [dubbed(fragment(0)), dubbed(fragment(1), status=second)]
    if second == "failed":
        results[1] = failed(fragment(1), ErrorCode.TTS_SYNTHESIS_FAILED)
    samples: Pcm = np.zeros((44_107, 1), np.int16)
    monkeypatch.setattr(command, "_run", lambda *arguments: Dub(samples, results))
    result = run(source, "-o", tmp_path / "out.wav", "--to", "es", "--cut", "fixed", "--fragment-ms", "1000")
    assert result.exit_code == code, result.output
    counts = {status: ["success", second].count(status) for status in ("success", "partial", "failed")}
    assert f"2 fragments: {', '.join(f'{count} {status}' for status, count in counts.items())}" in result.output
    assert ("TTS_SYNTHESIS_FAILED" in result.output) == (second == "failed")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["status"] for entry in report["fragments"]] == ["success", second]
    assert report["source"] == str(source)
    assert report["duration_ms"] == 2_001
    assert "dicho 0" in (tmp_path / "subtitles.vtt").read_text()
    assert read_media(tmp_path / "out.wav").samples.shape == (44_107, 1)


@pytest.mark.usefixtures("server_found")
def test_what_was_said_is_left_when_the_sound_cannot_be_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: object) -> None:
        raise MediaError(f"{path}: No space left on device")

    monkeypatch.setattr(command, "_run", lambda *arguments: Dub(np.zeros((44_107, 1), np.int16), [dubbed(fragment(0))]))
    monkeypatch.setattr("sts_trio.client.media.write_media", full)
    result = run(source, "-o", tmp_path / "out.wav", "--to", "es")
    assert result.exit_code == 1
    assert "out.wav: No space left on device\nwrote subtitles.vtt and report.json" in result.output
    assert "dicho 0" in (tmp_path / "subtitles.vtt").read_text()
    assert len(json.loads((tmp_path / "report.json").read_text())["fragments"]) == 1


@pytest.mark.usefixtures("server_found")
@pytest.mark.parametrize("name", ["talk [dQw4w9WgXcQ].wav", "[red]talk[/b].wav", "talk :smile:.wav"])
def test_names_of_files_are_shown_as_they_are(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    samples: Pcm = np.zeros((44_107, 1), np.int16)
    monkeypatch.setattr(command, "_run", lambda *arguments: Dub(samples, [dubbed(fragment(0))]))
    folder = (tmp_path / name).parent
    folder.mkdir(exist_ok=True)
    named = source.rename(folder / "in [source].wav")
    result = run(named, "-o", tmp_path / name, "--to", "es")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / name}, " in result.output
    assert "in [source].wav in es" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pcm_s16le", "m4a"])
def test_without_a_url_it_brings_its_own_server(source: Path, tmp_path: Path, format: str) -> None:
    arguments = ["-o", str(tmp_path / "out.flac"), "--to", "es", "--profile", "embedded", "--fragment-ms", "1000"]
    done = subprocess.run(
        [sys.executable, "-m", "sts_trio", "dub", source, *arguments, "--format", format, "--cut", "fixed"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    dub = read_media(tmp_path / "out.flac")
    assert dub.samples.shape == (44_107, 1)
    assert dub.rate_hz == 22_050
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["transcript"] for entry in report["fragments"]] == ["", ""]  # a tone says nothing
