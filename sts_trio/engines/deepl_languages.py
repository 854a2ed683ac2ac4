"""DeepL's names of languages: a source is a language, a target sometimes a variant of one.

Which there are is DeepL's to say; the rules only choose among those on offer, in lower case (``en``, ``pt-br``).
https://developers.deepl.com/docs/getting-started/supported-languages
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from .languages import language_code, subtags

_SAME: Final = {"no": "nb", "fil": "tl"}
"""What BCP 47 has a code of its own for and DeepL has not: Norwegian is Bokmål, Filipino is Tagalog."""

_BRITISH: Final = frozenset({"au", "gb", "ie", "in", "nz", "za"})
"""Regions whose English is nearer to Britain's (CLDR, parent locales: ``en-001``)."""

_LATIN_AMERICA: Final = frozenset({
    "419", "ar", "bo", "br", "bz", "cl", "co", "cr", "cu", "do", "ec", "gt",
    "hn", "mx", "ni", "pa", "pe", "pr", "py", "sv", "us", "uy", "ve",
})  # fmt: skip
"""Regions whose Spanish is nearer to Latin America's (CLDR, parent locales: ``es-419``)."""

_TRADITIONAL: Final = frozenset({"hk", "mo", "tw"})
"""Regions that write Chinese in traditional characters, where a tag does not say which (CLDR, likely subtags)."""


def source_code(tag: str, offered: Collection[str]) -> str | None:
    """What DeepL calls the language of a BCP 47 tag as a source: ``EN`` for ``en-GB``; None where it has none."""
    language = _language(tag)
    return language.upper() if language in offered else None


def target_code(tag: str, offered: Collection[str]) -> str | None:
    """What DeepL calls the language of a BCP 47 tag as a target: ``EN-GB`` for ``en-GB``; None where it has none."""
    language, region = _language(tag), set(subtags(tag))
    variant = language
    match language:
        case "en":
            variant = "en-gb" if region & _BRITISH else "en-us"
        case "pt":
            variant = "pt-br" if "br" in region else "pt-pt"
        case "zh":
            traditional = "hant" in region or (region & _TRADITIONAL and "hans" not in region)
            variant = "zh-hant" if traditional else "zh-hans"
        case "es" if region & _LATIN_AMERICA and "es-419" in offered:
            variant = "es-419"
    return variant.upper() if variant in offered else None


def glossary_pair(source: str, target: str) -> str:
    """The pair that a glossary is for, which knows of no variants: ``en-es`` for ``en-US`` and ``es-MX``."""
    return f"{_language(source)}-{_language(target)}"


def _language(tag: str) -> str:
    language = language_code(tag)
    return _SAME.get(language, language)
