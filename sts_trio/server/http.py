"""Plain HTTP: the ASGI application, with /health and /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import orjson
from attrs import asdict, frozen
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..observe.metrics import Metrics


class Status(StrEnum):
    """What a load balancer wants to know."""

    STARTING = "starting"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """It works, with fewer instances of a model than it should have."""
    FAILED = "failed"
    """A model has no instance left: only a new process gets it back."""
    DRAINING = "draining"


@frozen
class PoolHealth:
    """How many instances of a model there are, and how many of these hang in a call that does not end."""

    slots: int
    hung: int


@frozen
class Health:
    """The state of the service. `engines` gives each stage's configured engine by name, `pools` is by label."""

    status: Status
    version: str
    engines: Mapping[str, str]
    active_streams: int
    uptime_s: float
    pools: Mapping[str, PoolHealth]


def judge(pools: Iterable[PoolHealth]) -> Status:
    """What a server is that has started and does not drain."""
    worst = max((pool.hung / pool.slots for pool in pools), default=0)
    return Status.HEALTHY if worst == 0 else Status.DEGRADED if worst < 1 else Status.FAILED


def operations(health: Callable[[], Health], metrics: Metrics) -> list[Route]:
    """``GET /health``, which is 200 while it can work and 503 before and after, and ``GET /metrics``."""

    async def show_health(request: Request) -> Response:
        report = health()
        body = {"status": report.status} if report.status is Status.STARTING else asdict(report)
        return _json(body, 200 if report.status in (Status.HEALTHY, Status.DEGRADED) else 503)

    async def show_metrics(request: Request) -> Response:
        body, content_type = metrics.render()
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    return [Route("/health", show_health), Route("/metrics", show_metrics)]


def create_app(routes: Iterable[Route]) -> Starlette:
    """An ASGI application over `routes` that answers in JSON when it fails, too. WebSocket scopes are refused (403)."""
    return Starlette(routes=list(routes), exception_handlers={HTTPException: _show_refusal, Exception: _show_defect})


def _json(body: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(body), status, {"cache-control": "no-store", **(headers or {})}, media_type="application/json"
    )


async def _show_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code, error.headers)


async def _show_defect(request: Request, error: Exception) -> Response:
    # Starlette raises it again afterwards, and hypercorn logs it with its traceback.
    return _json({"error": HTTPStatus.INTERNAL_SERVER_ERROR.phrase}, 500)
