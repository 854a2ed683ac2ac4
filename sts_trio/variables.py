"""How one variable of the environment is read: its text to a value, or a `ValueError` that says what it may be."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from attrs import Attribute, field

T = TypeVar("T")


class ConfigError(ValueError):
    """A variable that cannot be used; the message names it, what it may be and what it is."""


class HoldsSecret(ValueError):
    """What was given has a secret in it, and is not to be shown."""


def integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"must be an integer from {low} to {high}") from None
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")
        return value

    return read


def number(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"must be a number{unit} from {low:g} to {high:g}") from None
        if not low <= value <= high:  # also refuses nan
            raise ValueError(f"must be from {low:g} to {high:g}")
        return value

    return read


def seconds(low: float, high: float) -> Callable[[str], float]:
    return number(low, high, " of seconds")


def one_of(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return read


device: Final = one_of("auto", "cpu", "cuda")


def printable(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if not text.isprintable():  # a byte that is no UTF-8 reads as a lone surrogate, which is not
        raise ValueError("must be printable UTF-8 text")
    return text


def file_path(text: str) -> Path:
    return Path(printable(text))


def expanded(path: Path | None) -> Path | None:
    """With the home directory for ``~``, where the user has one."""
    return path and Path(os.path.expanduser(path))


def formality(text: str) -> str | None:
    levels = one_of("default", "more", "less", "prefer_more", "prefer_less")
    return None if levels(text) == "default" else text


_GLOSSARY: Final = re.compile(r"(?:(?P<pair>[a-z]{2,3}-[a-z]{2,3})=)?(?P<id>[0-9a-f-]{36})", re.IGNORECASE)


def glossary_ids(text: str) -> Mapping[str, str]:
    """One id for all pairs, under ``*``, or ids by their pair, as ``en-es``."""
    glossaries: dict[str, str] = {}
    for part in text.split(","):
        match = _GLOSSARY.fullmatch(part.strip())
        if match is None:
            raise ValueError("must be a glossary's id, or pairs with ids such as en-es=<id>,en-de=<id>")
        pair = (match["pair"] or "*").lower()
        if pair in glossaries:
            raise ValueError("must name one glossary for each pair of languages")
        glossaries[pair] = match["id"]
    return MappingProxyType(glossaries)


def http_url(text: str) -> str:
    if "@" in text:  # all that is before it may be a password
        raise HoldsSecret("must be a URL without a user or password")
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", text):
        raise ValueError("must be a URL such as https://api.deepl.com")
    try:
        _ = urlsplit(text).port  # what it finds wrong with brackets and ports
    except ValueError as error:
        raise ValueError(f"must be a URL such as https://api.deepl.com ({error})") from None
    return text.rstrip("/")


def listed(text: str) -> tuple[str, ...]:
    names = tuple(printable(name).strip() for name in text.split(","))
    if len(set(names)) < len(names):
        raise ValueError("must name each provider once")
    return names


def agreed(text: str) -> bool:
    return one_of("0", "1")(text) == "1"


_ORIGIN: Final = re.compile(
    r"(?P<origin>[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\]))(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


def web_origins(text: str) -> tuple[str, ...]:
    """Origins as browsers write them (RFC 6454, 6.2): in small letters, without the port that the scheme implies."""
    if text.strip() == "*":
        return ("*",)
    origins = []
    for part in text.split(","):
        match = _ORIGIN.fullmatch(part.strip().lower())
        if match is None:
            raise ValueError("must be * or origins such as https://example.org or http://localhost:3000, with commas")
        origin, port = match["origin"], match["port"]
        implied = _DEFAULT_PORTS.get(origin.partition(":")[0])
        origins.append(origin if port in (None, implied) else f"{origin}:{port}")
    return tuple(origins)


def setting(
    name: str,
    read: Callable[[str], T],
    default: Any,
    meaning: str,
    *,
    secret: bool = False,
    alias: str | None = None,
    converter: Callable[[Any], Any] | None = None,
) -> Any:
    """A field of `Settings`.

    Args:
        alias: another name, which counts where `name` is not set.
        converter: what a value becomes on this machine, the default included.
    """
    return field(
        default=default,
        converter=converter,
        repr=not secret,
        metadata={"variable": name, "read": read, "meaning": meaning, "secret": secret, "alias": alias},
    )


def variable(attribute: Attribute[Any]) -> str:
    """The environment variable behind a field of `Settings`."""
    return str(attribute.metadata["variable"])


def names_of(attribute: Attribute[Any]) -> tuple[str, ...]:
    """The variable, and what else it may be called."""
    alias = attribute.metadata["alias"]
    return (variable(attribute), alias) if alias else (variable(attribute),)
