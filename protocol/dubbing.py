"""The dubbing contract: every event between a media-service worker and the server as a frozen class.

The events are ordinary Socket.IO events with one object as argument. :func:`parse` turns such an object into its
class and refuses it by the name of the field that is wrong; :func:`payload` turns a class into the object to send.
Unknown extra fields are ignored (contract, "Worker to server"); wrong types are never coerced, with one exception:
JSON has a single number type, so ``6000.0`` is the integer 6000.

Units are in the names: ``_ms`` milliseconds, ``_hz`` samples per second, ``_bytes`` bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, TypeVar

import pybase64
from attrs import Factory, frozen

from .errors import ErrorCode, PayloadError, Stage
from .structuring import Between, Json, OneOf, Text, converter, first_error, forget_frames

MAX_ID_CHARACTERS: Final = 256
"""Ids travel into logs and replies: longer ones are refused rather than carried along."""

MAX_METADATA_BYTES: Final = 64 * 1024
"""A fragment's metadata goes back with its result, which may be kept for a while."""

MAX_HINTS_BYTES: Final = 64 * 1024
"""Domain hints are kept as long as their stream and go to the translator with each fragment."""

Id = Annotated[str, Text(1, MAX_ID_CHARACTERS)]
Language = Annotated[str, Text(2, 35)]  # 35: the longest tag BCP 47 asks implementations to hold (RFC 5646, 4.4.1)
Format = Annotated[str, OneOf("pcm_s16le", "wav", "m4a")]
SampleRate = Annotated[int, Between(8_000, 96_000)]
Channels = Annotated[int, Between(1, 2)]
Count = Annotated[int, Between(0, 2**53)]  # 2**53: the largest integer that every JSON reader keeps exactly


class Severity(StrEnum):
    """How bad an ``error`` event is: `fatal` ends the stream or connection it names."""

    WARNING = "warning"
    ERROR = "error"
    FATAL = "fatal"


@frozen
class Audio:
    """One fragment's audio.

    Attributes:
        format: ``pcm_s16le`` (interleaved, little-endian), ``wav`` or ``m4a`` (AAC in MP4).
        data: the encoded audio itself, never base64.
        binary: whether it travels as a Socket.IO attachment (``data``) rather than as text (``data_base64``).
    """

    format: str
    sample_rate_hz: int
    channels: int
    duration_ms: int
    data: bytes
    binary: bool = False


@frozen
class _AudioFields:
    """The part of an audio object that is the same in both ways of carrying its bytes."""

    format: Format
    sample_rate_hz: SampleRate
    channels: Channels
    duration_ms: Annotated[int, Between(0, 60_000)]
    data_base64: str | None = None
    data: bytes | None = None


def _read_audio(value: Any, _: Any = None) -> Audio:
    fields = converter.structure(value, _AudioFields)
    if fields.data is not None:
        data, binary = fields.data, True
    elif fields.data_base64 is not None:
        try:
            data, binary = pybase64.b64decode(fields.data_base64, validate=True), False
        except ValueError:
            raise PayloadError(ErrorCode.INVALID_FRAGMENT, "data_base64", "not valid base64") from None
    else:
        raise PayloadError(ErrorCode.INVALID_FRAGMENT, "data_base64", "required field is missing")
    return Audio(fields.format, fields.sample_rate_hz, fields.channels, fields.duration_ms, data, binary)


def _write_audio(audio: Audio) -> dict[str, Any]:
    body = {
        "format": audio.format,
        "sample_rate_hz": audio.sample_rate_hz,
        "channels": audio.channels,
        "duration_ms": audio.duration_ms,
    }
    if audio.binary:
        return body | {"data": audio.data}
    return body | {"data_base64": pybase64.b64encode_as_string(audio.data)}


converter.register_structure_hook(Audio, _read_audio)
converter.register_unstructure_hook(Audio, _write_audio)


# -------------------------------------------------------------------------------------- worker to server


@frozen
class StreamConfig:
    """What a stream is: languages, voice and the audio it sends and gets back."""

    source_language: Language
    target_language: Language
    voice_profile: Id
    chunk_duration_ms: Annotated[int, Between(100, 60_000)]
    sample_rate_hz: SampleRate
    channels: Channels
    format: Format
    domain_hints: Annotated[tuple[str, ...], Json(MAX_HINTS_BYTES)] | None = None


@frozen
class Resume:
    """Which session a worker wants back, and the first sequence number it has no result of."""

    session_id: Id
    next_sequence_number: Count | None = None


@frozen
class StreamInit:
    """Opens a stream, or takes one up again."""

    event: ClassVar[str] = "stream:init"
    stream_id: Id
    worker_id: Id
    config: StreamConfig
    max_inflight: Annotated[int, Between(1, 10)] | None = None
    timeout_ms: Annotated[int, Between(1_000, 30_000)] | None = None
    resume: Resume | None = None


@frozen
class FragmentData:
    """One fragment of a programme's audio."""

    event: ClassVar[str] = "fragment:data"
    fragment_id: Id
    stream_id: Id
    sequence_number: Count
    timestamp: Count
    audio: Audio
    metadata: Annotated[dict[str, Any], Json(MAX_METADATA_BYTES)] | None = None


@frozen
class ResultAck:
    """The worker's ``fragment:ack``: it holds the result, which need not be kept any longer."""

    event: ClassVar[str] = "fragment:ack"
    fragment_id: Id
    status: Annotated[str, OneOf("received", "applied")]
    timestamp: Count | None = None
    stream_id: Id | None = None  # for a connection with several streams; without it, all of them are meant


@frozen
class StreamPause:
    """Nothing more comes for now; what is in flight completes."""

    event: ClassVar[str] = "stream:pause"
    stream_id: Id
    reason: str | None = None


@frozen
class StreamResume:
    """Ends a pause."""

    event: ClassVar[str] = "stream:resume"
    stream_id: Id
    reason: str | None = None


@frozen
class StreamEnd:
    """The last fragment was sent: complete what is in flight, then ``stream:complete``."""

    event: ClassVar[str] = "stream:end"
    stream_id: Id
    reason: str | None = None


WorkerEvent = StreamInit | FragmentData | ResultAck | StreamPause | StreamResume | StreamEnd

# -------------------------------------------------------------------------------------- server to worker


@frozen
class StreamReady:
    """The stream is open."""

    event: ClassVar[str] = "stream:ready"
    stream_id: str
    session_id: str
    max_inflight: int
    capabilities: dict[str, bool]


@frozen
class FragmentAck:
    """The server's ``fragment:ack``: the fragment was taken and will get exactly one result."""

    event: ClassVar[str] = "fragment:ack"
    fragment_id: str
    status: str
    timestamp: int
    queue_position: int
    estimated_completion_ms: int


@frozen
class FragmentError:
    """Why a fragment failed, inside its result."""

    code: ErrorCode
    message: str
    stage: Stage
    retryable: bool


@frozen
class StageTimings:
    """Time spent in each model stage, waiting for a free instance included."""

    asr_ms: int = 0
    translation_ms: int = 0
    tts_ms: int = 0


@frozen
class FragmentProcessed:
    """The one result of an accepted fragment. ``metadata`` holds the worker's own keys beside the contract's."""

    event: ClassVar[str] = "fragment:processed"
    fragment_id: str
    stream_id: str
    sequence_number: int
    status: str
    processing_time_ms: int
    stage_timings: StageTimings
    dubbed_audio: Audio | None = None
    transcript: str | None = None
    translated_text: str | None = None
    error: FragmentError | None = None
    metadata: dict[str, Any] = Factory(dict)


@frozen
class Backpressure:
    """The level of a stream's load changed (contract, "Flow control")."""

    event: ClassVar[str] = "backpressure"
    stream_id: str
    severity: str
    action: str
    current_inflight: int
    max_inflight: int
    queue_depth: int
    recommended_delay_ms: int
    threshold_exceeded: str | None = None


@frozen
class Statistics:
    """Counts and times of a stream's first results."""

    success_count: int
    partial_count: int
    failed_count: int
    avg_processing_time_ms: int
    p95_processing_time_ms: int


@frozen
class StreamComplete:
    """Everything of the stream was delivered. The same counts stand beside `statistics`, for older workers."""

    event: ClassVar[str] = "stream:complete"
    stream_id: str
    total_fragments: int
    total_duration_ms: int
    statistics: Statistics
    success_count: int
    partial_count: int
    failed_count: int
    avg_processing_time_ms: int
    p95_processing_time_ms: int


@frozen
class ErrorEvent:
    """Something was refused or is wrong; `error_id` finds it in the server's log."""

    event: ClassVar[str] = "error"
    error_id: str
    code: ErrorCode
    message: str
    severity: Severity
    retryable: bool
    stream_id: str | None = None
    fragment_id: str | None = None
    metadata: dict[str, Any] | None = None


ServerEvent = StreamReady | FragmentAck | FragmentProcessed | Backpressure | StreamComplete | ErrorEvent

WORKER_EVENTS: Final[dict[str, type[WorkerEvent]]] = {
    cls.event: cls for cls in (StreamInit, FragmentData, ResultAck, StreamPause, StreamResume, StreamEnd)
}
SERVER_EVENTS: Final[dict[str, type[ServerEvent]]] = {
    cls.event: cls for cls in (StreamReady, FragmentAck, FragmentProcessed, Backpressure, StreamComplete, ErrorEvent)
}

_E = TypeVar("_E", bound=WorkerEvent | ServerEvent)


def parse(cls: type[_E], arguments: tuple[Any, ...]) -> _E:
    """Read the arguments of a Socket.IO event as `cls`.

    Raises:
        PayloadError: the first field that is wrong, by name.
    """
    code = ErrorCode.INVALID_FRAGMENT if cls.event.startswith("fragment:") else ErrorCode.INVALID_CONFIG
    body = arguments[0] if arguments else None
    if not isinstance(body, dict):
        raise PayloadError(code, "", f"{cls.event} takes one object as its argument")
    try:
        return converter.structure(body, cls)
    except Exception as error:  # noqa: BLE001 - cattrs groups whatever a hook raised; first_error re-raises defects
        field, reason = first_error(error)
        forget_frames(error)
    raise PayloadError(code, field, reason)  # here, and not in the block above: it would hold `error` as its context


def payload(event: WorkerEvent | ServerEvent) -> dict[str, Any]:
    """The object to send for `event`: optional fields that are None are left out, except where null has a meaning."""
    body: dict[str, Any] = converter.unstructure(event)
    if isinstance(event, Backpressure):
        body.setdefault("threshold_exceeded", None)  # null is part of the contract
    return body


def readable_id(arguments: tuple[Any, ...], key: str) -> str | None:
    """``stream_id`` or ``fragment_id`` of a payload that may be wrong in any other way, to refuse it by name."""
    body = arguments[0] if arguments else None
    value = body.get(key) if isinstance(body, dict) else None
    return value[:MAX_ID_CHARACTERS] if isinstance(value, str) else None
