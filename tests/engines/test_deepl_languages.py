"""DeepL's names of languages."""

from __future__ import annotations

import pytest

from sts_trio.engines.deepl_languages import glossary_pair, source_code, target_code

OFFERED = frozenset({
    "ckb", "de", "en", "en-gb", "en-us", "es", "es-419", "fr", "he", "nb", "pt", "pt-br", "pt-pt", "tl", "yue", "zh",
    "zh-hans", "zh-hant",
})  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("en", "EN"),
        ("EN_us", "EN"),
        ("en-GB", "EN"),
        ("eng", "EN"),
        ("pt-BR", "PT"),
        ("zh-Hant-TW", "ZH"),
        ("cmn", "ZH"),
        ("yue-HK", "YUE"),
        ("es-MX", "ES"),
        ("no", "NB"),
        ("nb-NO", "NB"),
        ("ckb", "CKB"),
        ("tlh", None),
        ("nn", None),
        ("", None),
    ],
)
def test_a_source_is_a_language_without_its_region(tag: str, code: str | None) -> None:
    assert source_code(tag, OFFERED) == code


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("de", "DE"),
        ("de-AT", "DE"),
        ("en", "EN-US"),
        ("en-US", "EN-US"),
        ("en-CA", "EN-US"),
        ("en-GB", "EN-GB"),
        ("en_gb", "EN-GB"),
        ("en-AU", "EN-GB"),
        ("eng", "EN-US"),
        ("pt", "PT-PT"),
        ("pt-PT", "PT-PT"),
        ("pt-AO", "PT-PT"),
        ("pt-BR", "PT-BR"),
        ("por", "PT-PT"),
        ("zh", "ZH-HANS"),
        ("zh-CN", "ZH-HANS"),
        ("zh-Hans", "ZH-HANS"),
        ("zh-Hans-HK", "ZH-HANS"),
        ("zh-TW", "ZH-HANT"),
        ("zh-HK", "ZH-HANT"),
        ("zh-Hant", "ZH-HANT"),
        ("zh-Hant-CN", "ZH-HANT"),
        ("es", "ES"),
        ("es-ES", "ES"),
        ("es-MX", "ES-419"),
        ("es-419", "ES-419"),
        ("no", "NB"),
        ("nb", "NB"),
        ("nob", "NB"),
        ("fil-PH", "TL"),
        ("heb", "HE"),
        ("tlh", None),
    ],
)
def test_a_target_is_the_variant_that_the_region_speaks(tag: str, code: str | None) -> None:
    assert target_code(tag, OFFERED) == code


def test_a_variant_that_is_not_on_offer_is_not_asked_for() -> None:
    assert target_code("es-MX", {"es"}) == "ES"
    assert target_code("en", {"en"}) is None


def test_glossaries_know_of_no_variants() -> None:
    assert glossary_pair("en-US", "es-MX") == "en-es"
    assert glossary_pair("no", "pt-BR") == "nb-pt"
