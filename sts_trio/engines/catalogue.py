"""The models that can be downloaded: their names, where they come from, what they consist of and where they lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from attrs import frozen

from ..config import Settings
from .base import EngineUnavailable
from .manifest import MANIFEST, Manifest, ManifestError

WHISPER_FILES: Final = ("config.json", "model.bin", "tokenizer.json")
"""What every Whisper model that was converted for CTranslate2 has; a vocabulary in one of two formats comes with it."""

XTTS_FILES: Final = ("config.json", "model.pth", "vocab.json")
"""What every XTTS checkpoint has; speakers (`XTTS_SPEAKERS`) may come with it."""

XTTS_SPEAKERS: Final = "speakers_xtts.pth"

CPML: Final = "Coqui Public Model License 1.0.0 (no commercial use): https://coqui.ai/cpml"


@frozen
class DownloadableModel:
    """A model of the Hugging Face hub.

    Attributes:
        name: as `ASR_MODEL` or `TTS_MODEL` has it, and the folder it lies in.
        patterns: which files of the repository it consists of.
        required: files without which it cannot be loaded.
        megabytes: about how large it is.
        must_agree: whether the user has to have accepted the licence.
    """

    name: str
    repository: str
    patterns: tuple[str, ...]
    required: tuple[str, ...]
    licence: str
    megabytes: int
    must_agree: bool = False


def _whisper(size: str, megabytes: int, owner: str = "Systran") -> DownloadableModel:
    return DownloadableModel(
        name=f"faster-whisper-{size}",
        repository=f"{owner}/faster-whisper-{size}",
        patterns=("config.json", "model.bin", "tokenizer.json", "vocabulary.*", "preprocessor_config.json"),
        required=WHISPER_FILES,
        licence="MIT",
        megabytes=megabytes,
    )


MODELS: Final = {
    model.name: model
    for model in (
        _whisper("tiny", 78),
        _whisper("tiny.en", 78),
        _whisper("base", 148),
        _whisper("base.en", 148),
        _whisper("small", 486),
        _whisper("small.en", 486),
        _whisper("medium", 1_530),
        _whisper("medium.en", 1_530),
        _whisper("large-v1", 3_090),
        _whisper("large-v2", 3_090),
        _whisper("large-v3", 3_090),
        _whisper("large-v3-turbo", 1_620, owner="mobiuslabsgmbh"),
        DownloadableModel(
            name="coqui-xtts-v2",
            repository="coqui/XTTS-v2",
            patterns=("config.json", "model.pth", "vocab.json", XTTS_SPEAKERS, "LICENSE.txt"),
            required=(*XTTS_FILES, XTTS_SPEAKERS),
            licence=CPML,
            megabytes=1_880,
            must_agree=True,
        ),
    )
}
"""By name."""


class Presence(StrEnum):
    """How much of a downloadable model is in the folder of models."""

    COMPLETE = "complete"
    UNVERIFIED = "unverified"
    """It can be loaded, but was not put there by a download: nothing says what it should be."""
    DAMAGED = "damaged"
    """Files are missing or have another size than the download had."""
    ABSENT = "absent"


def presence(model: DownloadableModel, models_dir: Path) -> Presence:
    """What is there of a model. Takes no time: files are not read."""
    folder = models_dir / model.name
    try:
        if not folder.is_dir() or not any(folder.iterdir()):
            return Presence.ABSENT
        manifest = Manifest.read(folder)
    except (ManifestError, PermissionError):
        return Presence.DAMAGED
    if manifest is not None:
        return Presence.DAMAGED if any(manifest.misfits(folder)) else Presence.COMPLETE
    return Presence.UNVERIFIED if all((folder / file).is_file() for file in model.required) else Presence.DAMAGED


def configured_models(settings: Settings) -> dict[str, DownloadableModel]:
    """Those of `MODELS` that the settings name, by the variable that does."""
    named = {"ASR_MODEL": settings.asr_model, "TTS_MODEL": settings.tts_model}
    return {variable: MODELS[name] for variable, name in named.items() if name in MODELS}


def find_model(variable: str, name: str, models_dir: Path, required: Sequence[str]) -> Path:
    """The folder of the model that `variable` names: one of `MODELS` in `models_dir`, or a path.

    Args:
        variable: ``ASR_MODEL`` or ``TTS_MODEL``.
        required: files that must be there where `name` is a path.

    Raises:
        EngineUnavailable: it is not there, or not all of it; the message names the folder, the file and the remedy.
    """
    if name in MODELS:
        folder, required = models_dir / name, MODELS[name].required
        remedy = how_to_pull(MODELS[name], folder)
    else:
        folder = Path(os.path.expanduser(name))
        remedy = f"{variable} must be a folder with {', '.join(required)}"
    if not folder.is_dir():
        raise EngineUnavailable(f"{variable}={name}: there is no folder {folder}: {remedy}")
    for file in required:
        path = folder / file
        if not path.is_file() or not path.stat().st_size:
            raise EngineUnavailable(f"{variable}={name}: {path} is missing or empty: {remedy}")
        if not os.access(path, os.R_OK):
            raise EngineUnavailable(f"{variable}={name}: {path} may not be read by this user: chmod or chown it")
    try:
        manifest = Manifest.read(folder)
    except ManifestError as error:
        raise EngineUnavailable(f"{variable}={name}: {error}: {remedy}") from error
    for misfit in manifest.misfits(folder) if manifest else ():
        raise EngineUnavailable(f"{variable}={name}: {misfit}: {remedy}")
    return folder


def how_to_pull(model: DownloadableModel, folder: Path) -> str:
    """The command that brings a model to `folder`, or brings it there again."""
    agreed = "COQUI_TOS_AGREED=1 " if model.must_agree else ""
    by_hand = folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists()
    return f"{agreed}sts-trio models pull {model.name}{' --force' if by_hand else ''}"


def how_to_repair(folder: Path) -> str:
    """What helps against a model in `folder` that cannot be loaded."""
    model = MODELS.get(folder.name)
    return "convert or copy it again" if model is None else how_to_pull(model, folder)


def is_path(name: str) -> bool:
    """Whether a configured model is a folder and not a name."""
    return "/" in name
