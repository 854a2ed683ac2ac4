"""Speech recognition with Whisper, by faster-whisper and CTranslate2, on a GPU or a CPU: what it needs, and loading it.

What a loaded model does is in `listener`, what of its answers is believed in `hearing`.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from protocol.errors import ErrorCode

from ..offload import available_cores
from .base import AsrRequest, EngineFailure, EngineUnavailable, Instance, Offload, Transcript
from .catalogue import how_to_repair
from .gpu import is_out_of_memory, preload_cublas
from .listener import Listener, whisper_code

GIB: Final = 2**30

PROMPT_TOKENS: Final = ("<|startoftranscript|>", "<|startofprev|>", "<|transcribe|>", "<|notimestamps|>")
"""What prompts are made of, beside languages: the tokenizer and the model must mean the same by them."""


class WhisperEngine:
    """`AsrEngine` on a Whisper model in CTranslate2's format.

    Args:
        folder: with the model's files, all there (`find_model`).
        name: of the model, as metadata and logs give it.
        device: ``auto``, ``cpu`` or ``cuda``.
        compute_type: of CTranslate2, or ``auto``: float16 on a GPU, int8 on a CPU.
        slots: instances that will run side by side and share the CPU's cores.

    Attributes:
        device, compute_type: what ``auto`` has become.
        languages: Whisper's codes of what the model knows.

    Raises:
        EngineUnavailable: faster-whisper is not installed, the machine has no such device or arithmetic, or the
            model's vocabulary cannot be read.
    """

    def __init__(self, folder: Path, name: str, device: str, compute_type: str, slots: int, max_batch: int) -> None:
        try:
            import ctranslate2
            import faster_whisper  # noqa: F401  # so that an installation that is broken is known at start
        except ImportError as error:
            raise EngineUnavailable(
                f"ASR_MODEL: {name} needs the Python package faster-whisper ({error}): pip install 'sts-trio[asr]'"
            ) from error
        self.name = name
        self.max_batch = max_batch
        self._folder = folder
        self._threads = max(1, available_cores() // slots)
        self.device = _device(device, ctranslate2.get_cuda_device_count())
        self.compute_type = _compute_type(
            compute_type, self.device, ctranslate2.get_supported_compute_types(self.device)
        )
        self._specials = _special_tokens(folder)
        self.languages = _languages(self._specials)

    @property
    def gpu_memory_bytes(self) -> int:
        """Estimated: the weights in their arithmetic, the CUDA context, and for each clip of a batch the attention of
        the encoder and the beams of the decoder, which grow with the weights.
        """
        if self.device == "cpu":
            return 0
        # The models of the catalogue are stored as float16.
        stored = (self._folder / "model.bin").stat().st_size
        weights = stored * (2 if self.compute_type == "float32" else 0.5 if "int8" in self.compute_type else 1)
        return int(weights + GIB / 2 + self.max_batch * (stored / 4 + GIB / 16))

    def supports(self, language: str) -> bool:
        """The languages of the model, of whatever region."""
        return whisper_code(language) in self.languages

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[AsrRequest, Transcript]]:
        """Load the model and let it hear something; leaving the context frees its memory."""
        listener = await offload(self._load)
        try:
            yield _Instance(listener, offload)
        finally:
            listener.close()

    def _load(self) -> Listener:
        from faster_whisper import WhisperModel

        if self.device == "cuda":
            preload_cublas()
        try:
            _check_preprocessor(self._folder)
            model = WhisperModel(
                str(self._folder), device=self.device, compute_type=self.compute_type, cpu_threads=self._threads
            )
            for token in (*PROMPT_TOKENS, *(f"<|{language}|>" for language in self.languages)):
                if self._specials.get(token) != model.hf_tokenizer.token_to_id(token):
                    raise ValueError(f"tokenizer.json is of another model: it has {token} in another place, or not")
            listener = Listener(model, self.languages)
            # A GPU chooses its kernels and takes its memory for the largest batch now, and not in the first fragment.
            listener.warm(self.max_batch if self.device == "cuda" else 1)
        # Whatever the libraries raise over files that are not what they should be; tokenizers raises Exception itself.
        except Exception as error:
            if is_out_of_memory(error) or (isinstance(error, EngineFailure) and error.code is ErrorCode.GPU_OOM):
                raise EngineUnavailable(
                    f"ASR_MODEL: {self.name} does not fit into the GPU's memory: set fewer ASR_SLOTS, a smaller "
                    "ASR_MAX_BATCH or ASR_MODEL, or ASR_DEVICE=cpu"
                ) from error
            if "libcublas" in str(error) or "libcudnn" in str(error):
                raise EngineUnavailable(
                    f"ASR_MODEL={self.name}: CTranslate2 lacks a library of CUDA ({error}): "
                    "pip install 'sts-trio[gpu]', or set ASR_DEVICE=cpu"
                ) from error
            raise EngineUnavailable(
                f"ASR_MODEL: the model in {self._folder} cannot be loaded ({error}): {how_to_repair(self._folder)}"
            ) from error
        return listener


@frozen
class _Instance:
    _listener: Listener
    _offload: Offload

    async def __call__(self, batch: Sequence[AsrRequest], /) -> Sequence[Transcript | EngineFailure]:
        return await self._offload(self._listener.hear, batch)


def _device(wanted: str, gpus: int) -> str:
    if wanted == "cuda" and not gpus:
        raise EngineUnavailable(
            "ASR_DEVICE=cuda: CTranslate2 sees no GPU here (is there a driver, is CUDA_VISIBLE_DEVICES right?): "
            "set ASR_DEVICE=cpu or auto"
        )
    if wanted == "auto":
        return "cuda" if gpus else "cpu"
    return wanted


def _compute_type(wanted: str, device: str, supported: Collection[str]) -> str:
    if wanted == "auto":
        best = ("float16", "int8_float32", "float32") if device == "cuda" else ("int8", "float32")
        return next(kind for kind in best if kind in supported)
    if wanted not in supported:
        raise EngineUnavailable(
            f"ASR_COMPUTE_TYPE={wanted}: the {'GPU' if device == 'cuda' else 'CPU'} of this machine can do "
            f"{', '.join(sorted(supported))}; set one of these, or auto"
        )
    return wanted


def _check_preprocessor(folder: Path) -> None:
    """faster-whisper only logs when it cannot read how audio is prepared, and prepares it as for older models."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        json.loads(path.read_text(encoding="utf-8"))


def _special_tokens(folder: Path) -> Mapping[str, int]:
    """The tokens of the model that are no text, and their numbers; the empty one is how CTranslate2 knows a
    multilingual model, since the vocabularies of the others have the languages' tokens too.
    """
    path = next((path for path in (folder / "vocabulary.json", folder / "vocabulary.txt") if path.is_file()), None)
    if path is None:
        raise EngineUnavailable(f"ASR_MODEL: {folder} has no vocabulary.json and no vocabulary.txt")
    try:
        text = path.read_text(encoding="utf-8")
        tokens = json.loads(text) if path.suffix == ".json" else text.split("\n")[:-1]
        return {token: number for number, token in enumerate(tokens) if not token or token.startswith("<|")}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise EngineUnavailable(f"ASR_MODEL: {path} cannot be read: {error}") from error


def _languages(specials: Collection[str]) -> frozenset[str]:
    """What the model has tokens for."""
    if "" not in specials:
        return frozenset({"en"})
    from faster_whisper.tokenizer import _LANGUAGE_CODES  # a model may have more than the library takes

    codes = (re.fullmatch(r"<\|([a-z]{2,3})\|>", token) for token in specials)
    return frozenset(code[1] for code in codes if code) & set(_LANGUAGE_CODES)
