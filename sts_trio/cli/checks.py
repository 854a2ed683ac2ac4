"""What `sts-trio doctor` looks at. Each check is one function; what it finds is one line of the table, or none.

Whether an engine can run is asked of the engine: a check builds it as the server does, so that the two cannot disagree.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, Final, TypeVar

import trio
from attrs import define, field, frozen

from .. import __version__
from ..audio.stretching import COMMAND as RUBBERBAND
from ..config import ConfigError, Settings
from ..engines import registry
from ..engines.base import AsrEngine, Engine, EngineUnavailable, TranslationEngine, TtsEngine
from ..engines.catalogue import Presence, configured_models, is_path, presence
from ..engines.download import gigabytes
from ..engines.gpu import check_memory, preload_cublas
from ..engines.suite import gpu_demands, threads_needed
from ..groups import innermost
from ..observe import gpu
from ..offload import thread_offload
from ..server.tls import server_context
from . import first_error

KEY_TIMEOUT_S: Final = 3.0
"""What DeepL is given to say whether it takes the key."""

OTHER_FILES: Final = 512
"""Descriptors beside those of connections: the engines and their pipes."""

PACKAGES: Final = {
    "embedded": {"pocketsphinx": "pocketsphinx", "trio_parallel": "trio-parallel"},
    "asr": {"faster_whisper": "faster-whisper", "ctranslate2": "ctranslate2"},
    "translation": {"deepl": "deepl"},
    "tts": {"TTS": "coqui-tts", "torch": "torch", "torchaudio": "torchaudio", "torchcodec": "torchcodec"},
}
"""Of each extra of ours, the modules and the packages they are in."""

EngineT = TypeVar("EngineT", bound=Engine[Any, Any])


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, and probably not as wanted."""
    MISSING = "missing"
    """The server would not start, or could not do its work."""


@frozen
class Finding:
    """One line of the table.

    Attributes:
        subject: what was looked at: a variable of the environment, where one is behind it.
        remedy: what would help; empty where nothing has to, or where `found` says it.
    """

    subject: str
    state: State
    found: str
    remedy: str = ""


@define
class Examination:
    """All checks of one configuration, in the order of the table.

    Attributes:
        load: load an instance of each engine, too.
        asr, translation, tts: the engines, as far as they could be built.
    """

    settings: Settings
    load: bool = False
    asr: AsrEngine | None = field(default=None, init=False)
    translation: TranslationEngine | None = field(default=None, init=False)
    tts: TtsEngine | None = field(default=None, init=False)

    def run(self) -> Iterator[Finding]:
        """Make every check, whatever happens to others. Blocks; not to be called where trio runs."""
        checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
            ("python", self._python),
            ("commands", self._commands),
            ("packages", self._packages),
            ("ASR_MODEL", self._asr_model),
            ("TRANSLATION_PROVIDER", self._translation_provider),
            ("DEEPL_API_KEY", self._deepl_key),
            ("TTS_MODEL", self._tts_model),
            ("VOICES_FILE", self._voices_file),
            ("GPU", self._gpu),
            ("cuBLAS", self._cublas),
            ("loading", self._loading),
            ("MODELS_DIR", self._models_dir),
            ("temporary files", self._temporary_files),
            ("ports", self._ports),
            ("TLS", self._tls),
            ("open files", self._open_files),
        )
        for subject, check in checks:
            try:
                yield from check()
            except Exception as error:  # noqa: BLE001 - the table is for when nobody knows what is wrong
                cause = innermost(error)
                why = f"could not be checked: {type(cause).__name__}: {cause}"
                yield Finding(subject, State.MISSING, why, "the server would probably fail here, too")

    # ---------------------------------------------------------------------------------------- what is installed

    def _python(self) -> Iterator[Finding]:
        yield Finding("python", State.OK, f"{platform.python_version()}, sts-trio {__version__}")

    def _commands(self) -> Iterator[Finding]:
        path = shutil.which(RUBBERBAND)
        if path:
            yield Finding(RUBBERBAND, State.OK, path)
        else:
            yield Finding(RUBBERBAND, State.MISSING, "is not in PATH", "apt install rubberband-cli")

    def _packages(self) -> Iterator[Finding]:
        wanted = {
            "embedded": self.settings.asr_model == "pocketsphinx",
            "asr": self._is_whisper,
            "translation": "deepl" in self.settings.translation_providers,
            "tts": self._is_xtts,
        }
        for extra in (extra for extra, is_wanted in wanted.items() if is_wanted):
            modules = PACKAGES[extra]
            missing = [name for module, name in modules.items() if importlib.util.find_spec(module) is None]
            if missing:
                remedy = f"pip install 'sts-trio[{extra}]'"
                yield Finding(f"extra {extra}", State.MISSING, f"not installed: {', '.join(missing)}", remedy)
            else:
                yield Finding(f"extra {extra}", State.OK, ", ".join(map(_with_version, modules.values())))

    # ---------------------------------------------------------------------------------------- engines

    def _asr_model(self) -> Iterator[Finding]:
        self.asr, finding = self._build("ASR_MODEL", registry.build_asr)
        yield finding

    def _translation_provider(self) -> Iterator[Finding]:
        self.translation, finding = self._build("TRANSLATION_PROVIDER", registry.build_translation)
        yield finding

    def _tts_model(self) -> Iterator[Finding]:
        self.tts, finding = self._build("TTS_MODEL", registry.build_tts)
        yield finding

    def _build(self, variable: str, build: Callable[[Settings], EngineT]) -> tuple[EngineT | None, Finding]:
        try:
            engine = build(self.settings)
        except EngineUnavailable as error:
            return None, Finding(variable, State.MISSING, str(error))
        return engine, Finding(variable, State.OK, f"{engine.name}{self._about_model(variable)}")

    def _about_model(self, variable: str) -> str:
        model = configured_models(self.settings).get(variable)
        if model is None:
            return ""
        state = presence(model, self.settings.models_dir)
        not_ours = " (not downloaded by `sts-trio models pull`)" if state is Presence.UNVERIFIED else ""
        return f" in {self.settings.models_dir / model.name}: {state}{not_ours}"

    def _deepl_key(self) -> Iterator[Finding]:
        key = self.settings.deepl_api_key
        if "deepl" not in self.settings.translation_providers or key is None:
            return  # not needed, or missed by the engine
        from ..engines.deepl import check_key

        problem = check_key(key, self.settings.deepl_server_url, KEY_TIMEOUT_S)
        if problem is None:
            yield Finding("DEEPL_API_KEY", State.OK, "DeepL takes it")
        else:
            # As at the server's start: what time may mend is no reason not to.
            state = State.MISSING if problem.fatal else State.WARNING
            yield Finding("DEEPL_API_KEY", state, problem.message.replace(key, "(the key)"))

    def _voices_file(self) -> Iterator[Finding]:
        """The engine says more, if it gets so far: this is for when its model is missing."""
        file = self.settings.voices_file
        if file is None:
            return
        if not self._is_xtts:
            yield Finding("VOICES_FILE", State.WARNING, f"{file} is not used by TTS_MODEL={self.settings.tts_model}")
            return
        try:
            content = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            yield Finding("VOICES_FILE", State.MISSING, f"{file} cannot be read: {error}", "correct it, or unset it")
        else:
            yield Finding("VOICES_FILE", State.OK, f"{file}: {len(content)} voices")

    def _loading(self) -> Iterator[Finding]:
        if not self.load:
            return
        engines: dict[str, Engine[Any, Any] | None] = {
            "ASR_MODEL": self.asr,
            "TRANSLATION_PROVIDER": self.translation,
            "TTS_MODEL": self.tts,
        }
        for variable, engine in engines.items():
            if engine is None:
                continue
            subject, trouble, seconds = f"loading {variable}", "", 0.0
            try:
                seconds = trio.run(_open_once, engine, self.settings)
            except* EngineUnavailable as unavailable:
                trouble = first_error(unavailable)
            if trouble:
                yield Finding(subject, State.MISSING, trouble)
            else:
                yield Finding(subject, State.OK, f"{engine.name}: an instance was warm after {seconds:.1f} s")

    # ---------------------------------------------------------------------------------------- the machine

    def _gpu(self) -> Iterator[Finding]:
        settings = self.settings
        free = gpu.free_gpu_memory()
        seen = "none is seen" if free is None else f"{_gib(free)} free"
        tools = "pip install 'sts-trio[gpu]'" if importlib.util.find_spec("pynvml") is None else "see nvidia-smi"
        demands = gpu_demands(self.asr, self.tts, asr_slots=settings.asr_slots, tts_slots=settings.tts_slots)
        needed = sum(demand.slots * demand.bytes_each for demand in demands)
        if not self._is_whisper and not self._is_xtts:
            yield Finding("GPU", State.OK, f"{seen}; the configured engines need none")
        elif demands and free is None:
            found = f"the models need about {_gib(needed)} of a GPU, whose free memory cannot be told"
            yield Finding("GPU", State.WARNING, found, tools)
        elif demands:
            try:
                check_memory(demands, free)
            except EngineUnavailable as error:
                yield Finding("GPU", State.MISSING, str(error))
            else:
                yield Finding("GPU", State.OK, f"{seen}; the models need about {_gib(needed)}")
        elif free is None:
            found = "none is seen: Whisper and XTTS run on the CPU, where they hardly keep up with a live stream"
            yield Finding("GPU", State.WARNING, found, f"a machine with a GPU and its driver; {tools}")
        else:
            yield Finding("GPU", State.OK, f"{seen}; what the models need of it is told of those that are here")
        if free is not None:
            yield from self._without_gpu()

    def _without_gpu(self) -> Iterator[Finding]:
        """Engines that could use the GPU and do not, as with a library that was built for CPUs."""
        engines = {"ASR_DEVICE": (self._is_whisper, self.asr), "TTS_DEVICE": (self._is_xtts, self.tts)}
        for variable, (could, engine) in engines.items():
            if could and engine is not None and not engine.gpu_memory_bytes:
                found = f"{engine.name} runs on the CPU, where it hardly keeps up with a live stream"
                yield Finding(variable, State.WARNING, found, f"set {variable}=cuda to be told why")

    def _cublas(self) -> Iterator[Finding]:
        """CTranslate2 asks for it by name when it first multiplies, which is after the server has started."""
        if not self._is_whisper or self.asr is None or not self.asr.gpu_memory_bytes:
            return
        try:
            preload_cublas()
            ctypes.CDLL("libcublas.so.12")
        except OSError as error:
            remedy = "pip install 'sts-trio[gpu]' (nvidia-cublas-cu12)"
            yield Finding("cuBLAS 12", State.MISSING, f"CTranslate2 will not find it: {error}", remedy)
        else:
            yield Finding("cuBLAS 12", State.OK, "libcublas.so.12 is there for CTranslate2")

    def _models_dir(self) -> Iterator[Finding]:
        folder = self.settings.models_dir
        wanted = [
            model
            for model in configured_models(self.settings).values()
            if presence(model, folder) in (Presence.ABSENT, Presence.DAMAGED)
        ]
        needed = sum(model.megabytes for model in wanted) * 1_000_000
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        found = f"{folder}: {gigabytes(free)} free, {gigabytes(needed) if needed else 'nothing'} to be downloaded"
        bad = State.MISSING if wanted else State.WARNING  # a folder that is only read may be read-only
        if not there.is_dir():
            yield Finding("MODELS_DIR", bad, f"{folder}: {there} is no folder", "set MODELS_DIR to another folder")
        elif not os.access(there, os.W_OK | os.X_OK):
            remedy = "chmod or chown it, or set MODELS_DIR to another folder"
            yield Finding("MODELS_DIR", bad, f"{folder}: {there} may not be written to by this user", remedy)
        elif needed > free:
            yield Finding("MODELS_DIR", bad, found, "free some space, or set MODELS_DIR to another disk")
        else:
            yield Finding("MODELS_DIR", State.OK, found)

    def _temporary_files(self) -> Iterator[Finding]:
        """Rubber Band gets its audio in files."""
        try:
            with tempfile.TemporaryFile() as file:
                file.write(bytes(2**20))
        except OSError as error:
            yield Finding("temporary files", State.MISSING, str(error), "set TMPDIR to a folder that can be written to")
        else:
            yield Finding("temporary files", State.OK, tempfile.gettempdir())

    def _ports(self) -> Iterator[Finding]:
        settings = self.settings
        ports = {"STS_PORT": settings.port, "METRICS_PORT": settings.separate_metrics_port}
        for variable, port in ports.items():
            if port is None:
                continue
            try:
                trio.run(_listen_once, port, settings.host)
            except OSError as error:
                found = f"{settings.host}, port {port}: {error.strerror or error}"
                remedy = f"set {variable} to another port, or end what listens there (it may be this very server)"
                yield Finding(variable, State.MISSING, found, remedy)
            else:
                yield Finding(variable, State.OK, f"{settings.host}, port {port or 'that happens to be free'}")

    def _tls(self) -> Iterator[Finding]:
        certificate, key = self.settings.tls_cert, self.settings.tls_key
        if certificate is None or key is None:
            return
        try:
            server_context(certificate, key)
        except ConfigError as error:
            yield Finding("TLS", State.MISSING, str(error))
        else:
            yield Finding("TLS", State.OK, f"{certificate}, {key}")

    def _open_files(self) -> Iterator[Finding]:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = self.settings.max_connections + OTHER_FILES
        if limit != resource.RLIM_INFINITY and limit < needed:
            remedy = f"ulimit -n {needed} (systemd: LimitNOFILE={needed}), or a smaller STS_MAX_CONNECTIONS"
            found = f"{limit} at once; STS_MAX_CONNECTIONS={self.settings.max_connections} needs about {needed}"
            yield Finding("open files", State.WARNING, found, remedy)
        else:
            yield Finding("open files", State.OK, "no limit" if limit == resource.RLIM_INFINITY else f"{limit} at once")

    @property
    def _is_whisper(self) -> bool:
        return self.settings.asr_model.startswith("faster-whisper-") or is_path(self.settings.asr_model)

    @property
    def _is_xtts(self) -> bool:
        return self.settings.tts_model == "coqui-xtts-v2" or is_path(self.settings.tts_model)


async def _open_once(engine: Engine[Any, Any], settings: Settings) -> float:
    """Seconds until an instance was warm."""
    started = trio.current_time()
    async with engine.open(thread_offload(threads_needed(settings))):
        return trio.current_time() - started


async def _listen_once(port: int, host: str) -> None:
    for listener in await trio.open_tcp_listeners(port, host=host):
        await listener.aclose()


def _with_version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (without its metadata)"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
