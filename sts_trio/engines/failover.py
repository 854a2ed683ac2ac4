"""Several translators, one after the other: where one fails the next is asked, while there is time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
import trio
from attrs import define, evolve, field, frozen

from protocol.errors import ErrorCode

from .base import EngineFailure, Instance, Offload, Translation, TranslationEngine, TranslationRequest

log = structlog.get_logger(__name__)

SHARE: Final = 2 / 3
"""Of the time that is left, what a translator may take while there is another to ask."""

_ITS_OWN_FAULT: Final = frozenset({ErrorCode.INVALID_TEXT})
"""What every translator would say of the same request."""


@frozen(eq=False)
class FailoverTranslation:
    """`TranslationEngine` of others, in the order in which they are asked.

    Where all fail the request fails as it did at the first of them that has the pair of languages: that one is what was
    meant to translate. `Translation.model` says who did. A defect of one is logged, and the next is asked; that of the
    last propagates.
    """

    providers: tuple[TranslationEngine, ...]
    share: float = SHARE
    max_batch: int = 1
    _failing: set[str] = field(factory=set, init=False, repr=False)
    """Names of those that failed last time: the log tells the change, not every fragment."""

    @property
    def name(self) -> str:
        return ",".join(provider.name for provider in self.providers)

    def supports(self, source: str, target: str) -> bool:
        """Whether any of them does."""
        return any(provider.supports(source, target) for provider in self.providers)

    @asynccontextmanager
    async def open(self, offload: Offload) -> AsyncIterator[Instance[TranslationRequest, Translation]]:
        """An instance of each; one that cannot be opened keeps the server from starting, as if it were alone."""
        async with AsyncExitStack() as opened:
            instances = [await opened.enter_async_context(provider.open(offload)) for provider in self.providers]
            yield _Instance(self, tuple(zip(self.providers, instances, strict=True)))

    def tell(self, provider: str, failure: EngineFailure | None) -> None:
        """Log where a provider begins to fail, or has stopped to."""
        if failure is not None and provider not in self._failing:
            self._failing.add(provider)
            log.warning("translation_provider_failing", provider=provider, code=failure.code, reason=str(failure))
        elif failure is None and provider in self._failing:
            self._failing.remove(provider)
            log.info("translation_provider_back", provider=provider)


@define(eq=False)
class _Instance:
    _engine: FailoverTranslation
    _providers: tuple[tuple[TranslationEngine, Instance[TranslationRequest, Translation]], ...]

    async def __call__(self, batch: Sequence[TranslationRequest], /) -> Sequence[Translation | EngineFailure]:
        return [await self._answer(request) for request in batch]

    async def _answer(self, request: TranslationRequest) -> Translation | EngineFailure:
        able = [
            (provider.name, instance)
            for provider, instance in self._providers
            if provider.supports(request.source_language, request.target_language)
        ]
        failures: list[EngineFailure] = []
        for number, (name, instance) in enumerate(able, 1):
            answer = await self._ask(name, instance, request, last=number == len(able))
            if isinstance(answer, Translation):
                self._engine.tell(name, None)
                return answer if answer.model else evolve(answer, model=name)
            if answer.code in _ITS_OWN_FAULT:
                return answer
            if answer.code is not ErrorCode.UNSUPPORTED_LANGUAGE:  # of which it may only learn when it asks
                self._engine.tell(name, answer)
            failures.append(answer)
        useful = [failure for failure in failures if failure.code is not ErrorCode.UNSUPPORTED_LANGUAGE] or failures
        if useful:
            return useful[0]
        pair = f"{request.source_language}-{request.target_language}"
        return EngineFailure(ErrorCode.UNSUPPORTED_LANGUAGE, f"none of {self._engine.name} has the pair {pair}")

    async def _ask(
        self, name: str, instance: Instance[TranslationRequest, Translation], request: TranslationRequest, *, last: bool
    ) -> Translation | EngineFailure:
        left_s = trio.current_effective_deadline() - trio.current_time()
        # A deadline that has just passed is not yet delivered.
        limit_s = math.inf if last else max(0.0, left_s * self._engine.share)
        try:
            # The scope is inside: it takes its Cancelled out of a group, and what is left of that is a defect.
            with trio.move_on_after(limit_s):
                [answer] = await instance([request])
                return answer
        except EngineFailure as failure:
            return failure
        except Exception:
            if last:
                raise
            log.exception("engine_defect", provider=name)  # and the request is translated all the same
            return EngineFailure(ErrorCode.INTERNAL_ERROR, f"{name}: internal error")
        return EngineFailure(ErrorCode.TEMPORARY_UNAVAILABLE, f"{name}: no answer within {limit_s:.1f} s")
