"""How a request is refused, whoever writes the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Refused(Exception):
    """A request that nobody serves.

    Attributes:
        status: of the HTTP answer.
        body: what the client is told: JSON; text goes into an ``error``, unless it is for people.
    """

    def __init__(
        self,
        status: int,
        body: str | dict[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        for_people: bool = False,
    ) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = {"error": body} if isinstance(body, str) and not for_people else body
        self.headers = dict(headers or {})
