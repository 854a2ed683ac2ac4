"""Translation with DeepL: a key, no model, and somebody else's computer at the end of a line.

What can go wrong is the line and the account, so what this engine adds to a request is patience with a measure:

* Every request has a time of its own, a part of what is left of its fragment's deadline (`DeepLLimits`): the rest is
  for speaking what was translated. Within it, what may pass is tried again (`RetryPlan`).
* All slots share one circuit breaker: while DeepL is down, a fragment learns it at once and from nobody's deadline.
  One that DeepL will go on refusing, for its account's quota or its key, opens it at the first refusal.

==========================================  ==========================  =============  ================================
what DeepL does                             code                        tried again    to the breaker
==========================================  ==========================  =============  ================================
429                                         `RATE_LIMIT_EXCEEDED`       yes            a failure
456                                         `QUOTA_EXCEEDED`            no             stay away for `refused_s`
5xx, an answer that is not one of DeepL's   `TEMPORARY_UNAVAILABLE`     yes            a failure
no connection, a broken one, no answer      `NETWORK_ERROR`             yes            a failure
401, 403                                    `TRANSLATION_FAILED`        no             stay away for `refused_s`
400, 404 and all other                      `TRANSLATION_FAILED`        no             DeepL is there
==========================================  ==========================  =============  ================================

While the breaker is open, requests fail with the code of what opened it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import trio
from attrs import define, field, frozen

from protocol.errors import ErrorCode

from ..offload import thread_offload
from .base import EngineFailure, EngineUnavailable, Instance, Offload, Translation, TranslationRequest
from .breaker import Breaker, BreakerRule, Permit
from .deepl_languages import glossary_pair, source_code, target_code
from .resolver import Resolver
from .retry import RetryPlan

if TYPE_CHECKING:
    from .deepl_api import ApiFailure, DeepLApi

T = TypeVar("T")

log = structlog.get_logger(__name__)

_TRANSIENT: Final = frozenset({ErrorCode.RATE_LIMIT_EXCEEDED, ErrorCode.TEMPORARY_UNAVAILABLE, ErrorCode.NETWORK_ERROR})

_REFUSES_KEY: Final = (401, 403)
_REFUSES_ACCOUNT: Final = (*_REFUSES_KEY, 456)

_FORMALITY: Final = {"more": "prefer_more", "less": "prefer_less"}
"""Both mean the same where a language has formality; where it has not, the plain ones are refused with 400."""


@frozen
class DeepLLimits:
    """What DeepL may cost a fragment.

    Attributes:
        share: the part of what is left of the deadline that translating may take; speaking has the rest. Half: a
            sentence is translated in less time than it is spoken in, so only retries come near it.
        longest_s: no request takes longer, whatever its deadline.
        attempt_s: no single attempt takes longer: a server that hangs is asked again while there is time.
        fair_s: an attempt that had less time than this and got no answer says little about DeepL, maybe only that
            somebody before it was slow. To the breaker such attempts are one failure when they add up to this.
        refused_s: how long DeepL is left alone once it has refused the account.
        check_s: for the check of the key at start.
    """

    share: float = 0.5
    longest_s: float = 10.0
    attempt_s: float = 3.0
    fair_s: float = 1.0
    refused_s: float = 30.0
    check_s: float = 3.0
    retry: RetryPlan = field(factory=RetryPlan)
    breaker: BreakerRule = field(factory=BreakerRule)


# -------------------------------------------------------------------------------------- engine


@define(eq=False)
class DeepLEngine:
    """`TranslationEngine` on the DeepL API.

    Args:
        api_key: of a DeepL API account.
        server_url: None for the server that the key belongs to.
        formality: ``more``, ``less``, ``prefer_more`` or ``prefer_less``; all are preferences, see `_FORMALITY`.
        glossaries: ids by pair, such as ``en-es``; ``*`` for all pairs that have none of their own.

    Raises:
        EngineUnavailable: the package `deepl` is missing, or the key cannot be one.
    """

    api_key: str = field(repr=False)
    server_url: str | None = None
    formality: str | None = None
    glossaries: Mapping[str, str] = MappingProxyType({})
    limits: DeepLLimits = DeepLLimits()
    name: str = "deepl"
    max_batch: int = 1
    breaker: Breaker[EngineFailure] = field(init=False, repr=False)
    resolver: Resolver = field(factory=Resolver, init=False, repr=False)
    _languages: frozenset[str] = field(init=False, repr=False)
    _open: int = field(default=0, init=False, repr=False)

    @breaker.default
    def _closed(self) -> Breaker[EngineFailure]:
        return Breaker(self.limits.breaker)

    @_languages.default
    def _offered(self) -> frozenset[str]:
        try:
            from .deepl_api import offered_languages
        except ImportError as error:
            raise EngineUnavailable(
                f"TRANSLATION_PROVIDER={self.name} needs the Python package deepl ({error}): "
                "pip install 'sts-trio[translation]'"
            ) from error
        return offered_languages()

    def __attrs_post_init__(self) -> None:
        # It travels in a header.
        if not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key or not self.api_key:
            raise EngineUnavailable("DEEPL_API_KEY: must be ASCII characters without spaces: copy it once more")

    def supports(self, source: str, target: str) -> bool:
        """Whether the package knows both languages; DeepL itself is not asked."""
        return self.pair(source, target) is not None

    def pair(self, source: str, target: str) -> tuple[str, str] | None:
        """DeepL's codes of two BCP 47 tags; None where it does not translate between them."""
        codes = source_code(source, self._languages), target_code(target, self._languages)
        if codes[0] is None or codes[1] is None:
            return None
        return codes[0], codes[1]

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[TranslationRequest, Translation]]:
        """Connect, and ask DeepL whether it takes the key.

        A DeepL that cannot be reached is no reason not to start: it is logged, and requests try again.

        Raises:
            EngineUnavailable: DeepL refuses the key, or is not what `server_url` leads to.
        """
        async with self._connect(offload) as instance:
            self._open += 1
            try:
                if self._open == 1:  # one slot asks for all
                    problem = await instance.check(self.limits.check_s)
                    if problem is not None and problem.fatal:
                        raise EngineUnavailable(str(problem))
                    if problem is not None:
                        log.warning("deepl_not_ready", reason=str(problem))
                yield instance
            finally:
                self._open -= 1

    async def check(self, offload: Offload) -> Problem | None:
        """What keeps DeepL from translating at present, if anything does."""
        async with self._connect(offload) as instance:
            return await instance.check(self.limits.check_s)

    @asynccontextmanager
    async def _connect(self, offload: Offload) -> AsyncIterator[_Instance]:
        from .deepl_api import DeepLApi

        api = DeepLApi(self.api_key, self.server_url, self.resolver)
        try:
            yield _Instance(self, api, offload)
        finally:
            api.close()


@frozen
class Problem:
    """What a check of the key found; `fatal` where time will not mend it."""

    message: str
    fatal: bool = False

    def __str__(self) -> str:
        return self.message


def check_key(api_key: str, server_url: str | None = None, timeout_s: float = 3.0) -> Problem | None:
    """Ask DeepL about a key. Blocks for about `timeout_s` at most; not to be called on trio's own thread.

    Returns:
        None where the key works; else what is wrong, with the remedy.
    """
    try:
        engine = DeepLEngine(api_key, server_url, limits=DeepLLimits(check_s=timeout_s))
    except EngineUnavailable as unavailable:
        return Problem(str(unavailable), fatal=True)
    return trio.run(engine.check, thread_offload(1))


# -------------------------------------------------------------------------------------- instance


@define(eq=False)
class _Instance:
    """One slot: a client and a connection of its own, and the breaker that is everybody's."""

    _engine: DeepLEngine
    _api: DeepLApi
    _offload: Offload

    async def __call__(self, batch: Sequence[TranslationRequest], /) -> Sequence[Translation | EngineFailure]:
        return [await self._answer(request) for request in batch]

    async def check(self, limit_s: float) -> Problem | None:
        """See `DeepLEngine.check`."""
        found = await self._bounded(self._api.is_quota_spent, limit_s)
        server = self._api.server_url
        if found is False:
            return None
        if found is True:
            return Problem("the quota of DEEPL_API_KEY is spent: raise it in the account, or wait for the next period")
        if found.status in _REFUSES_KEY:
            return Problem(
                f"DEEPL_API_KEY is refused by {server} ({found.reason}): copy the key from the account's API keys, "
                "and leave DEEPL_SERVER_URL unset unless the key is for another server",
                fatal=True,
            )
        if found.status == 404 or found.garbled:
            what = f"{server} has no DeepL API ({found.reason})"
            if self._engine.server_url is not None:
                return Problem(f"DEEPL_SERVER_URL: {what}: leave it unset, or correct it", fatal=True)
            return Problem(f"{what}: something else answers for it: check the network and HTTPS_PROXY", fatal=True)
        return Problem(
            f"DeepL cannot be asked at {server} ({found.reason}): check the network, HTTPS_PROXY and DEEPL_SERVER_URL"
        )

    async def _answer(self, request: TranslationRequest) -> Translation | EngineFailure:
        await trio.lowlevel.checkpoint()
        pair = self._engine.pair(request.source_language, request.target_language)
        if pair is None:
            languages = f"{request.source_language}-{request.target_language}"
            return EngineFailure(ErrorCode.UNSUPPORTED_LANGUAGE, f"{self._engine.name} has no pair {languages}")
        if not request.text.strip():
            return Translation("")
        return await self._translate(partial(self._call, request, *pair))

    def _call(self, request: TranslationRequest, source: str, target: str) -> str:
        glossaries, formality = self._engine.glossaries, self._engine.formality
        pair = glossary_pair(request.source_language, request.target_language)
        return self._api.translate(
            request.text,
            source=source,
            target=target,
            context=request.context,
            formality=_FORMALITY.get(formality, formality) if formality else None,
            glossary=glossaries.get(pair, glossaries.get("*")),
        )

    async def _translate(self, call: Callable[[], str]) -> Translation | EngineFailure:
        """Make a blocking call until it succeeds, or trying again is not worth it."""
        limits, breaker = self._engine.limits, self._engine.breaker
        now = trio.current_time()
        until = now + min((trio.current_effective_deadline() - now) * limits.share, limits.longest_s)
        failures = 0
        failure: EngineFailure | None = None
        while True:
            permit = breaker.admit(trio.current_time())
            if permit is None:
                return failure or _not_asked(breaker)
            began = trio.current_time()
            limit_s = max(0.0, min(until - began, limits.attempt_s))
            weight = min(1.0, limit_s / limits.fair_s)
            try:
                outcome = await self._bounded(call, limit_s)
            except BaseException:  # cancelled, most likely
                if trio.current_time() - began < limit_s:  # DeepL has not said anything, nor need have
                    breaker.withdrawn(permit)
                else:
                    silence = f"DeepL: no answer within {limit_s:.1f} s"
                    self._failed(permit, EngineFailure(ErrorCode.NETWORK_ERROR, silence), weight=weight)
                raise
            if isinstance(outcome, str):
                self._succeeded(permit)
                return Translation(outcome)
            failures += 1
            if not outcome.timed_out:
                weight = 1.0
            if failure is None or weight == 1.0:
                failure = failure_of(outcome)
            wait_s = None
            if failure.code in _TRANSIENT:
                left_s = until - trio.current_time()
                wait_s = limits.retry.wait_s(
                    failures, chance=random.random(), retry_after_s=outcome.retry_after_s, left_s=left_s
                )
            if outcome.status in _REFUSES_ACCOUNT:
                self._failed(permit, failure, stay_away_s=limits.refused_s)
            elif failure.code not in _TRANSIENT:
                self._succeeded(permit)  # the request is at fault; DeepL is there
            else:
                # What was asked to wait and has time for it comes back by itself; all others need not try before.
                stay_away_s = outcome.retry_after_s or 0.0 if wait_s is None else 0.0
                self._failed(permit, failure, stay_away_s=stay_away_s, weight=weight)
            if wait_s is None:
                return failure
            await trio.sleep(wait_s)

    async def _bounded(self, call: Callable[[], T], limit_s: float) -> T | ApiFailure:
        """Offload a call that ends after `limit_s`, or soon after it is cancelled; what it failed with is returned."""
        calling = True

        async def cut_in_time() -> None:
            try:
                await trio.sleep(limit_s)
            finally:
                if calling:
                    self._api.cut()

        self._api.start(limit_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut_in_time)
            try:
                return await self._offload(_outcome, call)
            finally:
                calling = False
                nursery.cancel_scope.cancel()

    # ---------------------------------------------------------------------------------- what the breaker is told

    def _succeeded(self, permit: Permit) -> None:
        if self._engine.breaker.succeeded(permit):
            log.info("deepl_breaker_closed")

    def _failed(self, permit: Permit, failure: EngineFailure, *, stay_away_s: float = 0.0, weight: float = 1.0) -> None:
        breaker = self._engine.breaker
        if breaker.failed(permit, trio.current_time(), failure, stay_away_s=stay_away_s, weight=weight):
            log.warning(
                "deepl_breaker_open",
                code=failure.code,
                reason=str(failure),
                seconds=round(breaker.remaining_s(trio.current_time()), 1),
            )


def failure_of(found: ApiFailure) -> EngineFailure:
    """What a worker is told; the table stands at the top of this module."""
    match found.status:
        case None:
            code = ErrorCode.TEMPORARY_UNAVAILABLE if found.garbled else ErrorCode.NETWORK_ERROR
        case 429:
            code = ErrorCode.RATE_LIMIT_EXCEEDED
        case 456:
            code = ErrorCode.QUOTA_EXCEEDED
        case status if status >= 500:
            code = ErrorCode.TEMPORARY_UNAVAILABLE
        case _:
            code = ErrorCode.TRANSLATION_FAILED
    return EngineFailure(code, f"DeepL: {found.reason}")


def _not_asked(breaker: Breaker[EngineFailure]) -> EngineFailure:
    assert breaker.cause is not None
    return EngineFailure(breaker.cause.code, f"{breaker.cause} (a moment ago, and not asked again yet)")


def _outcome(call: Callable[[], T]) -> T | ApiFailure:
    from .deepl_api import ApiFailure

    try:
        return call()
    except ApiFailure as failure:
        return failure
