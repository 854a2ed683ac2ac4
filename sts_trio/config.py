"""Configuration: the environment, read once and validated into one frozen `Settings`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from attrs import fields, frozen

from .variables import (
    ConfigError as ConfigError,
)
from .variables import (
    HoldsSecret,
    agreed,
    device,
    expanded,
    file_path,
    formality,
    glossary_ids,
    http_url,
    integer,
    listed,
    names_of,
    number,
    one_of,
    printable,
    seconds,
    setting,
    web_origins,
)
from .variables import (
    variable as variable,
)

PROFILES: Final[Mapping[str, Mapping[str, str]]] = {
    "embedded": {"ASR_MODEL": "pocketsphinx", "TRANSLATION_PROVIDER": "apertium", "TTS_MODEL": "espeak-ng"},
    "production": {},
}
"""What `--profile` sets where the environment does not.

``embedded`` has engines that need no key, download or GPU; the engines of production are the defaults.
"""

NESTING: Final = (10, 200)
"""Between what dubbing needs and what is safe: orjson writes 254 levels, and of Python's stack half stays free."""


@frozen(kw_only=True)
class Settings:
    """Everything that can be configured. One variable of the environment each; see `load`."""

    # Server
    host: str = setting("STS_HOST", printable, "0.0.0.0", "Address to listen on.")
    port: int = setting("STS_PORT", integer(0, 65_535), 8_000, "Port of Socket.IO, /health and /metrics (0: any).")
    metrics_port: int | None = setting(
        "METRICS_PORT",
        integer(0, 65_535),
        None,
        "Port of /health and /metrics, where it is not STS_PORT; it never speaks TLS.",
    )
    tls_cert: str | None = setting(
        "STS_TLS_CERT",
        printable,
        None,
        "PEM file of the certificate with its chain; with STS_TLS_KEY, STS_PORT speaks TLS.",
    )
    tls_key: str | None = setting(
        "STS_TLS_KEY", printable, None, "PEM file of the certificate's key, without a password."
    )
    api_key: str | None = setting(
        "STS_API_KEY",
        printable,
        None,
        "Token that workers must send in `auth`; unset: none is asked for.",
        secret=True,
    )
    cors_origins: tuple[str, ...] = setting(
        "STS_CORS_ORIGINS",
        web_origins,
        (),
        "Origins of web pages that may connect, with commas, or *; all others are refused. Unset: none is asked for.",
    )
    drain_timeout_s: float = setting(
        "DRAIN_TIMEOUT_S", seconds(0, 3_600), 30.0, "Time for fragments in flight to finish after SIGTERM."
    )

    # Connections
    ping_interval_s: float = setting(
        "STS_PING_INTERVAL_S", seconds(0.1, 3_600), 25.0, "From a ping's answer to the next ping."
    )
    ping_timeout_s: float = setting(
        "STS_PING_TIMEOUT_S", seconds(0.1, 3_600), 10.0, "Time for the answer to a ping; without one it is closed."
    )
    connect_timeout_s: float = setting(
        "STS_CONNECT_TIMEOUT_S", seconds(0.1, 3_600), 45.0, "From the handshake to the first namespace that is joined."
    )
    upgrade_timeout_s: float = setting(
        "STS_UPGRADE_TIMEOUT_S", seconds(0.1, 3_600), 10.0, "Time for a session to move from polling to a WebSocket."
    )
    recovery_s: float = setting(
        "STS_RECOVERY_S", seconds(0, 3_600), 0.0,
        "How long a lost connection can be recovered with what it missed; 0: not at all, and no event has an offset.",
    )  # fmt: skip
    recovery_bytes: int = setting(
        "STS_RECOVERY_BYTES", integer(0, 2**32), 16 * 2**20, "Sent events kept for recovery, per connection."
    )

    # Limits of connections
    max_connections: int = setting("STS_MAX_CONNECTIONS", integer(1, 100_000), 512, "Connections at once.")
    max_connections_per_address: int = setting(
        "STS_MAX_CONNECTIONS_PER_ADDRESS", integer(1, 100_000), 128,
        "Of these from one address (IPv6: /64); behind a proxy everybody has the proxy's.",
    )  # fmt: skip
    handshakes_per_s: float = setting(
        "STS_HANDSHAKES_PER_S", number(0.01, 100_000), 20.0,
        "New sessions per second from one address, after STS_MAX_CONNECTIONS_PER_ADDRESS at once.",
    )  # fmt: skip
    max_message_bytes: int = setting(
        "STS_MAX_MESSAGE_BYTES", integer(1_024, 2**30), 50 * 2**20, "Largest Socket.IO message."
    )
    max_fragment_bytes: int = setting(
        "STS_MAX_FRAGMENT_BYTES",
        integer(1_024, 2**30),
        10 * 2**20,
        "Largest audio of a fragment, decoded from base64.",
    )
    send_queue_bytes: int = setting(
        "STS_SEND_QUEUE_BYTES", integer(2**16, 2**32), 128 * 2**20,
        "What may wait to be sent to one worker; one that reads too slowly is disconnected, not buffered for.",
    )  # fmt: skip
    max_packets_per_poll: int = setting(
        "STS_MAX_PACKETS_PER_POLL", integer(1, 1_000), 16, "Packets in one answer to polling; Python clients take 16."
    )
    max_attachments: int = setting(
        "STS_MAX_ATTACHMENTS", integer(0, 1_000), 10, "Binary attachments of one packet; JavaScript clients take 10."
    )
    attachments_timeout_s: float = setting(
        "STS_ATTACHMENTS_TIMEOUT_S", seconds(0.1, 3_600), 10.0, "From a packet's text to its last attachment."
    )
    max_nesting: int = setting(
        "STS_MAX_NESTING", integer(*NESTING), 100, "Depth of arrays and objects in a packet, its own array included."
    )
    max_ack_id_digits: int = setting("STS_MAX_ACK_ID_DIGITS", integer(1, 100), 20, "Digits of an acknowledgement's id.")

    # Processing
    max_inflight: int = setting(
        "MAX_INFLIGHT",
        integer(1, 10),
        3,
        "Fragments of one stream processed at once, where the worker asks for none.",
    )
    fragment_timeout_ms: int = setting(
        "FRAGMENT_TIMEOUT_MS",
        integer(1_000, 30_000),
        8_000,
        "Deadline of a fragment, where the worker asks for none.",
    )
    max_concurrent_streams: int = setting("MAX_CONCURRENT_STREAMS", integer(1, 1_000), 5, "Streams at once.")
    backpressure_critical: int | None = setting(
        "BACKPRESSURE_CRITICAL", integer(1, 1_000), None,
        "Fragments in flight above which a next one is refused; never below max_inflight (default 3 x that + 1).",
    )  # fmt: skip
    gap_timeout_ms: int | None = setting(
        "GAP_TIMEOUT_MS", integer(0, 600_000), None,
        "How long results wait for a missing sequence number (default: the stream's timeout_ms).",
    )  # fmt: skip
    resume_grace_s: float = setting(
        "RESUME_GRACE_S", seconds(0, 3_600), 30.0, "How long a stream outlives its connection."
    )
    stream_buffer_bytes: int = setting(
        "STREAM_BUFFER_BYTES", integer(2**20, 2**36), 96 * 2**20,
        "Memory for the fragments that a stream has in flight; one fragment is always taken.",
    )  # fmt: skip
    result_buffer_bytes: int = setting(
        "RESULT_BUFFER_BYTES",
        integer(0, 2**32),
        32 * 2**20,
        "Unacknowledged results kept per stream.",
    )
    fallback_mode: Literal["silence", "original"] = setting(
        "FALLBACK_MODE",
        one_of("silence", "original"),
        "silence",
        "silence or original: what stands in for speech that could not be made.",
    )

    # Models
    models_dir: Path = setting(
        "MODELS_DIR", file_path, Path("~/.cache/sts-trio/models"),
        "Where `sts-trio models pull` keeps what it downloads.", converter=expanded,
    )  # fmt: skip
    asr_model: str = setting(
        "ASR_MODEL",
        printable,
        "faster-whisper-base",
        "Speech recognition: faster-whisper- and a size, the path of a converted Whisper model, or pocketsphinx.",
    )
    asr_device: str = setting(
        "ASR_DEVICE", device, "auto", "auto, cpu or cuda: where Whisper runs; auto takes a GPU where there is one."
    )
    asr_compute_type: str = setting(
        "ASR_COMPUTE_TYPE",
        one_of(
            "auto", "float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16"
        ),
        "auto",
        "Arithmetic of Whisper, as CTranslate2 names it; auto: float16 on a GPU, int8 on a CPU.",
    )
    asr_max_batch: int = setting(
        "ASR_MAX_BATCH", integer(1, 32), 4, "Fragments that Whisper hears at once, where as many are waiting."
    )
    translation_providers: tuple[str, ...] = setting(
        "TRANSLATION_PROVIDER",
        listed,
        ("deepl",),
        "Translation: deepl or apertium; several with commas: the next is asked where one fails.",
    )
    tts_model: str = setting(
        "TTS_MODEL",
        printable,
        "coqui-xtts-v2",
        "Speech synthesis: coqui-xtts-v2, the path of a checkpoint, or espeak-ng.",
    )
    tts_device: str = setting(
        "TTS_DEVICE", device, "auto", "auto, cpu or cuda: where XTTS runs; auto takes a GPU where there is one."
    )
    voices_file: Path | None = setting(
        "VOICES_FILE",
        file_path,
        None,
        "JSON file of the voices of XTTS. Unset: the speakers of its checkpoint.",
        converter=expanded,
    )
    coqui_tos_agreed: bool = setting(
        "COQUI_TOS_AGREED",
        agreed,
        False,
        "1: you have read and accept the licence of the XTTS weights, which allows no commercial use.",
    )
    asr_slots: int = setting("ASR_SLOTS", integer(1, 64), 2, "Instances of the ASR model.")
    translation_slots: int = setting("TRANSLATION_SLOTS", integer(1, 64), 4, "Concurrent translations.")
    tts_slots: int = setting("TTS_SLOTS", integer(1, 64), 2, "Instances of the TTS model.")
    codec_slots: int = setting(
        "CODEC_SLOTS", integer(1, 64), 2, "Concurrent calls for each of decoding, stretching and encoding."
    )

    # DeepL
    deepl_api_key: str | None = setting(
        "DEEPL_API_KEY", printable, None, "Key of the DeepL API.", secret=True, alias="DEEPL_AUTH_KEY"
    )
    deepl_server_url: str | None = setting(
        "DEEPL_SERVER_URL", http_url, None, "Server of the DeepL API. Unset: the one that the key belongs to."
    )
    deepl_formality: str | None = setting(
        "DEEPL_FORMALITY",
        formality,
        None,
        "more, less, prefer_more or prefer_less: how people are addressed, in languages that tell it apart.",
    )
    deepl_glossaries: Mapping[str, str] = setting(
        "DEEPL_GLOSSARY_ID",
        glossary_ids,
        MappingProxyType({}),
        "Id of a glossary; or ids by their pair of languages, en-es=<id>,en-de=<id>.",
    )

    # GPU: read by CUDA and torch themselves, listed because the deployment sets them
    cuda_visible_devices: str | None = setting("CUDA_VISIBLE_DEVICES", str, None, "GPUs to use; read by CUDA itself.")
    pytorch_cuda_alloc_conf: str | None = setting(
        "PYTORCH_CUDA_ALLOC_CONF", str, None, "Allocator options; read by torch itself."
    )

    # Observability
    log_level: str = setting(
        "LOG_LEVEL",
        one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        "INFO",
        "DEBUG, INFO, WARNING or ERROR: least severe log lines to write.",
    )
    log_format: str = setting(
        "LOG_FORMAT", one_of("json", "console"), "json", "json or console: how log lines are written."
    )

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ, *, profile: str | None = None) -> Settings:
        """Read `environment`; a variable that is set but empty counts as unset.

        Args:
            profile: of `PROFILES`, what stands in for variables that are not set.

        Raises:
            ConfigError: the first variable that cannot be used, by name.
        """
        if profile is not None and profile not in PROFILES:
            raise ConfigError(f"profile: must be {' or '.join(PROFILES)}, got {profile!r}")
        given = {**PROFILES.get(profile or "", {}), **{name: text for name, text in environment.items() if text}}
        values: dict[str, Any] = {}
        for attribute in fields(cls):
            name = next((name for name in names_of(attribute) if name in given), None)
            if name is not None:
                try:
                    values[attribute.name] = attribute.metadata["read"](given[name])
                except ValueError as error:
                    secret = attribute.metadata["secret"] or isinstance(error, HoldsSecret)
                    shown = "a secret" if secret else repr(given[name])
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
