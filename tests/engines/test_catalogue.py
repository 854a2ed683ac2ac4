"""Models by name or path: what is there, what is half there, and what would help."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sts_trio.config import Settings
from sts_trio.engines.base import EngineUnavailable
from sts_trio.engines.catalogue import (
    MODELS,
    WHISPER_FILES,
    XTTS_FILES,
    Presence,
    configured_models,
    find_model,
    is_path,
    presence,
)
from sts_trio.engines.manifest import FileRecord, Manifest

TINY = "faster-whisper-tiny"


def install(folder: Path, *, with_manifest: bool = True) -> Path:
    """As a download leaves it."""
    folder.mkdir(parents=True)
    records = {}
    for name in MODELS[TINY].required:
        content = name.encode()
        (folder / name).write_bytes(content)
        records[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    if with_manifest:
        Manifest("Systran/faster-whisper-tiny", "0" * 40, records).write(folder)
    return folder


def refusal(models_dir: Path, name: str = TINY) -> str:
    with pytest.raises(EngineUnavailable) as refused:
        find_model("ASR_MODEL", name, models_dir, WHISPER_FILES)
    return str(refused.value)


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_name_is_a_folder_in_the_folder_of_models(tmp_path: Path, with_manifest: bool) -> None:
    folder = install(tmp_path / TINY, with_manifest=with_manifest)
    assert find_model("ASR_MODEL", TINY, tmp_path, WHISPER_FILES) == folder
    assert presence(MODELS[TINY], tmp_path) is (Presence.COMPLETE if with_manifest else Presence.UNVERIFIED)


def test_a_path_is_a_folder_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "home" / "mine", with_manifest=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert find_model("ASR_MODEL", "~/mine", Path("/nowhere"), WHISPER_FILES) == tmp_path / "home" / "mine"
    assert [is_path(name) for name in ("~/mine", "./mine", "/a", "mine", TINY)] == [True, True, True, False, False]


def test_what_is_not_there_is_to_be_pulled(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (f"ASR_MODEL={TINY}: there is no folder {tmp_path / TINY}: sts-trio models pull {TINY}")
    assert presence(MODELS[TINY], tmp_path) is Presence.ABSENT
    (tmp_path / TINY).mkdir()
    assert presence(MODELS[TINY], tmp_path) is Presence.ABSENT


@pytest.mark.parametrize("name", WHISPER_FILES)
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_half_a_model_names_the_file(tmp_path: Path, name: str, damage: str) -> None:
    file = install(tmp_path / TINY) / name
    file.unlink()
    if damage == "empty":
        file.touch()
    assert refusal(tmp_path) == f"ASR_MODEL={TINY}: {file} is missing or empty: sts-trio models pull {TINY}"
    assert presence(MODELS[TINY], tmp_path) is Presence.DAMAGED


def test_half_a_model_at_a_path_names_what_belongs_there(tmp_path: Path) -> None:
    said = refusal(Path("/nowhere"), f"{tmp_path}/none")
    assert said.endswith(
        f"there is no folder {tmp_path}/none: ASR_MODEL must be a folder with {', '.join(WHISPER_FILES)}"
    )
    (install(tmp_path / "mine", with_manifest=False) / "model.bin").unlink()
    assert "model.bin is missing or empty: ASR_MODEL must be" in refusal(Path("/nowhere"), f"{tmp_path}/mine")


def test_a_file_shorter_than_it_was_downloaded_is_no_model(tmp_path: Path) -> None:
    """It would be loaded first, and what a library says of half a file helps nobody."""
    file = install(tmp_path / TINY) / "model.bin"
    file.write_bytes(b"model")
    assert refusal(tmp_path) == (f"ASR_MODEL={TINY}: {file} has 5 bytes and should have 9: sts-trio models pull {TINY}")
    assert presence(MODELS[TINY], tmp_path) is Presence.DAMAGED


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    manifest = install(tmp_path / TINY) / "manifest.json"
    manifest.write_text("{")
    assert f"{manifest} is no manifest of a model: sts-trio models pull {TINY}" in refusal(tmp_path)
    manifest.write_text('{"repository": "r", "revision": "c", "files": {}}')
    assert f"{manifest} names no file" in refusal(tmp_path)
    manifest.unlink()
    manifest.mkdir()
    assert f"{manifest} cannot be read: Is a directory" in refusal(tmp_path)
    assert presence(MODELS[TINY], tmp_path) is Presence.DAMAGED


def test_what_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / TINY)
    monkeypatch.setattr("os.access", lambda *args: False)  # root may read everything
    assert "config.json may not be read by this user: chmod or chown it" in refusal(tmp_path)


def test_a_manifest_is_what_was_written(tmp_path: Path) -> None:
    written = Manifest("a/b", "f" * 40, {"model.bin": FileRecord(3, "aa"), "x": FileRecord(4, "bb")})
    assert Manifest.read(tmp_path) is None
    written.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    assert written.size == 7


def test_the_configuration_names_models_to_download_or_none() -> None:
    def named(**environment: str) -> dict[str, str]:
        return {variable: model.name for variable, model in configured_models(Settings.load(environment)).items()}

    assert named() == {"ASR_MODEL": "faster-whisper-base", "TTS_MODEL": "coqui-xtts-v2"}
    assert named(ASR_MODEL="/mine", TTS_MODEL="espeak-ng") == {}


def test_every_model_has_what_its_engine_loads_and_says_its_licence() -> None:
    for name, model in MODELS.items():
        needed = XTTS_FILES if name == "coqui-xtts-v2" else WHISPER_FILES
        assert set(needed) <= set(model.required)
        assert model.name == name
        assert not is_path(name)
        assert model.licence
        assert model.megabytes > 0
    assert [name for name, model in MODELS.items() if model.must_agree] == ["coqui-xtts-v2"]
