"""Configuration: the environment, read once and validated into one frozen `Settings`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar

from attrs import Attribute, field, fields, frozen

T = TypeVar("T")

EMBEDDED_PROFILE: Final = {
    "ASR_MODEL": "pocketsphinx",
    "TRANSLATION_PROVIDER": "apertium",
    "TTS_MODEL": "espeak-ng",
}
"""What `--profile embedded` sets where the environment does not: engines that need no key, download or GPU."""


NESTING: Final = (10, 200)
"""Between what dubbing needs and what is safe: orjson writes 254 levels, and of Python's stack half stays free."""


class ConfigError(ValueError):
    """A variable that cannot be used; the message names it, what it may be and what it is."""


def _integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"must be an integer from {low} to {high}") from None
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")
        return value

    return read


def _number(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"must be a number{unit} from {low:g} to {high:g}") from None
        if not low <= value <= high:  # also refuses nan
            raise ValueError(f"must be from {low:g} to {high:g}")
        return value

    return read


def _seconds(low: float, high: float) -> Callable[[str], float]:
    return _number(low, high, " of seconds")


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return read


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if not text.isprintable():  # a byte that is no UTF-8 reads as a lone surrogate, which is not
        raise ValueError("must be printable UTF-8 text")
    return text


_ORIGIN: Final = re.compile(
    r"(?P<origin>[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\]))(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


def _origins(text: str) -> tuple[str, ...]:
    """Origins as browsers write them (RFC 6454, 6.2): in small letters, without the port that the scheme implies."""
    if text.strip() == "*":
        return ("*",)
    origins = []
    for part in text.split(","):
        match = _ORIGIN.fullmatch(part.strip().lower())
        if match is None:
            raise ValueError("must be * or origins such as https://example.org or http://localhost:3000, with commas")
        origin, port = match["origin"], match["port"]
        implied = _DEFAULT_PORTS.get(origin.partition(":")[0])
        origins.append(origin if port in (None, implied) else f"{origin}:{port}")
    return tuple(origins)


def _variable(name: str, read: Callable[[str], T], default: Any, meaning: str, *, secret: bool = False) -> Any:
    return field(
        default=default,
        repr=not secret,
        metadata={"variable": name, "read": read, "meaning": meaning, "secret": secret},
    )


@frozen(kw_only=True)
class Settings:
    """Everything that can be configured. One variable of the environment each; see `load`."""

    # Server
    host: str = _variable("STS_HOST", _text, "0.0.0.0", "Address to listen on.")
    port: int = _variable("STS_PORT", _integer(0, 65_535), 8_000, "Port of Socket.IO, /health and /metrics (0: any).")
    metrics_port: int | None = _variable(
        "METRICS_PORT",
        _integer(0, 65_535),
        None,
        "Port of /health and /metrics, where it is not STS_PORT; it never speaks TLS.",
    )
    tls_cert: str | None = _variable(
        "STS_TLS_CERT",
        _text,
        None,
        "PEM file of the certificate with its chain; with STS_TLS_KEY, STS_PORT speaks TLS.",
    )
    tls_key: str | None = _variable(
        "STS_TLS_KEY", _text, None, "PEM file of the certificate's key, without a password."
    )
    api_key: str | None = _variable(
        "STS_API_KEY",
        _text,
        None,
        "Token that workers must send in `auth`; unset: none is asked for.",
        secret=True,
    )
    cors_origins: tuple[str, ...] = _variable(
        "STS_CORS_ORIGINS",
        _origins,
        (),
        "Origins of web pages that may connect, with commas, or *; all others are refused. Unset: none is asked for.",
    )
    drain_timeout_s: float = _variable(
        "DRAIN_TIMEOUT_S", _seconds(0, 3_600), 30.0, "Time for fragments in flight to finish after SIGTERM."
    )

    # Connections
    ping_interval_s: float = _variable(
        "STS_PING_INTERVAL_S", _seconds(0.1, 3_600), 25.0, "From a ping's answer to the next ping."
    )
    ping_timeout_s: float = _variable(
        "STS_PING_TIMEOUT_S", _seconds(0.1, 3_600), 10.0, "Time for the answer to a ping; without one it is closed."
    )
    connect_timeout_s: float = _variable(
        "STS_CONNECT_TIMEOUT_S", _seconds(0.1, 3_600), 45.0, "From the handshake to the first namespace that is joined."
    )
    upgrade_timeout_s: float = _variable(
        "STS_UPGRADE_TIMEOUT_S", _seconds(0.1, 3_600), 10.0, "Time for a session to move from polling to a WebSocket."
    )
    recovery_s: float = _variable(
        "STS_RECOVERY_S", _seconds(0, 3_600), 0.0,
        "How long a lost connection can be recovered with what it missed; 0: not at all, and no event has an offset.",
    )  # fmt: skip
    recovery_bytes: int = _variable(
        "STS_RECOVERY_BYTES", _integer(0, 2**32), 16 * 2**20, "Sent events kept for recovery, per connection."
    )

    # Limits of connections
    max_connections: int = _variable("STS_MAX_CONNECTIONS", _integer(1, 100_000), 512, "Connections at once.")
    max_connections_per_address: int = _variable(
        "STS_MAX_CONNECTIONS_PER_ADDRESS", _integer(1, 100_000), 128,
        "Of these from one address (IPv6: /64); behind a proxy everybody has the proxy's.",
    )  # fmt: skip
    handshakes_per_s: float = _variable(
        "STS_HANDSHAKES_PER_S", _number(0.01, 100_000), 20.0,
        "New sessions per second from one address, after STS_MAX_CONNECTIONS_PER_ADDRESS at once.",
    )  # fmt: skip
    max_message_bytes: int = _variable(
        "STS_MAX_MESSAGE_BYTES", _integer(1_024, 2**30), 50 * 2**20, "Largest Socket.IO message."
    )
    max_fragment_bytes: int = _variable(
        "STS_MAX_FRAGMENT_BYTES",
        _integer(1_024, 2**30),
        10 * 2**20,
        "Largest audio of a fragment, decoded from base64.",
    )
    send_queue_bytes: int = _variable(
        "STS_SEND_QUEUE_BYTES", _integer(2**16, 2**32), 128 * 2**20,
        "What may wait to be sent to one worker; one that reads too slowly is disconnected, not buffered for.",
    )  # fmt: skip
    max_packets_per_poll: int = _variable(
        "STS_MAX_PACKETS_PER_POLL", _integer(1, 1_000), 16, "Packets in one answer to polling; Python clients take 16."
    )
    max_attachments: int = _variable(
        "STS_MAX_ATTACHMENTS", _integer(0, 1_000), 10, "Binary attachments of one packet; JavaScript clients take 10."
    )
    attachments_timeout_s: float = _variable(
        "STS_ATTACHMENTS_TIMEOUT_S", _seconds(0.1, 3_600), 10.0, "From a packet's text to its last attachment."
    )
    max_nesting: int = _variable(
        "STS_MAX_NESTING", _integer(*NESTING), 100, "Depth of arrays and objects in a packet, its own array included."
    )
    max_ack_id_digits: int = _variable(
        "STS_MAX_ACK_ID_DIGITS", _integer(1, 100), 20, "Digits of an acknowledgement's id."
    )

    # Processing
    max_inflight: int = _variable(
        "MAX_INFLIGHT",
        _integer(1, 10),
        3,
        "Fragments of one stream processed at once, where the worker asks for none.",
    )
    fragment_timeout_ms: int = _variable(
        "FRAGMENT_TIMEOUT_MS",
        _integer(1_000, 30_000),
        8_000,
        "Deadline of a fragment, where the worker asks for none.",
    )
    max_concurrent_streams: int = _variable("MAX_CONCURRENT_STREAMS", _integer(1, 1_000), 5, "Streams at once.")
    backpressure_critical: int | None = _variable(
        "BACKPRESSURE_CRITICAL", _integer(1, 1_000), None,
        "In-flight fragments above which a stream's next one is refused (default 3 x max_inflight + 1).",
    )  # fmt: skip
    gap_timeout_ms: int | None = _variable(
        "GAP_TIMEOUT_MS", _integer(0, 600_000), None,
        "How long results wait for a missing sequence number (default: the stream's timeout_ms).",
    )  # fmt: skip
    resume_grace_s: float = _variable(
        "RESUME_GRACE_S", _seconds(0, 3_600), 30.0, "How long a stream outlives its connection."
    )
    result_buffer_bytes: int = _variable(
        "RESULT_BUFFER_BYTES",
        _integer(0, 2**32),
        32 * 2**20,
        "Unacknowledged results kept per stream.",
    )
    fallback_mode: Literal["silence", "original"] = _variable(
        "FALLBACK_MODE",
        _one_of("silence", "original"),
        "silence",
        "silence or original: what stands in for speech that could not be made.",
    )

    # Models
    asr_model: str = _variable(
        "ASR_MODEL", _text, "faster-whisper-base", "Speech recognition. In this version: pocketsphinx."
    )
    translation_provider: str = _variable(
        "TRANSLATION_PROVIDER", _text, "deepl", "Translation. In this version: apertium."
    )
    tts_model: str = _variable("TTS_MODEL", _text, "coqui-xtts-v2", "Speech synthesis. In this version: espeak-ng.")
    asr_slots: int = _variable("ASR_SLOTS", _integer(1, 64), 2, "Instances of the ASR model.")
    translation_slots: int = _variable("TRANSLATION_SLOTS", _integer(1, 64), 2, "Concurrent translations.")
    tts_slots: int = _variable("TTS_SLOTS", _integer(1, 64), 2, "Instances of the TTS model.")
    codec_slots: int = _variable(
        "CODEC_SLOTS", _integer(1, 64), 2, "Concurrent calls for each of decoding, stretching and encoding."
    )

    # API keys
    deepl_api_key: str | None = _variable("DEEPL_API_KEY", _text, None, "Key of the DeepL API.", secret=True)

    # GPU: read by CUDA and torch themselves, listed because the deployment sets them
    cuda_visible_devices: str | None = _variable("CUDA_VISIBLE_DEVICES", str, None, "GPUs to use; read by CUDA itself.")
    pytorch_cuda_alloc_conf: str | None = _variable(
        "PYTORCH_CUDA_ALLOC_CONF", str, None, "Allocator options; read by torch itself."
    )

    # Observability
    log_level: str = _variable(
        "LOG_LEVEL",
        _one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        "INFO",
        "DEBUG, INFO, WARNING or ERROR: least severe log lines to write.",
    )
    log_format: str = _variable(
        "LOG_FORMAT", _one_of("json", "console"), "json", "json or console: how log lines are written."
    )

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ, *, profile: str | None = None) -> Settings:
        """Read `environment`; a variable that is set but empty counts as unset.

        Args:
            profile: ``embedded`` fills in the engines that need no key, download or GPU.

        Raises:
            ConfigError: the first variable that cannot be used, by name.
        """
        if profile not in (None, "embedded"):
            raise ConfigError(f"profile: must be embedded, got {profile!r}")
        given = (EMBEDDED_PROFILE if profile else {}) | {name: text for name, text in environment.items() if text}
        values: dict[str, Any] = {}
        for attribute in fields(cls):
            name = variable(attribute)
            if name in given:
                try:
                    values[attribute.name] = attribute.metadata["read"](given[name])
                except ValueError as error:
                    shown = "a secret" if attribute.metadata["secret"] else repr(given[name])
                    raise ConfigError(f"{name}: {error}, got {shown}") from None
        settings = cls(**values)
        if (settings.tls_cert is None) != (settings.tls_key is None):
            given_one, missing = (
                ("STS_TLS_CERT", "STS_TLS_KEY") if settings.tls_cert else ("STS_TLS_KEY", "STS_TLS_CERT")
            )
            raise ConfigError(f"{missing}: must be set where {given_one} is")
        return settings

    @property
    def separate_metrics_port(self) -> int | None:
        """The port of /health and /metrics where it is not the main one."""
        return None if self.metrics_port in (None, self.port) else self.metrics_port


def variable(attribute: Attribute[Any]) -> str:
    """The environment variable behind a field of `Settings`."""
    return str(attribute.metadata["variable"])
