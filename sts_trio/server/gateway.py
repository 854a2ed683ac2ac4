"""Between connections and streams: Socket.IO events in, stream sessions out, and back.

A connection may open several streams, and a stream outlives its connection: the gateway holds which stream is reached
over which connection, and owns the sessions' tasks. Every event is answered at once; what takes time is a session's.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio
from attrs import define, frozen

from protocol.dubbing import (
    WORKER_EVENTS,
    ErrorEvent,
    FragmentData,
    ResultAck,
    ServerEvent,
    Severity,
    StreamEnd,
    StreamInit,
    StreamPause,
    StreamResume,
    WorkerEvent,
    parse,
    payload,
    readable_id,
)
from protocol.errors import ErrorCode, PayloadError

from ..config import Settings
from ..engines.suite import EngineSuite, Models
from ..observe.metrics import Metrics
from ..observe.throttle import Throttle
from ..stream.session import Identity, StreamSession
from .application import Peer, Refusal

log = structlog.get_logger(__name__)

LINES_PER_S: Final = 20
"""Log lines about what one worker does wrong, and about the streams that it opens. It is told of everything itself."""

CLOSE_AFTER_COMPLETE_S: Final = 5.0
"""A worker has this long to read its last events before the server closes (contract, ``stream:complete``)."""


@define(eq=False)
class _Link:
    """A stream and the connection it is reached over; none while its worker is away.

    Attributes:
        is_logged: whether its beginning was, and so its end will be.
    """

    session: StreamSession
    peer: Peer | None
    is_logged: bool


@frozen
class _PeerOutlet:
    """A connection as a stream sees it (`stream.session.Outlet`)."""

    peer: Peer

    def send(self, event: ServerEvent) -> None:
        self.peer.emit(event.event, payload(event))

    async def drained(self) -> None:
        await self.peer.drained()


class Gateway:
    """The application behind the Socket.IO connections of one server.

    Args:
        sessions: nursery of the streams' tasks.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        metrics: Metrics,
        identity: Identity,
        sessions: trio.Nursery,
    ) -> None:
        self._settings = settings
        self._engines: EngineSuite | None = None  # until it is opened
        self._metrics = metrics
        self._identity = identity
        self._sessions = sessions
        self._links: dict[str, _Link] = {}
        self._closed_because: str | None = "the server is starting"
        self._stream_gone = trio.Event()
        self._throttle = Throttle(LINES_PER_S)
        self._completed: dict[str, int] = {}  # streams of a connection that completed, until it is closed for it
        self._handlers: dict[type[WorkerEvent], Callable[[Peer, Any], ServerEvent | None]] = {
            StreamInit: self._init,
            FragmentData: self._fragment,
            ResultAck: self._acknowledge,
            StreamPause: lambda peer, event: self._find(peer, event.stream_id).pause(),
            StreamResume: lambda peer, event: self._find(peer, event.stream_id).resume(),
            StreamEnd: lambda peer, event: self._find(peer, event.stream_id).end(),
        }

    @property
    def active_streams(self) -> int:
        return len(self._links)

    def open(self, engines: EngineSuite) -> None:
        """Let workers in: their streams go through `engines`."""
        self._engines = engines
        self._closed_because = None

    # ---------------------------------------------------------------- what connections report

    def connected(self, peer: Peer, auth: dict[str, Any]) -> Refusal | None:
        """Let a worker in where the server is ready, and its token right where one is configured."""
        if self._closed_because is not None:
            return Refusal(self._closed_because, {"code": ErrorCode.TEMPORARY_UNAVAILABLE})
        key = self._settings.api_key
        token = auth.get("token")
        if key is None or (isinstance(token, str) and hmac.compare_digest(token.encode(), key.encode())):
            return None
        log.warning("auth_failed", address=peer.address)
        return Refusal("token missing or wrong", {"code": ErrorCode.AUTH_FAILED})

    def welcome(self, peer: Peer, auth: dict[str, Any]) -> None:
        """A worker is told nothing before it asks. One that has come back missed nothing, and its streams went on."""

    def received(self, peer: Peer, event: str, args: tuple[Any, ...]) -> tuple[object, ...]:
        """Act on a worker's event; whatever is wrong with it is answered by name and disturbs nothing else.

        Returns:
            The answer's payload, for a worker that asked for an acknowledgement callback.
        """
        cls = WORKER_EVENTS.get(event)
        if cls is None:
            self._log(peer, "unknown_event", name=event[:64])
            return ()
        answer: ServerEvent | None
        try:
            answer = self._handlers[cls](peer, parse(cls, args))
        except PayloadError as refusal:
            answer = self._refuse(peer, cls, args, refusal)
        return () if answer is None else (payload(answer),)

    def disconnected(self, peer: Peer, reason: object) -> None:
        """Its streams go on without it for `RESUME_GRACE_S`."""
        self._throttle.forget(peer.id)
        for link in self._links_of(peer):
            link.peer = None
            if self._closed_because is None:
                link.session.detach()
            else:
                link.session.cancel()  # it cannot come back: the door is closed

    async def drain(self) -> None:
        """Take nothing new; return when every stream has completed what was in flight."""
        self._closed_because = "the server is shutting down"
        for link in list(self._links.values()):
            if link.peer is None:
                link.session.cancel()  # its worker cannot come back: the door is closed
            else:
                link.session.end()
        while self._links:
            self._stream_gone = trio.Event()
            await self._stream_gone.wait()

    def abandon(self) -> None:
        """The time for draining is over: what is still in flight fails, so that every fragment has its result."""
        for link in list(self._links.values()):
            link.session.abandon(ErrorCode.TEMPORARY_UNAVAILABLE, "the server is shutting down")

    # ---------------------------------------------------------------- events, one each

    def _init(self, peer: Peer, init: StreamInit) -> ServerEvent:
        if self._closed_because is not None:
            raise _refusal(ErrorCode.TEMPORARY_UNAVAILABLE, self._closed_because)
        assert self._engines is not None, "it is open"
        old = self._links.get(init.stream_id)
        if init.resume is not None:
            return self._resume(peer, init, old)
        if old is not None and not old.session.is_gone and old.session.worker_id != init.worker_id:
            raise _refusal(ErrorCode.STREAM_EXISTS, "another worker holds this stream_id")
        _check_models(self._engines.models, init)
        if old is None and len(self._links) >= self._settings.max_concurrent_streams:
            raise _refusal(
                ErrorCode.TOO_MANY_STREAMS,
                f"all {self._settings.max_concurrent_streams} streams of this server are taken",
            )
        if old is not None and not old.session.is_gone:
            self._log(peer, "stream_replaced", stream_id=init.stream_id, session_id=old.session.session_id)
            old.session.cancel()
            if (
                old.peer is not None and old.peer is not peer
            ):  # as a rule a dead connection; else two workers of one name
                self._tell_lost(
                    old.peer, init.stream_id, ErrorCode.STREAM_EXISTS, "started afresh over another connection"
                )
        session = StreamSession(
            init,
            settings=self._settings,
            engines=self._engines,
            metrics=self._metrics,
            identity=self._identity,
            outlet=_PeerOutlet(peer),
        )
        is_logged = self._log(
            peer,
            "stream_started",
            stream_id=init.stream_id,
            session_id=session.session_id,
            worker_id=init.worker_id,
        )
        link = self._links[init.stream_id] = _Link(session, peer, is_logged)
        self._sessions.start_soon(self._live, link)
        return session.open()

    def _resume(self, peer: Peer, init: StreamInit, link: _Link | None) -> ServerEvent:
        assert init.resume is not None
        if (
            link is None
            or link.session.is_gone
            or link.session.session_id != init.resume.session_id
            or link.session.worker_id != init.worker_id
        ):
            raise _refusal(ErrorCode.STREAM_NOT_FOUND, "no such session to resume: start afresh")
        link.peer = peer  # a connection that is half dead loses the stream to its successor
        return link.session.attach(_PeerOutlet(peer), init.resume.next_sequence_number)

    def _fragment(self, peer: Peer, data: FragmentData) -> ServerEvent:
        session = self._find(peer, data.stream_id)
        size, limit = len(data.audio.data), self._settings.max_fragment_bytes
        if size > limit:
            raise PayloadError(ErrorCode.FRAGMENT_TOO_LARGE, "audio", f"{size} bytes, at most {limit} are taken")
        try:
            return session.receive(data)
        except PayloadError:
            if self._closed_because is None:
                raise
            raise _refusal(ErrorCode.TEMPORARY_UNAVAILABLE, self._closed_because) from None

    def _acknowledge(self, peer: Peer, ack: ResultAck) -> None:
        for link in self._links_of(peer):
            if ack.stream_id in (None, link.session.stream_id):
                link.session.acknowledge(ack.fragment_id)

    # ---------------------------------------------------------------- refusals

    def _refuse(self, peer: Peer, cls: type[WorkerEvent], args: tuple[Any, ...], refusal: PayloadError) -> ErrorEvent:
        stream_id, fragment_id = readable_id(args, "stream_id"), readable_id(args, "fragment_id")
        error = ErrorEvent(
            error_id=self._identity.new_id(),
            code=refusal.code,
            message=str(refusal),
            severity=Severity.WARNING if refusal.code.retryable else Severity.ERROR,
            retryable=refusal.code.retryable,
            stream_id=stream_id,
            fragment_id=fragment_id,
        )
        self._log(
            peer,
            "event_refused",
            name=cls.event,
            code=error.code,
            reason=error.message,
            error_id=error.error_id,
            stream_id=stream_id,
            fragment_id=fragment_id,
        )
        _PeerOutlet(peer).send(error)
        if cls is FragmentData:
            self._metrics.fragments_refused_total.labels(refusal.code).inc()
            if refusal.code is not ErrorCode.INVALID_SEQUENCE:
                self._pass_over(peer, stream_id, fragment_id, args)
        return error

    def _log(self, peer: Peer, event: str, **values: Any) -> bool:
        """What a worker does; one that does a great deal does not fill the log. Whether the line was written."""
        left_out = self._throttle.allow(peer.id, trio.current_time())
        if left_out is None:
            return False
        log.info(event, address=peer.address, **values, **({"lines_left_out": left_out} if left_out else {}))
        return True

    def _pass_over(self, peer: Peer, stream_id: str | None, fragment_id: str | None, args: tuple[Any, ...]) -> None:
        """Existing workers count on after a refusal: the number of what was refused must not hold others up."""
        link = self._links.get(stream_id or "")
        number = args[0].get("sequence_number") if args and isinstance(args[0], dict) else None
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if link is not None and link.peer is peer and fragment_id and type(number) is int and number >= 0:
            link.session.pass_over(fragment_id, number)

    def _find(self, peer: Peer, stream_id: str) -> StreamSession:
        link = self._links.get(stream_id)
        if link is None or link.peer is not peer:
            raise PayloadError(ErrorCode.STREAM_NOT_FOUND, "stream_id", "this connection has not opened such a stream")
        return link.session

    def _links_of(self, peer: Peer) -> list[_Link]:
        return [link for link in self._links.values() if link.peer is peer]

    # ---------------------------------------------------------------- sessions

    async def _live(self, link: _Link) -> None:
        """One stream's task: its end, however it comes, leaves nothing behind."""
        session = link.session
        completed = False
        self._metrics.streams_active.inc()
        try:
            completed = await session.run()
        except Exception:
            # A defect in one stream never harms another. Its worker is told, and can start afresh.
            error_id = self._identity.new_id()
            log.exception("stream_crashed", stream_id=session.stream_id, error_id=error_id)
            if link.peer is not None:
                reason = f"the stream was lost to an internal error {error_id}"
                self._tell_lost(link.peer, session.stream_id, ErrorCode.INTERNAL_ERROR, reason, error_id)
        finally:
            if link.is_logged:
                log.info("stream_ended", stream_id=session.stream_id, completed=completed)
            self._metrics.streams_active.dec()
            if self._links.get(session.stream_id) is link:
                del self._links[session.stream_id]
            self._stream_gone.set()
        if completed and link.peer is not None:
            await self._close_later(link.peer)

    def _tell_lost(self, peer: Peer, stream_id: str, code: ErrorCode, reason: str, error_id: str | None = None) -> None:
        error_id = error_id or self._identity.new_id()
        _PeerOutlet(peer).send(ErrorEvent(error_id, code, reason, Severity.FATAL, code.retryable, stream_id))

    async def _close_later(self, peer: Peer) -> None:
        """Close a connection after its last stream has completed; one that opened another stream stays."""
        completed = self._completed[peer.id] = self._completed.get(peer.id, 0) + 1
        await trio.sleep(CLOSE_AFTER_COMPLETE_S)
        if self._completed.get(peer.id) == completed:  # none has completed since
            del self._completed[peer.id]
            if not self._links_of(peer):
                peer.close()


def _check_models(models: Models, init: StreamInit) -> None:
    config = init.config
    source, target = config.source_language, config.target_language
    for supported, reason in (
        (models.asr.supports(source), f"{models.asr.name} does not transcribe {source}"),
        (models.translation.supports(source, target), f"{models.translation.name} has no pair {source}-{target}"),
        (models.tts.supports(target), f"{models.tts.name} does not speak {target}"),
    ):
        if not supported:
            raise _refusal(ErrorCode.UNSUPPORTED_LANGUAGE, reason)
    if not models.tts.has_voice(config.voice_profile, target):
        raise _refusal(
            ErrorCode.INVALID_VOICE_PROFILE,
            f"config.voice_profile: {models.tts.name} has no voice {config.voice_profile!r} for {target}",
        )


def _refusal(code: ErrorCode, reason: str) -> PayloadError:
    return PayloadError(code, "", reason)
