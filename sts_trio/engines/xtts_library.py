"""coqui-tts: how it is imported, and how the files of a checkpoint are read.

Nothing here is imported before an XTTS engine is built: torch and coqui-tts take several seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import structlog
from attrs import frozen

from .base import EngineUnavailable
from .catalogue import XTTS_SPEAKERS, how_to_repair
from .gpu import is_out_of_memory

log = structlog.get_logger(__name__)

LANGUAGES: Final = (
    "ar", "cs", "de", "en", "es", "fr", "hi", "hu", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "zh",
)  # fmt: skip
"""What XTTS v2 was trained on, by the shortest code; a checkpoint may know fewer."""

PACKAGES: Final = {"zh": "pypinyin", "ja": "cutlet", "ko": "ko_speech_tools"}
"""What coqui-tts writes these languages in Latin letters with."""

OUT_OF_MEMORY_REMEDY: Final = "set fewer TTS_SLOTS or TTS_DEVICE=cpu"


@frozen
class Latents:
    """A voice, as the model wants it: two tensors, shapes ``(1, tokens, channels)`` and ``(1, 512, 1)``."""

    gpt: Any
    speaker: Any


def import_library() -> None:
    """Import torch and coqui-tts; seconds the first time.

    Raises:
        EngineUnavailable: one of them is missing or cannot be imported.
    """
    try:
        import torch  # noqa: F401

        _import_torchaudio()
        from transformers.utils import logging

        # It warns of a configuration that coqui-tts makes for each model, and that nobody reads.
        logging.set_verbosity_error()
        import TTS.tts.models.xtts  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # the last are torch's
        raise EngineUnavailable(f"XTTS needs torch and coqui-tts: pip install 'sts-trio[tts]' ({error})") from error


def _import_torchaudio() -> None:
    """The torchaudio of PyPI is built for CUDA: beside a torch for CPUs its compiled part cannot be loaded.

    XTTS uses two functions of it that are plain torch, so it is told that there is no compiled part.
    """
    try:
        import torchaudio
    except OSError:
        extension = ModuleType("torchaudio._extension")
        vars(extension).update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=lambda function: function
        )
        sys.modules[extension.__name__] = extension
        import torchaudio  # noqa: F401


def pick_device(device: str) -> str:
    """``cpu`` or ``cuda``, for what `TTS_DEVICE` says.

    Raises:
        EngineUnavailable: ``cuda`` is asked for and torch sees none.
    """
    import torch

    there = bool(torch.cuda.is_available())
    if device == "cuda" and not there:
        raise EngineUnavailable(
            f"TTS_DEVICE=cuda: torch {torch.__version__} sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, "
            "install a torch that is built for CUDA, or set TTS_DEVICE=cpu"
        )
    return "cuda" if there and device != "cpu" else "cpu"


@frozen
class Checkpoint:
    """What the ``config.json`` of a checkpoint says of it.

    Attributes:
        languages: that it knows, by their shortest code.
        channels: of a latent.
        speaker_channels: of the latent of a speaker.
    """

    languages: Sequence[str]
    channels: int
    speaker_channels: int


def read_configuration(folder: Path) -> Checkpoint:
    """
    Raises:
        EngineUnavailable: ``config.json`` is no configuration of XTTS.
    """
    from TTS.tts.configs.xtts_config import XttsArgs

    path = folder / "config.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["model"] != "xtts":
            raise ValueError(f"it is one of {content['model']!r}")
        known = {str(language).split("-")[0] for language in content["languages"]}
        args = content.get("model_args", {})
        channels, speaker_channels = (
            int(args.get(name, getattr(XttsArgs, name))) for name in ("gpt_n_model_channels", "d_vector_dim")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineUnavailable(
            f"{path} is no configuration of XTTS ({brief(error)}): {how_to_repair(folder)}"
        ) from error
    return Checkpoint([language for language in LANGUAGES if language in known], channels, speaker_channels)


def can_be_read(language: str) -> bool:
    """Whether the package that coqui-tts reads `language` with, where it needs one, is installed and works."""
    package = PACKAGES.get(language)
    if package is None:
        return True
    if importlib.util.find_spec(package) is None:
        return False
    try:
        module = importlib.import_module(package)
        if language == "ja":
            module.Cutlet()  # needs a dictionary, which is a package of its own
    except Exception as error:  # noqa: BLE001 - whatever a compiled package and a dictionary of 1 GB can lead to
        log.warning("tts_language_left_out", language=language, package=package, reason=brief(error))
        return False
    return True


def read_speakers(folder: Path, checkpoint: Checkpoint) -> Mapping[str, Latents]:
    """The speakers that come with the checkpoint, in their order; none where there is no such file.

    Raises:
        EngineUnavailable: the file is damaged, or of another model.
    """
    import torch

    path = folder / XTTS_SPEAKERS
    if not path.is_file():
        return {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        speakers = {
            str(name): Latents(latents["gpt_cond_latent"], latents["speaker_embedding"])
            for name, latents in content.items()
        }
        for name, latents in speakers.items():
            gpt, speaker = tuple(latents.gpt.shape), tuple(latents.speaker.shape)
            tokens = gpt[1:2]
            if gpt != (1, *tokens, checkpoint.channels) or tokens == (0,):
                raise ValueError(f"speaker {name!r} has a gpt_cond_latent of the shape {gpt}")
            if speaker != (1, checkpoint.speaker_channels, 1):
                raise ValueError(f"speaker {name!r} has a speaker_embedding of the shape {speaker}")
            if not (latents.gpt.isfinite().all() and latents.speaker.isfinite().all()):
                raise ValueError(f"speaker {name!r} has latents that are no numbers")
    except Exception as error:  # whatever a damaged pickle, or a file of something else, leads to
        raise EngineUnavailable(
            f"{path} is damaged or of another model ({brief(error)}): {how_to_repair(folder)}"
        ) from error
    return speakers


def check_vocabulary(folder: Path) -> None:
    """See that ``vocab.json`` can be read.

    Raises:
        EngineUnavailable: it cannot.
    """
    from tokenizers import Tokenizer

    path = folder / "vocab.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
        missing = [token for token in ("[START]", "[STOP]") if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(f"it has no {missing[0]}")
    except Exception as error:  # the library raises nothing more specific
        raise EngineUnavailable(f"{path} is no vocabulary of XTTS ({brief(error)}): {how_to_repair(folder)}") from error


def load_model(folder: Path, device: str) -> Any:
    """The model of a checkpoint, ready to be called.

    Raises:
        EngineUnavailable: the checkpoint is damaged, or the GPU too small.
    """
    import torch
    from TTS.tts.configs.xtts_config import XttsConfig
    from TTS.tts.models.xtts import Xtts

    # Some of the algorithms for the vocoder's layers add in whatever order their threads come.
    torch.backends.cudnn.deterministic = True
    path = folder / "config.json"
    try:
        config = XttsConfig()
        config.load_json(str(path))
        model = Xtts(config)
    except Exception as error:  # whatever a field of a wrong type leads to
        raise EngineUnavailable(
            f"{path} is no configuration of XTTS ({brief(error)}): {how_to_repair(folder)}"
        ) from error
    path = folder / "model.pth"
    model._load_checkpoint = _read_weights
    try:
        # The speakers are read by `read_speakers`.
        model.load_checkpoint(config, checkpoint_dir=str(folder), speaker_file_path="", eval=True)
        model.to(device)
    except Exception as error:  # whatever a damaged pickle, or weights of another model, lead to
        if is_out_of_memory(error):
            raise EngineUnavailable(
                f"{path} does not fit into the GPU's memory ({brief(error)}): {OUT_OF_MEMORY_REMEDY}"
            ) from error
        raise EngineUnavailable(
            f"{path} is damaged or no checkpoint of XTTS ({brief(error)}): {how_to_repair(folder)}"
        ) from error
    return model


def _read_weights(path: Path) -> Any:
    """What is in ``model.pth``. The checkpoint as it was published has its configuration pickled beside the weights.

    The library would write the file anew without it: not possible in a folder for reading, the end of the file's
    checksum, and the end of the file where two instances do it at once.
    """
    import torch
    from TTS.config.shared_configs import BaseDatasetConfig
    from TTS.tts.configs.xtts_config import XttsArgs, XttsAudioConfig, XttsConfig

    # The second names are those that the classes had when the checkpoint was made.
    allowed: Sequence[Any] = [
        XttsConfig,
        BaseDatasetConfig,
        XttsArgs,
        XttsAudioConfig,
        (XttsArgs, "TTS.tts.models.xtts.XttsArgs"),
        (XttsAudioConfig, "TTS.tts.models.xtts.XttsAudioConfig"),
    ]
    torch.serialization.add_safe_globals(allowed)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["model"]


def brief(error: BaseException) -> str:
    """What happened, in one line: torch can write a page, whose first line may be a heading."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}" if lines else type(error).__name__
