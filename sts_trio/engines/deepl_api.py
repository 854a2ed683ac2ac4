"""DeepL's API through its own client, `deepl.DeepLClient`: blocking calls that end when they are told to.

All that is particular to the `deepl` package stays in this module, and what it takes to end a call of `requests` in
`line`. Three things are done differently from what the package does by itself:

* One call is one attempt. The package would retry for up to minutes, asleep in the thread; `BoundedHttp` answers its
  client's one request method and leaves retries to the caller. The package's own settings, which are the whole
  process's (`deepl.http_client.max_network_retries`, `min_connection_timeout`), stay as they are.
* A call has an end: its time is up, or it is cut (`Line`).
* What a server says in ``Retry-After`` is kept; the package drops it. Its status is kept as well: the package fails
  where an error's message is no text. A redirect, which it takes for a success, is not DeepL's.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import deepl
import requests
import urllib3
from attrs import frozen
from deepl.http_client import HttpClient

from .. import __version__
from .line import Line, LineAdapter
from .resolver import Resolver
from .retry import parse_retry_after

MAX_ANSWER_BYTES: Final = 2**20
"""An answer is about as long as its request, which DeepL limits to 128 KiB."""

MAX_MESSAGE_CHARACTERS: Final = 200

NOT_ITS_ANSWER: Final = "the answer is not one of DeepL's"

# What the package makes of an answer that has not the shape it expects: deeply nested, or with infinity, too.
_MISREAD: Final = (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError)

# It logs every request and answer at INFO,
logging.getLogger("deepl").setLevel(logging.WARNING)
# and this one headers that were cut short, with a traceback: they become a failure with a reason.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


@frozen
class ApiFailure(Exception):
    """A call that brought no translation.

    Attributes:
        status: what DeepL answered, as HTTP has it; None where no answer came, or none that is DeepL's.
        reason: what was wrong, in words that may be shown.
        retry_after_s: what DeepL asked to wait, if it did.
        timed_out: whether the call ended because its time was up, or it was cut.
        garbled: whether an answer came that is not DeepL's.
    """

    status: int | None
    reason: str
    retry_after_s: float | None = None
    timed_out: bool = False
    garbled: bool = False

    def __str__(self) -> str:
        return self.reason


class DeepLApi:
    """A client with one caller, and so with one connection at most.

    Args:
        api_key: ASCII, without spaces around it.
        server_url: None for the server that the key belongs to.
        resolver: who looks up the server's name, or the proxy's.
    """

    def __init__(self, api_key: str, server_url: str | None, resolver: Resolver) -> None:
        self._key = api_key
        # Without the slash the last part of a path would be replaced, not appended to.
        self._client = deepl.DeepLClient(api_key, server_url=server_url and f"{server_url}/")
        self._http = BoundedHttp(resolver)
        self._client.close()
        self._client._client = self._http

    @property
    def server_url(self) -> str:
        return str(self._client.server_url).rstrip("/")

    def start(self, limit_s: float) -> None:
        """Give the next call `limit_s` seconds, from now. To be called before it, in whatever thread."""
        self._http.line.start(limit_s)

    def cut(self) -> None:
        """End the call at once, where one is running; from another thread than the call's."""
        self._http.line.cut()

    def close(self) -> None:
        self._client.close()

    def translate(
        self,
        text: str,
        *,
        source: str,
        target: str,
        context: str = "",
        formality: str | None = None,
        glossary: str | None = None,
    ) -> str:
        """Blocks until DeepL has answered, or the call's time is up, or it is cut. To be called in a thread of trio's.

        Args:
            text: not empty.
            source, target: in DeepL's codes.

        Raises:
            ApiFailure
        """
        try:
            [result] = self._client.translate_text(
                [text],
                source_lang=source,
                target_lang=target,
                context=context or None,
                # A line break in a transcript is where a segment ended, not a sentence.
                split_sentences=deepl.SplitSentences.NO_NEWLINES,
                # A fragment often begins and ends within a sentence: nothing is to be capitalised or rounded off.
                preserve_formatting=True,
                formality=formality,
                glossary=glossary,
            )
            if not isinstance(result.text, str):
                raise TypeError("text")
            return result.text
        except deepl.DeepLException as error:
            raise self._failure(error, text, context) from error
        except _MISREAD as error:
            raise self._misread() from error

    def is_quota_spent(self) -> bool:
        """Whether nothing will be translated before the account's next period; cheap, and shows that the key works.

        To be called in a thread of trio's.

        Raises:
            ApiFailure
        """
        try:
            usage = self._client.get_usage()
            if all(kind.count is None for kind in (usage.character, usage.document, usage.team_document)):
                raise ValueError("no usage")
            return bool(usage.any_limit_reached)
        except deepl.DeepLException as error:
            raise self._failure(error) from error
        except _MISREAD as error:
            raise self._misread() from error

    def _misread(self) -> ApiFailure:
        status = self._http.status
        if status is None or status < 400:
            return ApiFailure(None, NOT_ITS_ANSWER, garbled=True)
        return ApiFailure(status, f"HTTP status {status}", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float | None:
        return parse_retry_after(self._http.retry_after, now=time.time())

    def _failure(self, error: deepl.DeepLException, *texts: str) -> ApiFailure:
        status, reason = error.http_status_code, str(error)
        if status is not None:
            # A web page, or what a server repeats of what it was sent, is not for other eyes.
            private = [text for text in (self._key, *texts) if text]
            if reason.startswith("Unexpected status code") or any(text in reason for text in private):
                reason = f"HTTP status {status}"
        if len(reason) > MAX_MESSAGE_CHARACTERS:
            reason = reason[:MAX_MESSAGE_CHARACTERS] + "…"
        return ApiFailure(
            status,
            reason,
            retry_after_s=self._retry_after_s(),
            timed_out=status is None and self._http.line.is_over,
            garbled=isinstance(error, _NotItsAnswer),
        )


def offered_languages() -> frozenset[str]:
    """DeepL's codes of the languages and variants that the package knows, in lower case: ``en``, ``pt-br``."""
    names = vars(deepl.Language)
    return frozenset(names[name].lower() for name in names if name.isupper())


# -------------------------------------------------------------------------------------- HTTP


class BoundedHttp(HttpClient):  # type: ignore[misc]  # the package counts as untyped
    """The package's HTTP client with one attempt a call, on a `Line`.

    Attributes:
        status: of the last call's answer; None where none came.
        retry_after: its header.
    """

    def __init__(self, resolver: Resolver) -> None:
        super().__init__(send_platform_info=False)
        self.set_app_info("sts-trio", __version__)
        self.line = Line(resolver)
        self.status: int | None = None
        self.retry_after: str | None = None
        # Else `requests` would read all of a redirect's body, only to know where it leads.
        self._session.get_redirect_target = lambda response: None
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, LineAdapter(self.line))

    def close(self) -> None:
        super().close()
        self.line.close()

    def request_with_backoff(
        self,
        method: str,
        url: str,
        data: dict[str, Any] | None,
        json: dict[str, Any] | None,
        headers: dict[str, str],
        stream: bool = False,
        **kwargs: Any,
    ) -> tuple[int, str]:
        """What `DeepLClient` sends every request through: the status, and the answer's body as text."""
        self.status = self.retry_after = None
        request = self._prepare_request(method, url, data, json, headers, **kwargs)
        # Proxies and certificates of the environment, as `requests` documents it for prepared requests.
        options = self._session.merge_environment_settings(request.url, {}, True, None, None)
        try:
            with self._session.send(request, timeout=self.line.left_s(), allow_redirects=False, **options) as response:
                body = bytearray()
                for part in response.iter_content(2**14):
                    body += part
                    if len(body) > MAX_ANSWER_BYTES:
                        raise _NotItsAnswer(NOT_ITS_ANSWER)
                self.line.left_s()  # what a cut leaves of an answer can look like a whole one
                if 300 <= response.status_code < 400:
                    raise _NotItsAnswer(NOT_ITS_ANSWER)
                self.status, self.retry_after = response.status_code, response.headers.get("Retry-After")
                return response.status_code, body.decode(errors="replace")
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise deepl.ConnectionException(self.line.overdue() or _innermost(error)) from error
        finally:
            self.line.end()


class _NotItsAnswer(deepl.DeepLException):  # type: ignore[misc]
    """An answer that is longer than DeepL's can be, or leads elsewhere."""


def _innermost(error: BaseException) -> str:
    """What the operating system, or who else was first to notice, said of a connection."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
