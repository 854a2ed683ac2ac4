"""DeepL in bad weather, on real sockets and short real time: no fragment waits longer than it may, and no slot."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any, TypeVar

import pytest
import structlog
import trio
import trustme
from attrs import evolve
from trio.testing import MockClock

from protocol.errors import ErrorCode
from sts_trio.engines import resolver
from sts_trio.engines.base import EngineFailure, Instance, Translation, TranslationRequest
from sts_trio.engines.breaker import BreakerRule
from sts_trio.engines.deepl import DeepLEngine, DeepLLimits
from sts_trio.engines.failover import FailoverTranslation
from sts_trio.engines.pool import Pool
from sts_trio.engines.retry import RetryPlan
from sts_trio.observe.metrics import Metrics
from sts_trio.offload import thread_offload
from sts_trio.testing.engines import ScriptedTranslation, Step

from .conftest import need
from .deepl_server import HANG, KEY, DeepLServer, Reply, deepl_server, error

T = TypeVar("T")

OFFLOAD = thread_offload(4)

RETRY = RetryPlan(first_s=0.02, longest_s=0.08, useful_s=0.01)

LIMITS = DeepLLimits(
    longest_s=1.0,
    attempt_s=0.2,
    fair_s=0.05,
    refused_s=0.2,
    check_s=0.2,
    retry=RETRY,
    breaker=BreakerRule(failures=3, first_open_s=0.1, longest_open_s=0.4),
)
"""A tenth of production's and less."""

PATIENT = DeepLLimits(attempt_s=0.1, retry=RETRY, breaker=BreakerRule(failures=1_000))

SLACK_S = 0.25
"""For a machine that is busy with something else."""

Translate = Instance[TranslationRequest, Translation]


@pytest.fixture
async def server() -> AsyncIterator[DeepLServer]:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")
    async with deepl_server() as server:
        yield server


async def ask(instance: Translate, text: str = "hello", deadline_s: float = 2.0) -> Translation | EngineFailure:
    """As the pool asks: within a scope whose deadline is the fragment's."""
    with trio.fail_after(deadline_s):
        [answer] = await instance([TranslationRequest(text, "en", "es")])
    return answer


async def code(instance: Translate, deadline_s: float = 2.0) -> ErrorCode | None:
    answer = await ask(instance, deadline_s=deadline_s)
    return answer.code if isinstance(answer, EngineFailure) else None


# ------------------------------------------------------------------------------------------ retries and the deadline


@pytest.mark.slow
async def test_retries_end_within_the_share_of_the_deadline(server: DeepLServer) -> None:
    server.always = error(503)
    async with DeepLEngine(KEY, server.url, limits=PATIENT).open(OFFLOAD) as instance:
        for deadline_s in (0.2, 0.6):
            server.requests.clear()
            started = trio.current_time()
            assert await code(instance, deadline_s) is ErrorCode.TEMPORARY_UNAVAILABLE
            assert trio.current_time() - started < PATIENT.share * deadline_s + SLACK_S
            assert len(server.requests) > 1


@pytest.mark.slow
@pytest.mark.parametrize("reply", [HANG, Reply(drop_s=0.02), Reply(delay_s=0.15)], ids=["hangs", "in drops", "slow"])
async def test_a_server_that_does_not_finish_is_asked_again_and_given_up_in_time(
    server: DeepLServer, reply: Reply
) -> None:
    server.always = reply
    async with DeepLEngine(KEY, server.url, limits=PATIENT).open(OFFLOAD) as instance:
        started = trio.current_time()
        assert await code(instance, deadline_s=0.6) is ErrorCode.NETWORK_ERROR
        assert trio.current_time() - started < 0.3 + SLACK_S
        assert 2 <= len(server.requests) <= 3

        server.always = Reply()
        assert await code(instance) is None


async def test_an_attempt_has_no_more_time_than_there_is(server: DeepLServer) -> None:
    server.always = HANG
    async with DeepLEngine(KEY, server.url, limits=DeepLLimits()).open(OFFLOAD) as instance:
        started = trio.current_time()
        assert await code(instance, deadline_s=0.2) is ErrorCode.NETWORK_ERROR
        assert trio.current_time() - started < 0.1 + SLACK_S


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_waited_for(server: DeepLServer, status: int) -> None:
    async with DeepLEngine(KEY, server.url, limits=DeepLLimits(retry=RETRY)).open(OFFLOAD) as instance:
        server.will(error(status, Retry_After="1"))
        started = trio.current_time()
        assert await code(instance, deadline_s=4.0) is None
        assert 1.0 <= trio.current_time() - started < 1.0 + SLACK_S

        now = time()
        server.will(error(status, Retry_After=formatdate(now + 1.5, usegmt=True)))  # it has whole seconds
        assert await code(instance, deadline_s=6.0) is None
        assert int(now + 1.5) <= time() < now + 1.5 + SLACK_S


async def test_a_wait_that_is_too_long_is_not_begun_and_others_need_not_ask_before(server: DeepLServer) -> None:
    server.will(error(429, "Too many requests", Retry_After="30"))
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        started = trio.current_time()
        assert await code(instance) is ErrorCode.RATE_LIMIT_EXCEEDED
        for _ in range(10):
            assert await code(instance) is ErrorCode.RATE_LIMIT_EXCEEDED
        assert trio.current_time() - started < SLACK_S
        assert len(server.requests) == 1


@pytest.mark.slow
async def test_nothing_of_a_failure_stays_in_the_connection(server: DeepLServer) -> None:
    """An answer that comes too late is never taken for that of the next request."""
    async with DeepLEngine(KEY, server.url, limits=PATIENT).open(OFFLOAD) as instance:
        for number in range(12):
            server.will([HANG, Reply(breaks="reset in body"), Reply(drop_s=0.03), Reply(delay_s=0.11)][number % 4])
            assert await ask(instance, f"sentence {number}") == Translation(f"<ES>sentence {number}")


async def test_a_connection_that_the_server_ends_is_ended_here_as_well(server: DeepLServer) -> None:
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        server.will(Reply(headers={"Connection": "close"}))
        assert await ask(instance) == Translation("<ES>hello")
        with trio.fail_after(1.0):
            await server.all_ended.wait()
        server.will(Reply(headers={"Connection": "close"}, drop_s=0.02))
        assert await code(instance) is None  # cut as any other, and asked again
        assert server.gone == 1


# ------------------------------------------------------------------------------------------ giving up


@pytest.mark.slow
@pytest.mark.parametrize("reply", [HANG, Reply(drop_s=0.02)], ids=["hangs", "in drops"])
async def test_a_cancelled_call_frees_its_slot_soon(server: DeepLServer, reply: Reply) -> None:
    engine = DeepLEngine(KEY, server.url, limits=DeepLLimits(breaker=BreakerRule(failures=1)))
    pool = Pool("translation", engine, slots=1, max_waiting=10, offload=OFFLOAD, metrics=Metrics())
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        server.will(reply)
        async with trio.open_nursery() as fragment:
            fragment.start_soon(_submit, pool)
            await trio.sleep(0.05)  # of the seconds that it has
            fragment.cancel_scope.cancel()
        started = trio.current_time()
        assert await _submit(pool) == "<ES>hello"
        assert trio.current_time() - started < SLACK_S
        assert server.gone == 1  # the server sees it, too
        nursery.cancel_scope.cancel()


async def _submit(pool: Pool[TranslationRequest, Translation], text: str = "hello") -> str:
    with trio.fail_after(5.0):
        return (await pool.submit(TranslationRequest(text, "en", "es"), stream="s")).text


async def test_cancelling_between_two_tries_takes_no_time(server: DeepLServer) -> None:
    server.always = error(503)
    limits = DeepLLimits(retry=RetryPlan(first_s=2.0, jitter=0.0))
    async with DeepLEngine(KEY, server.url, limits=limits).open(OFFLOAD) as instance:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, instance, "hello", 10.0)
            await trio.sleep(0.1)  # it has its answer, and the next try is two seconds away
            started = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started < 0.05
    assert len(server.requests) == 1


@pytest.mark.slow
async def test_a_connection_that_nobody_accepts_is_left_when_the_call_is_cancelled() -> None:
    """A full backlog, where packets of newcomers are dropped: as behind a firewall."""
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            limits = DeepLLimits(check_s=0.1)
            async with DeepLEngine(KEY, f"http://127.0.0.1:{port}", limits=limits).open(OFFLOAD) as instance:
                with trio.move_on_after(0.1) as scope:
                    await instance([TranslationRequest("hello", "en", "es")])
                assert trio.current_time() - scope.deadline < SLACK_S


@pytest.mark.slow
async def test_a_call_over_tls_is_cut_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")
    authority, bundle = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    async with deepl_server(tls) as server:
        async with DeepLEngine(KEY, server.url, limits=PATIENT).open(OFFLOAD) as instance:
            answer = await ask(instance, deadline_s=0.3)
        assert isinstance(answer, EngineFailure)
        assert answer.code is ErrorCode.NETWORK_ERROR
        assert "certificate" in str(answer)

        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
        async with DeepLEngine(KEY, server.url, limits=PATIENT).open(OFFLOAD) as instance:
            assert await code(instance) is None
            connections = server.connections
            for reply in (HANG, Reply(drop_s=0.02)):
                server.will(reply)
                started = trio.current_time()
                assert await code(instance, deadline_s=1.0) is None  # at the second attempt
                assert trio.current_time() - started < 0.1 + RETRY.first_s + SLACK_S
            assert server.connections == connections + 2


async def test_a_handshake_that_hangs_is_cut() -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")

    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    @asynccontextmanager
    async def silent() -> AsyncIterator[int]:
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, say_nothing, [listener])
            yield listener.socket.getsockname()[1]
            nursery.cancel_scope.cancel()

    async with silent() as port:
        limits = DeepLLimits(check_s=0.05)
        async with DeepLEngine(KEY, f"https://localhost:{port}", limits=limits).open(OFFLOAD) as instance:
            with trio.move_on_after(0.05) as scope:
                await instance([TranslationRequest("hello", "en", "es")])
            assert trio.current_time() - scope.deadline < SLACK_S


# ------------------------------------------------------------------------------------------ names


@pytest.fixture
def no_name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """From when it is set on lookups do not end, and nothing can end them."""
    silent, end, getaddrinfo = threading.Event(), threading.Event(), socket.getaddrinfo

    def look_up(*arguments: Any, **options: Any) -> Any:
        if silent.is_set():
            assert end.wait(30.0)
        return getaddrinfo(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield silent
    end.set()


@pytest.mark.slow
async def test_a_resolver_that_does_not_answer_is_an_outage_like_any_other(no_name_server: threading.Event) -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")
    async with deepl_server() as server, trio.open_nursery() as nursery:
        no_name_server.set()
        engine = DeepLEngine(KEY, server.url, limits=LIMITS)
        pool = Pool("translation", engine, slots=2, max_waiting=10, offload=OFFLOAD, metrics=Metrics())
        with structlog.testing.capture_logs() as logs:
            await nursery.start(pool.run)  # even at start
        assert [line["event"] for line in logs] == ["deepl_not_ready"]
        assert "no answer to the lookup of localhost within 0.2 s" in logs[0]["reason"]

        for _ in range(4):
            started = trio.current_time()
            with pytest.raises(EngineFailure, match="lookup of localhost") as failed:
                await _submit(pool)
            assert failed.value.code is ErrorCode.NETWORK_ERROR
            assert trio.current_time() - started < LIMITS.longest_s + SLACK_S
        assert not engine.breaker.closed
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_resolver_that_does_not_answer_leaves_the_next_provider_its_time(
    no_name_server: threading.Event,
) -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")
    async with deepl_server() as server:
        no_name_server.set()
        deepl = DeepLEngine(KEY, server.url, limits=LIMITS)
        other = ScriptedTranslation(name="other", script=lambda _: Step(Translation("hola")))
        async with FailoverTranslation((deepl, other)).open(OFFLOAD) as instance:
            assert await ask(instance, deadline_s=0.6) == Translation("hola", model="other")


@pytest.mark.slow
async def test_a_connection_is_made_again_to_where_it_was_while_no_name_is_found(
    server: DeepLServer, no_name_server: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "FRESH_S", 0.0)
    monkeypatch.setattr(resolver, "PATIENCE_S", 0.05)
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        no_name_server.set()
        server.will(Reply(breaks="reset in body"))
        assert await ask(instance) == Translation("<ES>hello")
    assert server.connections == 2


# ------------------------------------------------------------------------------------------ the breaker


@pytest.mark.slow
async def test_an_outage_costs_each_fragment_milliseconds_and_ends_by_itself(server: DeepLServer) -> None:
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        server.always = HANG
        with structlog.testing.capture_logs() as logs:
            started = trio.current_time()
            assert await code(instance) is ErrorCode.NETWORK_ERROR
            assert trio.current_time() - started < 3 * LIMITS.attempt_s + 2 * RETRY.longest_s + SLACK_S
            assert len(server.requests) == 3

            for _ in range(10):
                started = trio.current_time()
                answer = await ask(instance)
                assert isinstance(answer, EngineFailure)
                assert answer.code is ErrorCode.NETWORK_ERROR
                assert "not asked again yet" in str(answer)
                assert trio.current_time() - started < 0.03
            assert len(server.requests) == 3

            await trio.sleep(LIMITS.breaker.first_open_s)
            assert await code(instance) is ErrorCode.NETWORK_ERROR  # the probe, which is not tried again
            assert len(server.requests) == 4

            server.always = Reply()
            assert await code(instance) is ErrorCode.NETWORK_ERROR  # twice as long as before
            await trio.sleep(2 * LIMITS.breaker.first_open_s)
            assert await code(instance) is None
            assert await code(instance) is None
    events = [(line["event"], line.get("code")) for line in logs]
    assert events == [
        ("deepl_breaker_open", ErrorCode.NETWORK_ERROR),
        ("deepl_breaker_open", ErrorCode.NETWORK_ERROR),
        ("deepl_breaker_closed", None),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("status", "expected"), [(456, ErrorCode.QUOTA_EXCEEDED), (403, ErrorCode.TRANSLATION_FAILED)])
async def test_an_account_that_is_refused_once_is_refused_for_a_while(
    server: DeepLServer, status: int, expected: ErrorCode
) -> None:
    server.always = error(status)
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        for _ in range(10):
            assert await code(instance) is expected
        assert len(server.requests) == 1
        server.always = Reply()
        await trio.sleep(LIMITS.refused_s)
        assert await code(instance) is None


async def test_requests_that_are_at_fault_themselves_leave_it_closed(server: DeepLServer) -> None:
    server.always = error(400, "bad")
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        for _ in range(10):
            assert await code(instance) is ErrorCode.TRANSLATION_FAILED
    assert len(server.requests) == 10


@pytest.mark.slow
async def test_a_probe_that_is_at_fault_itself_closes_it(server: DeepLServer) -> None:
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        server.always = error(503)
        assert await code(instance) is ErrorCode.TEMPORARY_UNAVAILABLE
        await trio.sleep(LIMITS.breaker.first_open_s)
        server.always = Reply()
        server.will(error(400, "bad"))
        assert await code(instance) is ErrorCode.TRANSLATION_FAILED
        server.will(error(503))  # a probe would not be tried again
        assert await code(instance) is None


@pytest.mark.slow
async def test_fragments_that_came_too_late_leave_it_closed(server: DeepLServer) -> None:
    """Speech recognition was slow, and left DeepL no time to answer: that says nothing about DeepL."""
    server.always = Reply(delay_s=0.06)
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        for _ in range(5):
            assert await code(instance, deadline_s=0.02) is ErrorCode.NETWORK_ERROR
        assert await code(instance) is None


@pytest.mark.slow
async def test_a_hang_is_an_outage_for_fragments_with_little_time_as_well(server: DeepLServer) -> None:
    """Each has less time than is fair, but so many in a row have had enough."""
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        server.always = HANG
        for _ in range(4):  # each a part of 0.8
            assert await code(instance, deadline_s=0.08) is ErrorCode.NETWORK_ERROR
        asked = len(server.requests)
        assert await code(instance, deadline_s=0.08) is ErrorCode.NETWORK_ERROR
        assert len(server.requests) == asked


async def test_a_call_that_nothing_ends_in_time_is_an_outage_although_it_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")

    async def stuck(function: Callable[..., T], /, *arguments: object) -> T:
        await trio.sleep_forever()
        raise AssertionError

    engine = DeepLEngine(KEY, "http://localhost:1", limits=LIMITS)
    async with engine._connect(stuck) as instance:
        for seconds, closed in ((LIMITS.attempt_s / 2, True), (LIMITS.attempt_s * 2, False)):
            for _ in range(LIMITS.breaker.failures):
                assert engine.breaker.closed
                async with trio.open_nursery() as fragment:
                    fragment.start_soon(ask, instance)
                    await trio.sleep(seconds)
                    fragment.cancel_scope.cancel()
            assert engine.breaker.closed is closed
        assert await code(instance) is ErrorCode.NETWORK_ERROR


async def test_a_last_try_that_came_too_late_hides_no_earlier_answer(server: DeepLServer) -> None:
    server.will(error(503), HANG)
    async with DeepLEngine(KEY, server.url, limits=PATIENT).open(OFFLOAD) as instance:
        assert await code(instance, deadline_s=0.2) is ErrorCode.TEMPORARY_UNAVAILABLE
    assert len(server.requests) == 2


@pytest.mark.slow
async def test_a_probe_that_is_cancelled_lets_the_next_one_try(server: DeepLServer) -> None:
    async with DeepLEngine(KEY, server.url, limits=LIMITS).open(OFFLOAD) as instance:
        server.always = error(503)
        assert await code(instance) is ErrorCode.TEMPORARY_UNAVAILABLE
        await trio.sleep(LIMITS.breaker.first_open_s)
        server.always = HANG
        async with trio.open_nursery() as fragment:
            fragment.start_soon(ask, instance)
            await trio.sleep(0.05)
            fragment.cancel_scope.cancel()
        assert len(server.requests) == 4
        server.always = Reply()
        assert await code(instance) is None


# ------------------------------------------------------------------------------------------ several slots


@pytest.mark.slow
async def test_slots_work_side_by_side_and_learn_of_an_outage_together(server: DeepLServer) -> None:
    server.always = Reply(delay_s=0.05)
    pool = Pool(
        "translation",
        DeepLEngine(KEY, server.url, limits=evolve(LIMITS, attempt_s=1.0)),
        slots=4,
        max_waiting=100,
        offload=OFFLOAD,
        metrics=Metrics(),
    )
    answers: dict[str, str] = {}
    refused: list[ErrorCode] = []

    async def submit(text: str) -> None:
        try:
            answers[text] = await _submit(pool, text)
        except EngineFailure as failure:
            refused.append(failure.code)

    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        async with trio.open_nursery() as fragments:
            for number in range(40):
                fragments.start_soon(submit, f"text {number}")
        assert answers == {f"text {number}": f"<ES>text {number}" for number in range(40)}
        assert server.most_busy == 4
        assert server.connections == 4

        server.requests.clear()
        server.always = error(503)
        started = trio.current_time()
        async with trio.open_nursery() as fragments:
            for number in range(40):
                fragments.start_soon(submit, f"more {number}")
        assert refused == [ErrorCode.TEMPORARY_UNAVAILABLE] * 40
        assert trio.current_time() - started < 2 * SLACK_S
        assert len(server.requests) <= 3 + 4  # and what was under way in the other slots
        nursery.cancel_scope.cancel()
