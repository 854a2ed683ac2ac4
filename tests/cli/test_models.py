"""`sts-trio models`: what it downloads is complete and genuine, or not there."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result

from sts_trio.__main__ import main
from sts_trio.cli import models as command
from sts_trio.engines.catalogue import find_model

from ..engines.conftest import need
from .hub_server import COMMIT, Fault, Hub, hub_server

MIB: Final = 2**20
TINY: Final = "faster-whisper-tiny"
XTTS: Final = "coqui-xtts-v2"

FILES: Final = {
    "README.md": b"not a part of the model",
    "config.json": b'{"a": 1}',
    "model.bin": bytes(range(256)) * (5 * MIB // 256) + b"end",
    "tokenizer.json": b"{}" * 30_000,
    "vocabulary.txt": b"the\nof\n",
    "model.pth": b"weights" * 10_000,
    "vocab.json": b"{}",
    "speakers_xtts.pth": b"speakers" * 5_000,
    "LICENSE.txt": b"no commercial use",
}
OF_TINY: Final = ["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]


@pytest.fixture
def models_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    need(importlib.util.find_spec("huggingface_hub"), "pip install 'sts-trio[asr]'")
    folder = tmp_path / "models"
    for name in ("ASR_MODEL", "TTS_MODEL", "COQUI_TOS_AGREED", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELS_DIR", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))  # no token of whoever runs this
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return folder


@pytest.fixture
def hub(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(dict(FILES)) as server:
        # The variable, for processes; what the client made of it when it was imported, for this one.
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        files = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command.models, arguments)


def refused(*arguments: str) -> str:
    """What is said by a command that must fail, with its exit status and without a traceback."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return result.output


def pulled(*arguments: str) -> str:
    result = run("pull", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def in_place(models_dir: Path) -> list[str]:
    """What would be taken for a model, and what lies about with it."""
    return sorted(path.name for path in models_dir.iterdir() if not path.name.startswith("."))


def left_over(models_dir: Path) -> list[Path]:
    return sorted(models_dir.glob(".*.incomplete"))


# ------------------------------------------------------------------------------------------- downloading


@pytest.mark.slow
def test_a_model_is_downloaded_verified_and_then_needs_no_hub(hub: Hub, models_dir: Path) -> None:
    def sts_trio(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "sts_trio", "models", *arguments], check=True, capture_output=True, text=True
        ).stdout

    said = sts_trio("pull", TINY)
    assert f"{TINY}: Systran/faster-whisper-tiny, 78 MB, MIT" in said
    assert f"{TINY}: complete and verified in {models_dir / TINY}" in said
    folder = find_model("ASR_MODEL", TINY, models_dir, ["config.json"])
    assert sorted(path.name for path in folder.iterdir()) == sorted([*OF_TINY, "manifest.json"])
    assert all((folder / name).read_bytes() == FILES[name] for name in OF_TINY)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert (manifest["repository"], manifest["revision"]) == ("Systran/faster-whisper-tiny", COMMIT)
    assert {name: record["size"] for name, record in manifest["files"].items()} == {n: len(FILES[n]) for n in OF_TINY}
    assert left_over(models_dir) == []

    hub.status, hub.requests = 503, []
    assert "already complete" in sts_trio("pull", TINY)
    assert "complete and unchanged" in sts_trio("check", TINY)
    assert "complete" in sts_trio("list")
    assert hub.requests == []


def test_by_default_it_is_what_the_configuration_names(
    hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASR_MODEL", TINY)
    monkeypatch.setenv("COQUI_TOS_AGREED", "1")
    pulled()
    assert in_place(models_dir) == [XTTS, TINY]
    assert (models_dir / XTTS / "LICENSE.txt").read_bytes() == FILES["LICENSE.txt"]
    hub.requests.clear()
    monkeypatch.setenv("TTS_MODEL", "/somewhere/a-checkpoint")
    monkeypatch.setenv("ASR_MODEL", "pocketsphinx")
    assert "nothing to download: ASR_MODEL=pocketsphinx, TTS_MODEL=/somewhere/a-checkpoint" in pulled()
    assert hub.requests == []


def test_a_licence_is_agreed_to_before_anything_is_downloaded(
    hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused("pull", TINY, XTTS)
    assert "Coqui Public Model License 1.0.0 (no commercial use): https://coqui.ai/cpml" in said
    assert "COQUI_TOS_AGREED=1" in said
    assert hub.requests == []
    assert not models_dir.exists()
    monkeypatch.setenv("COQUI_TOS_AGREED", "1")
    pulled(XTTS)
    assert in_place(models_dir) == [XTTS]


def test_the_token_is_shown_to_the_hub_and_to_nobody_else(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pulled(TINY)
    shown = {(request.host, request.headers.get("authorization")) for request in hub.requests}
    assert shown == {("127.0.0.1", "Bearer hf_secret"), ("localhost", None)}


def test_what_is_there_and_unchanged_is_not_downloaded_again_unless_it_is_forced(hub: Hub, models_dir: Path) -> None:
    pulled(TINY)
    hub.requests.clear()
    assert "already complete" in pulled(TINY)
    assert hub.fetched() == []
    hub.files["config.json"] = b'{"a": 2}'
    pulled(TINY, "--force")
    assert hub.fetched() == OF_TINY
    assert (models_dir / TINY / "config.json").read_bytes() == b'{"a": 2}'
    assert left_over(models_dir) == []


# ------------------------------------------------------------------------------------------- going on where it stopped


@pytest.mark.slow
def test_an_interrupted_download_leaves_no_model_and_the_next_one_goes_on(hub: Hub, models_dir: Path) -> None:
    hub.faults["model.bin"] = Fault(stall_after=3 * MIB + 1_000)
    # Where these tests run in the background of a shell, SIGINT is ignored, and so it would be by a child process.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command_line = [sys.executable, "-c", f"{heed}; from sts_trio.__main__ import main; main()", "models", "pull", TINY]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert hub.stalled.wait(20)
            _wait_for_bytes(models_dir / f".{TINY}@{COMMIT}.incomplete" / "model.bin", 3 * MIB)
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 1, (out, said)
    assert said.strip() == f"Error: interrupted: `sts-trio models pull {TINY}` goes on where this stopped"
    assert in_place(models_dir) == []

    hub.faults.clear()
    hub.requests.clear()
    pulled(TINY)
    assert hub.fetched() == ["model.bin", "tokenizer.json", "vocabulary.txt"]
    assert next(r.headers["range"] for r in hub.requests if "range" in r.headers) == f"bytes={3 * MIB}-"
    assert (models_dir / TINY / "model.bin").read_bytes() == FILES["model.bin"]


def _wait_for_bytes(path: Path, size: int) -> None:
    give_up = time.monotonic() + 20
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.slow
def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, models_dir: Path) -> None:
    hub.faults["model.bin"] = Fault(cut_after=2 * MIB)
    pulled(TINY)
    ranges = [request.headers.get("range") for request in hub.requests if request.path == "/cdn/model.bin"]
    assert ranges == [None, f"bytes={2 * MIB}-"]
    assert (models_dir / TINY / "model.bin").read_bytes() == FILES["model.bin"]


def test_what_is_left_of_another_commit_is_not_taken_up(hub: Hub, models_dir: Path) -> None:
    hub.faults["tokenizer.json"] = Fault(status=503)
    refused("pull", TINY)
    assert len(left_over(models_dir)) == 1
    hub.faults.clear()
    hub.commit = COMMIT[::-1]
    hub.files["model.bin"] = FILES["model.bin"][::-1]
    pulled(TINY)
    assert (models_dir / TINY / "model.bin").read_bytes() == hub.files["model.bin"]
    assert left_over(models_dir) == []


def test_more_bytes_than_there_should_be_are_no_half_of_anything(hub: Hub, models_dir: Path) -> None:
    partial = models_dir / f".{TINY}@{COMMIT}.incomplete"
    partial.mkdir(parents=True)
    (partial / "config.json").write_bytes(b"x" * 100)
    pulled(TINY)
    assert (models_dir / TINY / "config.json").read_bytes() == FILES["config.json"]


# ------------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize("name", ["model.bin", "config.json"])
def test_another_content_than_the_hub_says_is_dropped(hub: Hub, models_dir: Path, name: str) -> None:
    """Large files have a SHA-256 at the hub, small ones the name that git gives their content."""
    changed = bytearray(FILES[name])
    changed[len(changed) // 2] ^= 1
    hub.faults[name] = Fault(sent=bytes(changed))
    said = refused("pull", TINY)
    assert f"{name} of {TINY} arrived with another content than {hub.url} says it has" in said
    assert in_place(models_dir) == []
    assert not (left_over(models_dir)[0] / name).exists()
    hub.faults.clear()
    pulled(TINY)
    assert (models_dir / TINY / name).read_bytes() == FILES[name]


def test_a_body_that_is_shorter_than_it_should_be_is_no_file(hub: Hub, models_dir: Path) -> None:
    hub.faults["model.bin"] = Fault(short_by=7)
    said = refused("pull", TINY)
    assert "Consistency check failed" in said
    assert in_place(models_dir) == []


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "HF_ENDPOINT"), (500, "try again later")]
)
def test_what_the_hub_refuses_is_said_with_a_remedy(hub: Hub, models_dir: Path, status: int, remedy: str) -> None:
    hub.status = status
    said = refused("pull", TINY)
    assert f"{hub.url} answered {status} for Systran/faster-whisper-tiny" in said
    assert remedy in said
    assert len(said.splitlines()) == 2
    assert in_place(models_dir) == []


def test_a_file_that_the_hub_refuses_leaves_no_model(hub: Hub, models_dir: Path) -> None:
    hub.faults["model.bin"] = Fault(status=403)
    assert "answered 403" in refused("pull", TINY)
    assert in_place(models_dir) == []


def test_a_repository_that_lacks_a_file_is_not_half_downloaded(hub: Hub) -> None:
    del hub.files["tokenizer.json"]
    assert "has no tokenizer.json" in refused("pull", TINY)
    assert hub.fetched() == []


@pytest.mark.parametrize("body", [b"<html>please log in to this network</html>", b"[]", b"{}", b'{"sha": 1}'])
def test_something_else_than_a_hub_is_recognised(hub: Hub, body: bytes) -> None:
    hub.body = body
    assert "no Hugging Face hub: see HF_ENDPOINT" in refused("pull", TINY)


def test_a_hub_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    said = refused("pull", TINY)
    assert "the download from http://127.0.0.1:9 failed" in said
    assert "HTTPS_PROXY" in said


def test_a_client_that_was_told_to_stay_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused("pull", TINY)
    assert hub.requests == []


def test_a_disk_without_room_is_seen_before_anything_is_downloaded(hub: Hub) -> None:
    hub.faults["model.bin"] = Fault(announced_size=10**18)
    said = refused("pull", TINY)
    assert "1000000000.0 GB are still to be downloaded" in said
    assert "MODELS_DIR" in said
    assert hub.fetched() == []


@pytest.mark.slow
def test_a_disk_that_is_full_half_way_leaves_what_the_next_download_goes_on_with(hub: Hub, models_dir: Path) -> None:
    """A limit on the size of files is what a full disk is like, and needs no disk."""
    done = subprocess.run(
        [sys.executable, "-m", "sts_trio", "models", "pull", TINY],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB)),
    )
    assert done.returncode == 1
    assert f"cannot write to {models_dir}: File too large: free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert in_place(models_dir) == []
    hub.requests.clear()
    pulled(TINY)
    assert "range" in hub.requests[1].headers


def test_a_file_where_the_folder_of_models_should_be(hub: Hub, models_dir: Path) -> None:
    models_dir.write_text("no folder")
    said = refused("pull", TINY)
    assert f"{models_dir}: File exists: MODELS_DIR must be a folder that this user may write to" in said


def test_a_name_that_no_model_has(models_dir: Path) -> None:
    for subcommand in ("pull", "check"):
        said = refused(subcommand, "faster-whisper-giant")
        assert "there is no model faster-whisper-giant; there are faster-whisper-tiny," in said


def test_two_downloads_do_not_write_to_one_folder(hub: Hub, models_dir: Path) -> None:
    models_dir.mkdir()
    with (models_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"another `sts-trio models pull` is writing to {models_dir}" in refused("pull", TINY)
    pulled(TINY)


def test_a_model_that_somebody_else_put_there_is_not_replaced_unasked(hub: Hub, models_dir: Path) -> None:
    (models_dir / TINY).mkdir(parents=True)
    (models_dir / TINY / "model.bin").write_bytes(b"trained by hand")
    assert "was not made by `sts-trio models pull`" in refused("pull", TINY)
    assert (models_dir / TINY / "model.bin").read_bytes() == b"trained by hand"
    pulled(TINY, "--force")
    assert (models_dir / TINY / "model.bin").read_bytes() == FILES["model.bin"]


@pytest.mark.slow
def test_without_the_clients_package_the_extra_is_named(models_dir: Path) -> None:
    code = "import sys; sys.modules['huggingface_hub'] = None; from sts_trio.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "models", "pull", TINY], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'sts-trio[asr]'" in done.stderr
    assert in_place(models_dir) == []


# ------------------------------------------------------------------------------------------- checking and listing


def test_check_finds_what_changed_and_pull_brings_it_back(hub: Hub, models_dir: Path) -> None:
    pulled(TINY)
    folder = models_dir / TINY
    content = bytearray((folder / "model.bin").read_bytes())
    content[4_321] ^= 1
    (folder / "model.bin").write_bytes(content)
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_bytes(b"{}")
    said = refused("check", TINY)
    assert f"{TINY}: {folder / 'model.bin'} differs from what was downloaded" in said
    assert f"{TINY}: {folder / 'tokenizer.json'} is missing" in said
    assert f"{TINY}: {folder / 'config.json'} has 2 bytes and should have 8" in said
    assert "vocabulary.txt" not in said
    assert f"this brings what is missing: sts-trio models pull {TINY}" in said
    pulled(TINY)
    assert f"{TINY}: complete and unchanged" in run("check", TINY).output


def test_check_looks_at_what_is_here_and_at_what_the_configuration_names(
    hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no model in" in run("check", "--profile", "embedded").output
    pulled(TINY)
    result = run("check", "--profile", "embedded")
    assert result.exit_code == 0
    assert f"{TINY}: complete and unchanged" in result.output
    monkeypatch.setenv("ASR_MODEL", "faster-whisper-small")
    said = refused("check")
    assert f"faster-whisper-small: {models_dir / 'faster-whisper-small'} is not there" in said
    assert f"{TINY}: complete and unchanged" in said


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"repository": 1, "revision": "", "files": {"a": 3}}'])
def test_a_manifest_that_is_none_is_named(hub: Hub, models_dir: Path, manifest: bytes) -> None:
    pulled(TINY)
    (models_dir / TINY / "manifest.json").write_bytes(manifest)
    assert f"{models_dir / TINY / 'manifest.json'} is no manifest of a model" in refused("check", TINY)
    pulled(TINY)
    assert run("check", TINY).exit_code == 0


def test_list_shows_what_is_here_and_what_is_used(hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    pulled(TINY)
    by_hand = models_dir / "faster-whisper-small"
    by_hand.mkdir()
    for name in ("config.json", "model.bin", "tokenizer.json"):
        (by_hand / name).write_bytes(b"x")
    damaged = models_dir / "faster-whisper-medium"
    damaged.mkdir()
    (damaged / "config.json").write_bytes(b"x")
    result = run("list")
    assert result.exit_code == 0, result.output
    rows = {cells[0]: cells[1:] for line in result.output.splitlines() if (cells := line.strip("│ ").split("│"))}
    shown = {name.strip(): [cell.strip() for cell in cells] for name, cells in rows.items()}
    assert shown[TINY] == ["78 MB", "complete", "", "MIT"]
    assert shown["faster-whisper-small"][1] == "unverified"
    assert shown["faster-whisper-medium"][1] == "damaged"
    assert shown["faster-whisper-base"][1:3] == ["absent", "ASR_MODEL"]
    assert shown[XTTS][2] == "TTS_MODEL"
    assert "no commercial use" in shown[XTTS][3]


def test_a_configuration_that_cannot_be_used_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STS_PORT", "many")
    for subcommand in ("list", "pull", "check"):
        assert refused(subcommand).startswith("Error: STS_PORT: must be an integer")


def test_the_command_is_a_part_of_sts_trio() -> None:
    assert {"list", "pull", "check"} <= set(CliRunner().invoke(main, ["models", "--help"]).output.split())
