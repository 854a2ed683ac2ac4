"""`sts-trio doctor`: what is missing is a line with its remedy, and shows in the exit status."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TypeAlias

import pytest
import trustme
from attrs import fields
from click.testing import CliRunner, Result

from sts_trio.__main__ import main
from sts_trio.cli import checks
from sts_trio.config import Settings
from sts_trio.engines import apertium, registry
from sts_trio.engines.base import EngineUnavailable
from sts_trio.engines.deepl import Problem
from sts_trio.testing.engines import ScriptedAsr, ScriptedTts
from sts_trio.variables import names_of

from ..engines.conftest import need
from ..observe.fake_nvml import FakeNvml

GIB = 2**30

Findings: TypeAlias = dict[str, dict[str, str]]
"""By their subject."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose environment sets nothing but a free port and an empty folder of models."""
    for attribute in fields(Settings):
        for name in names_of(attribute):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STS_PORT", "0")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setattr("sts_trio.observe.logs.configure", lambda *args, **kwargs: None)
    install(FakeNvml({}), monkeypatch)
    return tmp_path


def install(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.__spec__ = ModuleSpec("pynvml", None)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["doctor", *arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def found(*arguments: str) -> Findings:
    """What it says for scripts; that its exit status agrees is seen each time."""
    result = run("--json", *arguments)
    body = json.loads(result.output)
    assert body["ok"] is not any(finding["state"] == "missing" for finding in body["checks"])
    assert result.exit_code == (0 if body["ok"] else 1)
    assert all(finding["found"] for finding in body["checks"])
    subjects = [finding["subject"] for finding in body["checks"]]
    assert len(set(subjects)) == len(subjects)
    return {finding["subject"]: finding for finding in body["checks"]}


def missing(findings: Findings) -> set[str]:
    return {subject for subject, finding in findings.items() if finding["state"] == "missing"}


@pytest.fixture
def embedded_engines() -> None:
    need(importlib.util.find_spec("pocketsphinx"), "pip install 'sts-trio[embedded]'")
    need(shutil.which("espeak-ng"), "apt install espeak-ng")
    need(shutil.which("rubberband"), "apt install rubberband-cli")
    need(list(apertium.MODES.glob("*.mode")), "apt install apertium apertium-eng-spa")


@pytest.fixture
def whisper_files(here: Path) -> Path:
    """All that is asked of a model of Whisper before it is loaded."""
    need(importlib.util.find_spec("ctranslate2"), "pip install 'sts-trio[asr]'")
    folder = here / "models" / "faster-whisper-base"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.bin", "tokenizer.json"):
        (folder / name).write_bytes(b"{}")
    (folder / "vocabulary.txt").write_text("\n<|en|>\n<|es|>\n")
    return folder


# ------------------------------------------------------------------------------------------- nothing is missing


@pytest.mark.slow
@pytest.mark.usefixtures("embedded_engines")
def test_the_embedded_profile_can_run_here() -> None:
    findings = found("--profile", "embedded")
    assert missing(findings) == set()
    for subject, said in {
        "ASR_MODEL": "pocketsphinx",
        "TRANSLATION_PROVIDER": "apertium",
        "TTS_MODEL": "espeak-ng",
        "rubberband": "/rubberband",
        "extra embedded": "trio-parallel",
        "GPU": "the configured engines need none",
        "MODELS_DIR": "nothing to be downloaded",
        "open files": "",
        "temporary files": "/",
        "STS_PORT": "port",
    }.items():
        assert findings[subject]["state"] == "ok"
        assert said in findings[subject]["found"]
    assert findings.keys().isdisjoint({"DEEPL_API_KEY", "VOICES_FILE", "TLS", "cuBLAS 12", "METRICS_PORT"})


@pytest.mark.slow
@pytest.mark.usefixtures("embedded_engines")
def test_engines_are_loaded_where_that_is_asked_for() -> None:
    findings = found("--profile", "embedded", "--load")
    assert missing(findings) == set()
    for variable in ("ASR_MODEL", "TRANSLATION_PROVIDER", "TTS_MODEL"):
        assert "an instance was warm after" in findings[f"loading {variable}"]["found"]


@pytest.mark.slow
@pytest.mark.usefixtures("embedded_engines")
def test_people_get_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = run("--profile", "embedded")
    assert result.exit_code == 0
    lines = [line.replace(" ", "") for line in result.output.splitlines()]
    assert "│TTS_MODEL│ok│espeak-ng│" in lines
    assert result.output.splitlines()[-1].endswith("0 warning, 0 missing")


# ------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("profile", ["embedded", "production"])
def test_commands_that_are_not_there(here: Path, monkeypatch: pytest.MonkeyPatch, profile: str) -> None:
    monkeypatch.setenv("PATH", str(here))
    findings = found("--profile", profile)
    assert findings["rubberband"]["state"] == "missing"
    assert findings["rubberband"]["remedy"] == "apt install rubberband-cli"
    if profile == "embedded":
        assert "apt install espeak-ng" in findings["TTS_MODEL"]["found"]
        assert "apt install apertium" in findings["TRANSLATION_PROVIDER"]["found"]


def test_models_and_a_key_that_are_not_there() -> None:
    """What a production server would say at start, all at once."""
    findings = found("--profile", "production")
    assert {"ASR_MODEL", "TRANSLATION_PROVIDER", "TTS_MODEL"} <= missing(findings)
    assert "sts-trio models pull faster-whisper-base" in findings["ASR_MODEL"]["found"]
    assert "DEEPL_API_KEY" in findings["TRANSLATION_PROVIDER"]["found"]
    assert "sts-trio models pull coqui-xtts-v2" in findings["TTS_MODEL"]["found"]
    assert "2.0 GB to be downloaded" in findings["MODELS_DIR"]["found"]
    assert findings["GPU"]["state"] == "warning"
    assert "hardly keep up" in findings["GPU"]["found"]


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    gone = {"faster_whisper", "deepl", "TTS", "torchcodec", "pocketsphinx"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name in gone else find_spec(name, *a))
    findings = found("--profile", "production")
    assert findings["extra asr"]["found"] == "not installed: faster-whisper"
    assert findings["extra asr"]["remedy"] == "pip install 'sts-trio[asr]'"
    assert findings["extra translation"]["remedy"] == "pip install 'sts-trio[translation]'"
    assert "coqui-tts" in findings["extra tts"]["found"]
    assert "torchcodec" in findings["extra tts"]["found"]
    assert "extra embedded" not in findings
    findings = found("--profile", "embedded")
    assert {"extra embedded", "ASR_MODEL"} <= missing(findings)


@pytest.mark.parametrize(
    ("variable", "build"),
    [("ASR_MODEL", "build_asr"), ("TRANSLATION_PROVIDER", "build_translation"), ("TTS_MODEL", "build_tts")],
)
def test_an_engine_is_ok_if_and_only_if_the_server_could_build_it(
    whisper_files: Path, monkeypatch: pytest.MonkeyPatch, variable: str, build: str
) -> None:
    for name in {"ASR_MODEL": ["pocketsphinx", "faster-whisper-base", "parrot", "/nowhere/at/all"]}.get(
        variable, ["apertium", "espeak-ng", "deepl", "parrot", "/nowhere/at/all"]
    ):
        monkeypatch.setenv(variable, name)
        state = found("--profile", "embedded")[variable]["state"]
        try:
            getattr(registry, build)(Settings.load(profile="embedded"))
        except EngineUnavailable:
            assert state == "missing"
        else:
            assert state == "ok"


def test_a_model_is_there_and_whose_it_is(whisper_files: Path) -> None:
    finding = found()["ASR_MODEL"]
    assert finding["state"] == "ok"
    assert f"{whisper_files}: unverified (not downloaded by `sts-trio models pull`)" in finding["found"]


@pytest.mark.slow
def test_a_model_that_is_there_but_cannot_be_loaded(whisper_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = found("--profile", "production", "--load")
    assert findings["ASR_MODEL"]["state"] == "ok"
    assert "loading ASR_MODEL" in missing(findings)
    assert f"the model in {whisper_files} cannot be loaded" in findings["loading ASR_MODEL"]["found"]
    assert "loading TTS_MODEL" not in findings


def test_the_key_is_tried_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")
    asked: list[tuple[str, str | None, float]] = []

    def check_key(api_key: str, server_url: str | None, timeout_s: float) -> Problem | None:
        asked.append((api_key, server_url, timeout_s))
        return None if api_key == "good:fx" else Problem(f"DeepL refuses {api_key}: copy it once more", fatal=True)

    monkeypatch.setattr("sts_trio.engines.deepl.check_key", check_key)
    monkeypatch.setenv("DEEPL_SERVER_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DEEPL_API_KEY", "good:fx")
    assert found("--profile", "production")["DEEPL_API_KEY"]["state"] == "ok"
    assert asked == [("good:fx", "http://127.0.0.1:9", checks.KEY_TIMEOUT_S)]
    monkeypatch.setenv("DEEPL_API_KEY", "sesame:fx")
    findings = found("--profile", "production")
    assert findings["DEEPL_API_KEY"]["state"] == "missing"
    assert findings["DEEPL_API_KEY"]["found"] == "DeepL refuses (the key): copy it once more"
    assert "DEEPL_API_KEY" not in found("--profile", "embedded")


@pytest.mark.slow
def test_a_deepl_that_cannot_be_reached_is_no_reason_not_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")
    monkeypatch.setenv("DEEPL_API_KEY", "sesame:fx")
    monkeypatch.setenv("DEEPL_SERVER_URL", "http://127.0.0.1:9")
    finding = found("--profile", "production")["DEEPL_API_KEY"]
    assert finding["state"] == "warning"
    assert "http://127.0.0.1:9" in finding["found"]
    assert "sesame" not in finding["found"]


@pytest.mark.parametrize(
    ("content", "state", "said"),
    [
        (None, "missing", "No such file"),
        ("{", "missing", "cannot be read"),
        ('{"anna": {"language": "de", "reference": "anna.wav"}}', "ok", "1 voices"),
    ],
)
def test_a_file_of_voices(
    here: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, state: str, said: str
) -> None:
    file = here / "voices.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("VOICES_FILE", str(file))
    finding = found("--profile", "production")["VOICES_FILE"]
    assert (finding["state"], said in finding["found"]) == (state, True)
    assert str(file) in finding["found"]
    assert found("--profile", "embedded")["VOICES_FILE"]["state"] == "warning"


# ------------------------------------------------------------------------------------------- the GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """One with 8 GiB, of which the models want 2 x 1 GiB and 2 x 2.5 GiB."""
    fake = FakeNvml({"GPU-a": 0}, free_bytes=8 * GIB)
    install(fake, monkeypatch)
    monkeypatch.setattr(registry, "build_asr", lambda settings: ScriptedAsr(gpu_memory_bytes=GIB))
    monkeypatch.setattr(registry, "build_tts", lambda settings: ScriptedTts(gpu_memory_bytes=5 * GIB // 2))
    return fake


def test_a_gpu_that_is_large_enough(gpu: FakeNvml) -> None:
    finding = found("--profile", "production")["GPU"]
    assert (finding["state"], finding["found"]) == ("ok", "8.0 GiB free; the models need about 7.0 GiB")
    assert gpu.open == 0


def test_a_gpu_that_is_too_small(gpu: FakeNvml) -> None:
    gpu.free_bytes = 6 * GIB
    finding = found("--profile", "production")["GPU"]
    assert finding["state"] == "missing"
    assert "need about 7.0 GiB of GPU memory" in finding["found"]
    assert "ASR_SLOTS=2 x 1.0 GiB, TTS_SLOTS=2 x 2.5 GiB" in finding["found"]


def test_a_gpu_is_judged_by_the_engines_that_are_here(gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(settings: Settings) -> ScriptedTts:
        raise EngineUnavailable("no model")

    monkeypatch.setattr(registry, "build_tts", gone)
    gpu.free_bytes = 3 * GIB
    assert found("--profile", "production")["GPU"]["found"] == "3.0 GiB free; the models need about 2.0 GiB"


@pytest.mark.parametrize("installed", [True, False])
def test_a_gpu_whose_memory_cannot_be_told(gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    gpu.driver = False
    if not installed:
        monkeypatch.setitem(sys.modules, "pynvml", None)
    finding = found("--profile", "production")["GPU"]
    assert finding["state"] == "warning"
    assert "cannot be told" in finding["found"]
    assert finding["remedy"] == ("see nvidia-smi" if installed else "pip install 'sts-trio[gpu]'")


def test_an_engine_beside_a_gpu_is_told_of(gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "build_tts", lambda settings: ScriptedTts())
    findings = found("--profile", "production")
    assert findings["GPU"]["state"] == "ok"
    assert "ASR_DEVICE" not in findings
    assert findings["TTS_DEVICE"]["state"] == "warning"
    assert "scripted-tts runs on the CPU" in findings["TTS_DEVICE"]["found"]
    assert "TTS_DEVICE=cuda" in findings["TTS_DEVICE"]["remedy"]


@pytest.mark.parametrize("there", [True, False])
def test_the_multiplications_of_ctranslate2(gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    def load(name: str, *args: object, **kwargs: object) -> None:
        if not there:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", load)
    finding = found("--profile", "production")["cuBLAS 12"]
    assert finding["state"] == ("ok" if there else "missing")
    if not there:
        assert "libcublas" in finding["found"]  # or libcublasLt, which it needs, where the package is installed
        assert "pip install 'sts-trio[gpu]'" in finding["remedy"]


# ------------------------------------------------------------------------------------------- the machine


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize("variable", ["STS_PORT", "METRICS_PORT"])
def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, taken_port: int, variable: str) -> None:
    monkeypatch.setenv("STS_HOST", "127.0.0.1")
    monkeypatch.setenv(variable, str(taken_port))
    finding = found("--profile", "embedded")[variable]
    assert finding["state"] == "missing"
    assert f"127.0.0.1, port {taken_port}: Address already in use" in finding["found"]
    assert f"set {variable} to another port" in finding["remedy"]


def test_an_address_that_is_none_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STS_HOST", "192.0.2.1")
    assert "STS_PORT" in missing(found("--profile", "embedded"))


def test_a_file_where_the_folder_of_models_should_be(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "models").write_text("no folder")
    finding = found("--profile", "production")["MODELS_DIR"]
    assert finding["state"] == "missing"
    assert f"{here / 'models'} is no folder" in finding["found"]
    assert "set MODELS_DIR" in finding["remedy"]
    # Nothing is to be downloaded, so it only looks wrong.
    assert found("--profile", "embedded")["MODELS_DIR"]["state"] == "warning"


def test_a_folder_of_models_that_may_not_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *args: False)
    finding = found("--profile", "production")["MODELS_DIR"]
    assert finding["state"] == "missing"
    assert "may not be written to" in finding["found"]


def test_a_disk_without_room_for_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9))
    finding = found("--profile", "production")["MODELS_DIR"]
    assert finding["state"] == "missing"
    assert "1.0 GB free, 2.0 GB to be downloaded" in finding["found"]


def test_tls_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(here / "cert.pem")
    issued.private_key_pem.write_to_path(here / "key.pem")
    monkeypatch.setenv("STS_TLS_CERT", str(here / "cert.pem"))
    monkeypatch.setenv("STS_TLS_KEY", str(here / "key.pem"))
    assert found("--profile", "embedded")["TLS"]["state"] == "ok"
    (here / "key.pem").unlink()
    finding = found("--profile", "embedded")["TLS"]
    assert finding["state"] == "missing"
    assert finding["found"].startswith("STS_TLS_KEY: cannot read")


@pytest.mark.parametrize(("limit", "state"), [(1_024, "ok"), (1_023, "warning"), (resource.RLIM_INFINITY, "ok")])
def test_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch, limit: int, state: str) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (limit, limit))
    finding = found("--profile", "embedded")["open files"]
    assert finding["state"] == state
    if state == "warning":
        assert "ulimit -n 1024" in finding["remedy"]


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    finding = found("--profile", "embedded")["temporary files"]
    assert finding["state"] == "missing"
    assert "TMPDIR" in finding["remedy"]


# ------------------------------------------------------------------------------------------- the table itself


def broken(*args: object, **kwargs: object) -> None:
    raise ZeroDivisionError("nobody thought of this")


@pytest.mark.parametrize(
    ("what", "subject"),
    [
        ("shutil.which", "commands"),
        ("sts_trio.engines.registry.build_asr", "ASR_MODEL"),
        ("sts_trio.observe.gpu.free_gpu_memory", "GPU"),
        ("trio.open_tcp_listeners", "ports"),
        ("resource.getrlimit", "open files"),
    ],
)
def test_a_check_that_fails_is_a_line_and_not_the_end_of_the_table(
    monkeypatch: pytest.MonkeyPatch, what: str, subject: str
) -> None:
    monkeypatch.setattr(what, broken)
    findings = found("--profile", "embedded")
    assert findings[subject]["state"] == "missing"
    assert "could not be checked: ZeroDivisionError: nobody thought of this" in findings[subject]["found"]
    assert {"python", "MODELS_DIR", "temporary files"} <= set(findings)


def test_a_configuration_that_cannot_be_used_is_the_one_line_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STS_PORT", "many")
    findings = found()
    assert list(findings) == ["configuration"]
    assert findings["configuration"]["found"].startswith("STS_PORT: must be an integer")


@pytest.mark.slow
def test_as_a_command_it_writes_nothing_but_json_to_stdout() -> None:
    command = [sys.executable, "-m", "sts_trio", "doctor", "--profile", "production", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    assert "Traceback" not in done.stderr
