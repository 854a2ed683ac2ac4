"""Fail-over from one translator to the next: in time, in order, and not for what is the request's own fault."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractAsyncContextManager

import pytest
import structlog
import trio
from trio.testing import MockClock

from protocol.errors import ErrorCode
from sts_trio.config import Settings
from sts_trio.engines import apertium
from sts_trio.engines.base import (
    EngineFailure,
    EngineUnavailable,
    Instance,
    Translation,
    TranslationEngine,
    TranslationRequest,
)
from sts_trio.engines.failover import FailoverTranslation
from sts_trio.engines.pool import Pool
from sts_trio.engines.registry import build_translation
from sts_trio.observe.metrics import Metrics
from sts_trio.offload import Offload, thread_offload
from sts_trio.testing.engines import HANG, ScriptedTranslation, Step, inline_offload

from .conftest import need
from .deepl_server import KEY, deepl_server, error

REQUEST = TranslationRequest("hello", "en", "es")


class EnglishTo(ScriptedTranslation):
    """Translates from English to one language."""

    def __init__(self, name: str, target: str, outcome: Translation | EngineFailure, delay_s: float = 0.0) -> None:
        super().__init__(name=name, script=lambda request: Step(outcome, delay_s))
        self.target = target

    def supports(self, source: str, target: str) -> bool:
        return (source, target) == ("en", self.target)


def works(name: str, delay_s: float = 0.0, target: str = "es") -> EnglishTo:
    return EnglishTo(name, target, Translation(f"hola ({name})"), delay_s)


def fails(name: str, code: ErrorCode, delay_s: float = 0.0) -> EnglishTo:
    return EnglishTo(name, "es", EngineFailure(code, f"{name} failed"), delay_s)


async def ask(
    *providers: TranslationEngine, deadline_s: float = 9.0, request: TranslationRequest = REQUEST
) -> Translation | EngineFailure:
    async with FailoverTranslation(providers).open(inline_offload) as instance:
        with trio.fail_after(deadline_s):
            [answer] = await instance([request])
    return answer


async def test_the_first_translates_while_it_can_and_is_named() -> None:
    first, second = works("first"), works("second")
    engine = FailoverTranslation((first, second))
    assert engine.name == "first,second"
    assert engine.max_batch == 1
    assert await ask(first, second) == Translation("hola (first)", model="first")
    assert second.requests == []


async def test_who_translated_inside_of_one_of_them_is_named_instead() -> None:
    inner = FailoverTranslation((fails("a", ErrorCode.NETWORK_ERROR), works("b")))
    assert await ask(inner, works("c")) == Translation("hola (b)", model="b")


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.NETWORK_ERROR,
        ErrorCode.TEMPORARY_UNAVAILABLE,
        ErrorCode.RATE_LIMIT_EXCEEDED,
        ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.TRANSLATION_FAILED,
        ErrorCode.UNSUPPORTED_LANGUAGE,
    ],
)
async def test_what_is_the_translators_fault_goes_to_the_next(code: ErrorCode) -> None:
    assert await ask(fails("first", code), works("second")) == Translation("hola (second)", model="second")


async def test_what_is_the_requests_own_fault_is_not_hidden() -> None:
    second = works("second")
    answer = await ask(fails("first", ErrorCode.INVALID_TEXT), second)
    assert isinstance(answer, EngineFailure)
    assert answer.code is ErrorCode.INVALID_TEXT
    assert second.requests == []


async def test_a_pair_goes_to_those_who_have_it() -> None:
    spanish, german = works("spanish", target="es"), works("german", target="de")
    engine = FailoverTranslation((spanish, german))
    assert engine.supports("en", "es")
    assert engine.supports("en", "de")
    assert not engine.supports("de", "en")
    assert await ask(spanish, german, request=TranslationRequest("hello", "en", "de")) == Translation(
        "hola (german)", model="german"
    )
    assert spanish.requests == []

    answer = await ask(spanish, german, request=TranslationRequest("hallo", "de", "en"))
    assert isinstance(answer, EngineFailure)
    assert answer.code is ErrorCode.UNSUPPORTED_LANGUAGE
    assert "de-en" in str(answer)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([ErrorCode.NETWORK_ERROR, ErrorCode.TRANSLATION_FAILED], "first failed"),
        ([ErrorCode.TRANSLATION_FAILED, ErrorCode.NETWORK_ERROR], "first failed"),
        ([ErrorCode.UNSUPPORTED_LANGUAGE, ErrorCode.QUOTA_EXCEEDED], "second failed"),
        ([ErrorCode.UNSUPPORTED_LANGUAGE, ErrorCode.UNSUPPORTED_LANGUAGE], "first failed"),
    ],
)
async def test_where_all_fail_the_first_that_could_is_heard(codes: list[ErrorCode], expected: str) -> None:
    answer = await ask(*(fails(name, code) for name, code in zip(("first", "second"), codes, strict=True)))
    assert isinstance(answer, EngineFailure)
    assert str(answer) == expected


async def test_a_batch_that_failed_as_a_whole_goes_to_the_next_as_well() -> None:
    first = ScriptedTranslation(name="first", script=_fail)
    assert await ask(first, works("second")) == Translation("hola (second)", model="second")


def _fail(request: TranslationRequest) -> Step[Translation]:
    raise EngineFailure(ErrorCode.TRANSLATION_FAILED, "all of it")


# ------------------------------------------------------------------------------------------ time


async def test_one_that_hangs_leaves_the_next_a_share_of_the_time(autojump_clock: MockClock) -> None:
    first = works("first", HANG)
    started = trio.current_time()
    assert await ask(first, works("second", delay_s=2.0)) == Translation("hola (second)", model="second")
    assert trio.current_time() - started == pytest.approx(9.0 * 2 / 3 + 2.0)
    assert first.cancelled == 1


async def test_the_last_has_all_the_time_that_is_left(autojump_clock: MockClock) -> None:
    network = ErrorCode.NETWORK_ERROR
    assert isinstance(await ask(fails("first", network, 5.0), works("second", 3.9)), Translation)
    with pytest.raises(trio.TooSlowError):  # nobody swallows the deadline
        await ask(fails("first", network, 5.0), works("second", 4.1))


async def test_without_a_deadline_nobody_is_hurried(autojump_clock: MockClock) -> None:
    assert await ask(works("first", 3_600.0), works("second"), deadline_s=float("inf")) == Translation(
        "hola (first)", model="first"
    )


async def test_a_hang_and_a_failure_are_told_as_the_hang(autojump_clock: MockClock) -> None:
    answer = await ask(works("first", HANG), fails("second", ErrorCode.TRANSLATION_FAILED))
    assert isinstance(answer, EngineFailure)
    assert answer.code is ErrorCode.TEMPORARY_UNAVAILABLE
    assert "first: no answer within 6.0 s" in str(answer)


async def test_a_request_that_nobody_waits_for_goes_to_nobody_else(autojump_clock: MockClock) -> None:
    first, second = works("first", HANG), works("second")
    pool = Pool(
        "translation",
        FailoverTranslation((first, second)),
        slots=1,
        max_waiting=9,
        offload=inline_offload,
        metrics=Metrics(),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        async with trio.open_nursery() as fragment:
            fragment.start_soon(lambda: pool.submit(REQUEST, stream="s"))
            await trio.sleep(1.0)
            fragment.cancel_scope.cancel()
        await trio.sleep(1.0)
        assert first.cancelled == 1
        assert second.requests == []
        nursery.cancel_scope.cancel()


async def test_a_deadline_that_has_just_passed_is_a_deadline(autojump_clock: MockClock) -> None:
    """The event loop was busy, and has not delivered it yet."""
    first, second = works("first", 1.0), works("second")
    async with FailoverTranslation((first, second)).open(inline_offload) as instance:
        with trio.move_on_after(1.0) as scope:
            autojump_clock.jump(1.001)
            await instance([REQUEST])
    assert scope.cancelled_caught
    assert second.requests == []


# ------------------------------------------------------------------------------------------ defects


def broken(name: str) -> ScriptedTranslation:
    return ScriptedTranslation(name=name, script=lambda _: Step(ZeroDivisionError("a defect")))


async def test_a_defect_of_one_is_logged_and_the_next_translates() -> None:
    with structlog.testing.capture_logs() as logs:
        assert await ask(broken("first"), works("second")) == Translation("hola (second)", model="second")
    [defect] = [line for line in logs if line["event"] == "engine_defect"]
    assert defect["provider"] == "first"
    assert defect["exc_info"]


async def test_a_defect_with_which_nobody_can_help_is_a_defect_as_ever() -> None:
    with pytest.raises(ZeroDivisionError):
        await ask(fails("first", ErrorCode.NETWORK_ERROR), broken("second"))
    answer = await ask(broken("first"), fails("second", ErrorCode.NETWORK_ERROR))
    assert isinstance(answer, EngineFailure)
    assert answer.code is ErrorCode.INTERNAL_ERROR
    assert str(answer) == "first: internal error"


# ------------------------------------------------------------------------------------------ life


async def test_one_that_cannot_be_opened_keeps_the_server_from_starting_and_the_others_are_closed() -> None:
    class Unavailable(EnglishTo):
        def open(  # type: ignore[override]  # the scripted one returns more than the promise asks
            self, offload: Offload
        ) -> AbstractAsyncContextManager[Instance[TranslationRequest, Translation]]:
            raise EngineUnavailable("second is missing")

    first = works("first")
    with pytest.raises(EngineUnavailable, match="second is missing"):
        await ask(first, Unavailable("second", "es", Translation("")))
    assert first.open_instances == 0


async def test_the_log_tells_when_it_begins_and_when_it_is_over() -> None:
    outcomes: list[Translation | EngineFailure] = [EngineFailure(ErrorCode.NETWORK_ERROR, "gone")] * 3
    outcomes += [Translation("hola")] * 2
    first = ScriptedTranslation(name="first", script=lambda _: Step(outcomes.pop(0)))
    async with FailoverTranslation((first, works("second"))).open(inline_offload) as instance:
        with structlog.testing.capture_logs() as logs:
            for _ in range(5):
                await instance([REQUEST])
    assert [(line["event"], line["provider"]) for line in logs] == [
        ("translation_provider_failing", "first"),
        ("translation_provider_back", "first"),
    ]
    assert logs[0]["code"] is ErrorCode.NETWORK_ERROR


@pytest.mark.slow
async def test_apertium_translates_what_deepl_cannot() -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")
    need(list(apertium.MODES.glob("*.mode")), "apt install apertium apertium-eng-spa")
    async with deepl_server() as server, trio.open_nursery() as nursery:
        settings = Settings.load(
            {"TRANSLATION_PROVIDER": "deepl,apertium", "DEEPL_API_KEY": KEY, "DEEPL_SERVER_URL": server.url}
        )
        engine = build_translation(settings)
        assert engine.name == "deepl,apertium"
        pool = Pool("translation", engine, slots=1, max_waiting=9, offload=thread_offload(2), metrics=Metrics())
        await nursery.start(pool.run)

        async def translate() -> Translation:
            with trio.fail_after(6.0):
                return await pool.submit(TranslationRequest("The house is red", "en", "es"), stream="s")

        assert await translate() == Translation("<ES>The house is red", model="deepl")
        server.always = error(456)
        assert await translate() == Translation("La casa es roja", model="apertium")
        started = trio.current_time()
        assert (await translate()).model == "apertium"
        assert trio.current_time() - started < 0.25  # DeepL is not even asked
        assert len(server.requests) == 2
        nursery.cancel_scope.cancel()
