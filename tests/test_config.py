"""The environment as one validated `Settings`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from attrs import fields

from sts_trio.config import NESTING, ConfigError, Settings, variable

UUID = "def3a26b-3e84-45b3-84ae-0c0aaf3525f7"

README = Path(__file__).parent.parent / "README.md"


def test_the_defaults_are_the_documents() -> None:
    settings = Settings.load({})
    assert (settings.host, settings.port) == ("0.0.0.0", 8_000)
    assert (settings.max_inflight, settings.fragment_timeout_ms, settings.max_concurrent_streams) == (3, 8_000, 5)
    assert settings.fallback_mode == "silence"
    assert settings.asr_model == "faster-whisper-base"
    assert settings.translation_providers == ("deepl",)
    assert settings.tts_model == "coqui-xtts-v2"
    assert settings.log_level == "INFO"


def test_every_variable_is_read() -> None:
    settings = Settings.load(
        {"STS_PORT": "9000", "FALLBACK_MODE": "original", "DRAIN_TIMEOUT_S": "2.5", "LOG_LEVEL": ""}
    )
    assert (settings.port, settings.fallback_mode, settings.drain_timeout_s) == (9_000, "original", 2.5)
    assert settings.log_level == "INFO"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("STS_PORT", "eighty"),
        ("STS_PORT", "65536"),
        ("MAX_INFLIGHT", "0"),
        ("FRAGMENT_TIMEOUT_MS", "999"),
        ("FALLBACK_MODE", "beep"),
        ("LOG_LEVEL", "LOUD"),
        ("DRAIN_TIMEOUT_S", "nan"),
        ("STS_HANDSHAKES_PER_S", "0"),
        ("STS_MAX_NESTING", "201"),
        ("STS_MAX_PACKETS_PER_POLL", "0"),
        ("STS_CORS_ORIGINS", "example.org"),
        ("STS_CORS_ORIGINS", "https://example.org/"),
        ("STS_CORS_ORIGINS", "https://example.org,"),
        ("STS_CORS_ORIGINS", "https://*.example.org"),
        ("STS_CORS_ORIGINS", "*,https://example.org"),
        ("STS_CORS_ORIGINS", "https://me@example.org"),
        ("STS_CORS_ORIGINS", "null"),
        ("TRANSLATION_PROVIDER", "deepl,deepl"),
        ("TRANSLATION_PROVIDER", "deepl,"),
        ("DEEPL_SERVER_URL", "api.deepl.com"),
        ("DEEPL_SERVER_URL", "https://api.deepl.com?key=1"),
        ("DEEPL_SERVER_URL", "http://[::1"),
        ("DEEPL_SERVER_URL", "http://localhost:port"),
        ("DEEPL_FORMALITY", "rude"),
        ("DEEPL_GLOSSARY_ID", "en-es=1"),
        ("DEEPL_GLOSSARY_ID", f"en-es={UUID},EN-ES={UUID}"),
        ("ASR_DEVICE", "gpu"),
        ("ASR_COMPUTE_TYPE", "int4"),
        ("COQUI_TOS_AGREED", "yes"),
        ("VOICES_FILE", " "),
        ("ASR_MODEL", " "),
        ("ASR_MODEL", "\udcff"),  # a byte that is no UTF-8
    ],
)
def test_a_variable_that_cannot_be_used_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name)) as error:
        Settings.load({name: text})
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    "url", ["https://me:sesame@api.deepl.com", "http://sesame@host/path", "https://me:se/sesame@host", "me:sesame@host"]
)
def test_a_password_in_a_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"DEEPL_SERVER_URL: must be a URL without a user or password") as error:
        Settings.load({"DEEPL_SERVER_URL": url})
    assert "sesame" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("*", ("*",)),
        ("https://example.org", ("https://example.org",)),
        ("http://localhost:3000, https://Example.org:443", ("http://localhost:3000", "https://example.org")),
        ("http://example.org:443", ("http://example.org:443",)),
        ("http://[::1]:80", ("http://[::1]",)),
        ("capacitor://localhost", ("capacitor://localhost",)),
    ],
)
def test_origins_are_read_as_browsers_write_them(text: str, origins: tuple[str, ...]) -> None:
    assert Settings.load({"STS_CORS_ORIGINS": text}).cors_origins == origins


def test_the_deepl_key_may_have_the_name_that_its_client_gives_it() -> None:
    assert Settings.load({"DEEPL_AUTH_KEY": "a"}).deepl_api_key == "a"
    assert Settings.load({"DEEPL_AUTH_KEY": "a", "DEEPL_API_KEY": "b"}).deepl_api_key == "b"
    with pytest.raises(ConfigError, match=r"DEEPL_AUTH_KEY: .* got a secret"):
        Settings.load({"DEEPL_AUTH_KEY": "\x00"})


def test_a_glossary_is_for_all_pairs_or_for_its_own() -> None:
    assert Settings.load({"DEEPL_GLOSSARY_ID": UUID}).deepl_glossaries == {"*": UUID}
    assert Settings.load({"DEEPL_GLOSSARY_ID": f"EN-es={UUID}"}).deepl_glossaries == {"en-es": UUID}


def test_paths_are_the_users() -> None:
    settings = Settings.load({"VOICES_FILE": "~/voices.json"})
    assert settings.voices_file == Path.home() / "voices.json"
    assert settings.models_dir == Path.home() / ".cache/sts-trio/models"


@pytest.mark.slow
def test_a_user_without_a_home_directory_can_have_settings() -> None:
    # A user id that the system does not know, as containers may be started with, and no HOME.
    code = "import os; from sts_trio.config import Settings; os.setuid(54321); print(Settings.load({}).models_dir)"
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("only root may become somebody else")
    assert done.stdout == "~/.cache/sts-trio/models\n", done.stderr


def test_certificate_and_key_come_together() -> None:
    settings = Settings.load({"STS_TLS_CERT": "a.pem", "STS_TLS_KEY": "b.pem"})
    assert (settings.tls_cert, settings.tls_key) == ("a.pem", "b.pem")
    with pytest.raises(ConfigError, match=r"^STS_TLS_KEY: must be set"):
        Settings.load({"STS_TLS_CERT": "a.pem"})
    with pytest.raises(ConfigError, match=r"^STS_TLS_CERT: must be set"):
        Settings.load({"STS_TLS_KEY": "b.pem", "STS_TLS_CERT": ""})


def test_the_deepest_packet_that_may_be_allowed_can_be_written() -> None:
    deep: object = "end"
    for _ in range(NESTING[1]):
        deep = [deep]
    assert orjson.loads(orjson.dumps(deep)) == deep


def test_a_secret_is_never_shown() -> None:
    settings = Settings.load({"STS_API_KEY": "hunter2", "DEEPL_API_KEY": "hunter3"})
    assert "hunter" not in repr(settings)
    with pytest.raises(ConfigError) as error:
        Settings.load({"STS_API_KEY": " "})
    assert "a secret" in str(error.value)


def test_the_embedded_profile_gives_way_to_the_environment() -> None:
    settings = Settings.load({"TTS_MODEL": "other"}, profile="embedded")
    assert (settings.asr_model, settings.tts_model) == ("pocketsphinx", "other")
    assert settings.translation_providers == ("apertium",)


def test_a_metrics_port_of_its_own() -> None:
    assert Settings.load({"METRICS_PORT": "8000"}).separate_metrics_port is None
    assert Settings.load({"METRICS_PORT": "9090"}).separate_metrics_port == 9_090


def test_the_readme_lists_every_variable_with_its_default() -> None:
    table = README.read_text()
    for attribute in fields(Settings):
        row = next((line for line in table.splitlines() if line.startswith(f"| `{variable(attribute)}`")), None)
        assert row is not None, f"{variable(attribute)} is not in the README's table"
        default = ", ".join(attribute.default) if isinstance(attribute.default, tuple) else attribute.default
        if default is False:
            default = 0
        assert f"| `{default}` |" in row or (not default and "| none |" in row), row
        assert row.endswith(f" {attribute.metadata['meaning']} |")
