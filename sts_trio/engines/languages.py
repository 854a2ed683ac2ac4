"""Names of languages: the models name theirs in ISO 639-3 or 639-1, workers theirs in BCP 47."""

from __future__ import annotations

from typing import Final

from .base import primary_subtag

_SHORTEST: Final = {
    "afr": "af", "ara": "ar", "arg": "an", "bel": "be", "bre": "br", "bul": "bg", "cat": "ca", "ces": "cs",
    "cmn": "zh", "cym": "cy", "dan": "da", "deu": "de", "ell": "el", "eng": "en", "epo": "eo", "est": "et",
    "eus": "eu", "fas": "fa", "fin": "fi", "fra": "fr", "gle": "ga", "glg": "gl", "hbs": "sh", "heb": "he",
    "hin": "hi", "hrv": "hr", "hun": "hu", "hye": "hy", "ind": "id", "isl": "is", "ita": "it", "jpn": "ja",
    "kat": "ka", "kaz": "kk", "kor": "ko", "lat": "la", "lav": "lv", "lit": "lt", "mkd": "mk", "mlt": "mt",
    "msa": "ms", "nld": "nl", "nno": "nn", "nob": "nb", "nor": "no", "oci": "oc", "pol": "pl", "por": "pt",
    "ron": "ro", "rus": "ru", "slk": "sk", "slv": "sl", "spa": "es", "sqi": "sq", "srd": "sc", "srp": "sr",
    "swe": "sv", "tat": "tt", "tur": "tr", "ukr": "uk", "urd": "ur", "vie": "vi", "zho": "zh", "zlm": "ms",
}  # fmt: skip
"""ISO 639-3 codes that have a two-letter one in ISO 639-1: of the languages that our models know."""


def language_code(tag: str) -> str:
    """The language of a tag by its shortest code, as BCP 47 wants it (RFC 5646, 2.2.1).

    ``en`` of ``en-US``, ``eng`` or ``EN_us``; a code without a two-letter form stays as it is.
    """
    primary = primary_subtag(tag)
    return _SHORTEST.get(primary, primary)


def subtags(tag: str) -> tuple[str, ...]:
    """What follows the language in a tag, in lower case: ``("us",)`` of ``en-US``."""
    return tuple(tag.replace("_", "-").lower().split("-")[1:])
