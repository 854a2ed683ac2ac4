"""DeepL with its own client against a server on real sockets: what is sent, and what becomes of what comes back."""

from __future__ import annotations

import gzip
import importlib.util
import socket
import sys
import tracemalloc
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

import pytest
import structlog
import trio

from protocol.errors import ErrorCode
from sts_trio.engines.base import EngineFailure, EngineUnavailable, Instance, Translation, TranslationRequest
from sts_trio.engines.breaker import BreakerRule
from sts_trio.engines.deepl import DeepLEngine, DeepLLimits, Problem, check_key
from sts_trio.engines.retry import RetryPlan
from sts_trio.offload import thread_offload

from .conftest import need
from .deepl_server import HANG, KEY, DeepLServer, Reply, deepl_server, error

OFFLOAD = thread_offload(2)

LIMITS = DeepLLimits(
    longest_s=1.0,
    attempt_s=0.2,
    fair_s=0.1,
    check_s=0.2,
    retry=RetryPlan(first_s=0.01, longest_s=0.04, useful_s=0.01),
    breaker=BreakerRule(failures=1_000),
)
"""A tenth of production's and less, and a breaker that keeps out of it."""

NO_RETRY = RetryPlan(useful_s=60.0)

TEXT = "the whole text of what somebody said on air"


@pytest.fixture(autouse=True)
def _installed() -> None:
    need(importlib.util.find_spec("deepl"), "pip install 'sts-trio[translation]'")


@pytest.fixture
async def server() -> AsyncIterator[DeepLServer]:
    async with deepl_server() as server:
        yield server


def engine_at(server: DeepLServer, **arguments: Any) -> DeepLEngine:
    return DeepLEngine(KEY, server.url, **{"limits": LIMITS, **arguments})


async def ask(
    instance: Instance[TranslationRequest, Translation],
    text: str = TEXT,
    source: str = "en",
    target: str = "es",
    context: str = "",
) -> Translation | EngineFailure:
    [answer] = await instance([TranslationRequest(text, source, target, context)])
    return answer


# ------------------------------------------------------------------------------------------ what is sent


async def test_what_a_request_carries(server: DeepLServer) -> None:
    async with engine_at(server).open(OFFLOAD) as instance:
        answer = await ask(instance, "and then he left", "en-GB", "pt-BR", context="he had come early")
    assert answer == Translation("<PT-BR>and then he left")

    [request] = server.requests
    assert (request.method, request.path) == ("POST", "/v2/translate")
    assert request.headers["authorization"] == f"DeepL-Auth-Key {KEY}"
    assert "sts-trio/" in request.headers["user-agent"]
    assert request.json == {
        "text": ["and then he left"],
        "source_lang": "EN",
        "target_lang": "PT-BR",
        "context": "he had come early",
        "split_sentences": "nonewlines",
        "preserve_formatting": True,
        "show_billed_characters": True,
    }


@pytest.mark.parametrize(
    ("formality", "sent"),
    [
        (None, None),
        ("more", "prefer_more"),  # which no language refuses
        ("less", "prefer_less"),
        ("prefer_more", "prefer_more"),
        ("prefer_less", "prefer_less"),
    ],
)
async def test_formality_is_a_preference(server: DeepLServer, formality: str | None, sent: str | None) -> None:
    async with engine_at(server, formality=formality).open(OFFLOAD) as instance:
        await ask(instance)
    assert server.requests[0].json.get("formality") == sent


async def test_a_pair_has_its_own_glossary_or_that_of_all(server: DeepLServer) -> None:
    own, everybodys = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
    async with engine_at(server, glossaries={"en-es": own, "*": everybodys}).open(OFFLOAD) as instance:
        await ask(instance, source="en-US", target="es-MX")
        await ask(instance, source="en", target="de")
    async with engine_at(server, glossaries={"en-es": own}).open(OFFLOAD) as instance:
        await ask(instance, source="en", target="de")
    assert [request.json.get("glossary_id") for request in server.requests] == [own, everybodys, None]


async def test_nothing_to_translate_is_translated_without_a_call(server: DeepLServer) -> None:
    async with engine_at(server).open(OFFLOAD) as instance:
        assert await ask(instance, " \n") == Translation("")
    assert server.requests == []


async def test_the_name_that_is_looked_up_is_that_of_who_is_connected_to(
    server: DeepLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    getaddrinfo = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        names.append(host)
        return getaddrinfo("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    port = server.url.rpartition(":")[2]
    async with DeepLEngine(KEY, f"http://deepl.example:{port}").open(OFFLOAD) as instance:
        assert isinstance(await ask(instance), Translation)
    monkeypatch.setenv("HTTP_PROXY", f"http://proxy.example:{port}")
    async with DeepLEngine(KEY, "http://deepl.example").open(OFFLOAD) as instance:
        assert isinstance(await ask(instance), Translation)
    assert names == ["deepl.example", "proxy.example"]


async def test_requests_go_over_one_connection_which_is_made_at_the_start(server: DeepLServer) -> None:
    async with engine_at(server).open(OFFLOAD) as instance:
        for _ in range(3):
            assert isinstance(await ask(instance), Translation)
    assert server.connections == 1


async def test_a_path_of_the_server_is_kept(server: DeepLServer) -> None:
    server.url += "/translators/deepl"
    async with engine_at(server).open(OFFLOAD) as instance:
        assert isinstance(await ask(instance), Translation)
    assert server.requests[0].path == "/translators/deepl/v2/translate"


async def test_a_proxy_of_the_environment_is_used(server: DeepLServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    server.url = "http://deepl.example"
    async with engine_at(server).open(OFFLOAD) as instance:
        assert isinstance(await ask(instance), Translation)
    assert server.requests[0].path == "http://deepl.example/v2/translate"


# ------------------------------------------------------------------------------------------ what it supports


@pytest.mark.parametrize(
    ("source", "target", "supported"),
    [
        ("en", "es", True),
        ("en-US", "pt-BR", True),
        ("zh-Hant-TW", "en-GB", True),
        ("ja", "zh", True),
        ("en", "tlh", False),
        ("tlh", "en", False),
    ],
)
async def test_languages_are_known_without_asking_deepl(source: str, target: str, supported: bool) -> None:
    engine = DeepLEngine(KEY, "http://localhost:1")
    assert engine.supports(source, target) is supported
    if not supported:
        async with engine.open(OFFLOAD) as instance:
            answer = await ask(instance, source=source, target=target)
        assert isinstance(answer, EngineFailure)
        assert answer.code is ErrorCode.UNSUPPORTED_LANGUAGE
        assert f"{source}-{target}" in str(answer)


# ------------------------------------------------------------------------------------------ what comes back


ROWS = [
    (error(429, "Too many requests"), ErrorCode.RATE_LIMIT_EXCEEDED, True),
    (error(456, "Quota Exceeded"), ErrorCode.QUOTA_EXCEEDED, False),
    (error(500, "Internal"), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (Reply(502, b"<html>Bad Gateway</html>"), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (error(503), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (error(529), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (Reply(breaks="reset at once"), ErrorCode.NETWORK_ERROR, True),
    (Reply(breaks="reset in headers"), ErrorCode.NETWORK_ERROR, True),
    (Reply(breaks="reset in body"), ErrorCode.NETWORK_ERROR, True),
    (Reply(breaks="end in body"), ErrorCode.NETWORK_ERROR, True),
    (Reply(breaks="end in headers"), ErrorCode.TEMPORARY_UNAVAILABLE, True),  # HTTP takes it for a short answer
    (HANG, ErrorCode.NETWORK_ERROR, True),
    (Reply(drop_s=0.01), ErrorCode.NETWORK_ERROR, True),
    (Reply(body=b"{'no': JSON"), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (Reply(body=b"\xff\xfe"), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (Reply(body=[]), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (Reply(body={"translations": []}), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (Reply(body={"translations": ["hola"]}), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (Reply(body={"translations": [{"text": "hola"}]}), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (
        Reply(body={"translations": [{"text": None, "billed_characters": 1}]}),
        ErrorCode.TEMPORARY_UNAVAILABLE,
        True,
    ),
    (Reply(body=b" " * (2**20 + 1)), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (Reply(302, b"", {"Location": "http://elsewhere.example/"}), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (
        Reply(302, {"translations": [{"text": "hola", "billed_characters": 1}]}, {"Location": "http://elsewhere/"}),
        ErrorCode.TEMPORARY_UNAVAILABLE,
        True,
    ),
    (Reply(body=b"[" * 200_000), ErrorCode.TEMPORARY_UNAVAILABLE, True),  # deeper than a stack
    (Reply(429, {"message": None}), ErrorCode.RATE_LIMIT_EXCEEDED, True),
    (Reply(456, {"message": {"a": 1}}), ErrorCode.QUOTA_EXCEEDED, False),
    (Reply(503, {"detail": 1}), ErrorCode.TEMPORARY_UNAVAILABLE, True),
    (Reply(403, {"message": None}), ErrorCode.TRANSLATION_FAILED, False),
    (error(400, "Value for 'target_lang' not supported."), ErrorCode.TRANSLATION_FAILED, False),
    (error(401), ErrorCode.TRANSLATION_FAILED, False),
    (error(403, "Forbidden"), ErrorCode.TRANSLATION_FAILED, False),
    (error(404, "Glossary not found"), ErrorCode.TRANSLATION_FAILED, False),
    (error(413), ErrorCode.TRANSLATION_FAILED, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("reply", "code", "transient"), ROWS)
async def test_each_failure_has_its_code_and_what_may_pass_is_tried_again(
    server: DeepLServer, reply: Reply, code: ErrorCode, transient: bool
) -> None:
    async with engine_at(server, limits=LIMITS).open(OFFLOAD) as instance:
        server.will(reply)
        answer = await ask(instance)
        if transient:
            assert answer == Translation(f"<ES>{TEXT}")
            assert len(server.requests) == 2
        else:
            assert isinstance(answer, EngineFailure)
            assert answer.code is code
            assert len(server.requests) == 1

        server.always = reply
        started = trio.current_time()
        with trio.fail_after(0.3):
            answer = await ask(instance)
        assert trio.current_time() - started < LIMITS.share * 0.3 + 0.1
    assert isinstance(answer, EngineFailure)
    assert answer.code is code
    assert code.retryable is transient


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(400, "Value for 'target_lang' not supported."), "Value for 'target_lang' not supported."),
        (error(404, "Glossary not found"), "Glossary not found"),
        (error(429, "Too many requests"), "Too many requests"),
        (Reply(502, b"<html>Bad Gateway</html>"), "HTTP status 502"),
        (Reply(breaks="reset in headers"), "reset"),
        (HANG, "no answer within 0.1 s"),
        (Reply(body=b"<html>"), "not one of DeepL's"),
        (Reply(403, {"message": None}), "HTTP status 403"),
        (error(400, f"what is {TEXT}?"), "HTTP status 400"),
        (error(403, f"{KEY} is no key"), "HTTP status 403"),
        (error(400, "x" * 100_000), "…"),
    ],
)
async def test_the_message_says_what_happened_and_neither_the_key_nor_the_text(
    server: DeepLServer, reply: Reply, said: str
) -> None:
    server.always = reply
    engine = engine_at(server, limits=DeepLLimits(attempt_s=0.1, retry=NO_RETRY))
    with structlog.testing.capture_logs() as logs:
        async with engine.open(OFFLOAD) as instance:
            answer = await ask(instance)
            again = await ask(instance)
    assert isinstance(answer, EngineFailure)
    assert said in str(answer)
    assert len(str(answer)) < 300
    for shown in (answer, again, logs, engine, instance):
        assert KEY not in repr(shown)
        assert TEXT not in repr(shown)


async def test_nobody_listens() -> None:
    async with deepl_server() as server:
        pass
    with structlog.testing.capture_logs() as logs:
        async with engine_at(server).open(OFFLOAD) as instance:
            answer = await ask(instance)
    assert isinstance(answer, EngineFailure)
    assert answer.code is ErrorCode.NETWORK_ERROR
    assert "Connection refused" in str(answer)
    assert [line["event"] for line in logs] == ["deepl_not_ready"]


# ------------------------------------------------------------------------------------------ at start


async def test_a_key_that_deepl_refuses_is_an_error_at_start_that_names_the_setting(server: DeepLServer) -> None:
    server.key = "another"
    with pytest.raises(EngineUnavailable, match="DEEPL_API_KEY is refused by http://localhost"):
        async with engine_at(server).open(OFFLOAD):
            pass


async def test_a_server_that_is_not_deepl_is_an_error_at_start_that_names_the_setting(server: DeepLServer) -> None:
    server.usage = error(404)
    with pytest.raises(EngineUnavailable, match=r"DEEPL_SERVER_URL: http://localhost.* has no DeepL API"):
        async with engine_at(server).open(OFFLOAD):
            pass


NOT_DEEPL = [
    Reply(301, b"", {"Location": "https://elsewhere.example/"}),
    Reply(302, {"character_count": 1, "character_limit": 2}, {"Location": "https://elsewhere.example/"}),
    Reply(200, b"<html>Welcome to our network</html>"),
    Reply(200, b""),
    Reply(200, [1]),
    Reply(200, {}),
    Reply(200, {"character_count": "many", "character_limit": 5}),
    Reply(200, b'{"character_count": Infinity}'),
]


@pytest.mark.parametrize("usage", NOT_DEEPL)
async def test_what_does_not_answer_as_deepl_does_is_not_taken_for_it(server: DeepLServer, usage: Reply) -> None:
    server.usage = usage
    with pytest.raises(EngineUnavailable, match=r"DEEPL_SERVER_URL: http://localhost.* not one of DeepL's"):
        async with engine_at(server).open(OFFLOAD):
            pass
    problem = await trio.to_thread.run_sync(check_key, KEY, server.url)
    assert "DEEPL_SERVER_URL" in str(problem)


async def test_a_network_that_answers_for_deepl_itself_is_no_fault_of_the_setting(
    server: DeepLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.usage = NOT_DEEPL[2]
    client = import_module("deepl").DeepLClient
    assert client._DEEPL_SERVER_URL_FREE == "https://api-free.deepl.com"
    monkeypatch.setattr(client, "_DEEPL_SERVER_URL_FREE", f"{server.url}/")
    with pytest.raises(EngineUnavailable, match="check the network and HTTPS_PROXY") as refused:
        async with DeepLEngine(KEY, limits=LIMITS).open(OFFLOAD):
            pass
    assert "DEEPL_SERVER_URL" not in str(refused.value)


@pytest.mark.parametrize(
    "usage",
    [
        {"character_count": 10, "character_limit": 1_000},
        {"character_count": 10},
        {"document_count": 1, "document_limit": 5},
    ],
)
async def test_every_kind_of_account_is_one(server: DeepLServer, usage: Any) -> None:
    server.usage = Reply(body=usage)
    with structlog.testing.capture_logs() as logs:
        async with engine_at(server).open(OFFLOAD):
            pass
    assert logs == []


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_without_words_is_one(server: DeepLServer, status: int) -> None:
    server.usage = Reply(status, {"message": None})
    with pytest.raises(EngineUnavailable, match=f"DEEPL_API_KEY is refused by .*HTTP status {status}"):
        async with engine_at(server).open(OFFLOAD):
            pass


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        (Reply(456, {"message": {"a": 1}}), "HTTP status 456"),
        (error(503), "Service unavailable"),
        (HANG, "no answer within 0.2 s"),
        (Reply(body={"character_count": 1_000, "character_limit": 1_000}), "quota"),
        (error(456), "Quota"),
    ],
)
async def test_a_deepl_that_is_not_there_at_start_may_be_later(server: DeepLServer, usage: Reply, reason: str) -> None:
    server.usage = usage
    started = trio.current_time()
    with structlog.testing.capture_logs() as logs:
        async with engine_at(server).open(OFFLOAD) as instance:
            assert trio.current_time() - started < LIMITS.check_s + 0.1
            assert isinstance(await ask(instance), Translation)
    [line] = logs
    assert line["event"] == "deepl_not_ready"
    assert line["log_level"] == "warning"
    assert reason in line["reason"]


async def test_the_body_of_a_redirect_is_not_read_without_measure(server: DeepLServer) -> None:
    bomb = gzip.compress(bytes(300 * 2**20))
    server.will(Reply(302, bomb, {"Location": "http://elsewhere.example/", "Content-Encoding": "gzip"}))
    tracemalloc.start()
    try:
        async with engine_at(server).open(OFFLOAD) as instance:
            await instance([TranslationRequest("hello", "en", "es")])
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


async def test_one_slot_asks_for_all(server: DeepLServer) -> None:
    server.usage = error(503, "down")
    engine = engine_at(server)
    with structlog.testing.capture_logs() as lines:
        async with engine.open(OFFLOAD), engine.open(OFFLOAD):
            pass
    assert [line["event"] for line in lines] == ["deepl_not_ready"]


@pytest.mark.parametrize("key", ["", " spaced", "line\nbreak", "schlüssel"])
def test_what_cannot_be_a_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(EngineUnavailable, match="DEEPL_API_KEY") as refused:
        DeepLEngine(key)
    assert not key or key not in str(refused.value)
    assert check_key(key) == Problem(str(refused.value), fatal=True)


def test_a_missing_package_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sts_trio.engines.deepl_api", raising=False)
    monkeypatch.setitem(sys.modules, "deepl", None)
    with pytest.raises(EngineUnavailable, match=r"the Python package deepl .*: pip install 'sts-trio\[translation\]'"):
        DeepLEngine(KEY)


async def test_a_key_can_be_checked_by_itself(server: DeepLServer) -> None:
    async def check(key: str = KEY, timeout_s: float = 1.0) -> Problem | None:
        return await trio.to_thread.run_sync(check_key, key, server.url, timeout_s)

    assert await check() is None
    assert "DEEPL_API_KEY is refused" in str(await check("another"))
    server.usage = Reply(body={"character_count": 5, "character_limit": 5})
    assert "quota of DEEPL_API_KEY is spent" in str(await check())
    server.usage = Reply(drop_s=0.01)
    started = trio.current_time()
    assert "no answer within 0.1 s" in str(await check(timeout_s=0.1))
    assert trio.current_time() - started < 0.25
