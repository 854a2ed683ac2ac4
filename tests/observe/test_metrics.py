"""The metrics under the names that dashboards know."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from protocol.engineio import CloseReason
from protocol.errors import ErrorCode, Stage
from sts_trio.observe.metrics import Metrics
from sts_trio.server.admission import Reason


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, _ = metrics.render()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_every_promised_name_is_there_before_the_first_fragment() -> None:
    names = {name for name, _ in samples(Metrics())}
    assert {
        "sts_fragment_processing_seconds_bucket",
        "sts_asr_duration_seconds_bucket",
        "sts_translation_duration_seconds_bucket",
        "sts_tts_duration_seconds_bucket",
        "sts_fragments_in_flight",
        "sts_fragments_total",
        "sts_fragment_errors_total",
        "sts_fragments_refused_total",
        "sts_backpressure_events_total",
        "sts_streams_active",
        "sts_connections",
        "sts_connections_refused_total",
        "sts_connections_closed_total",
        "process_resident_memory_bytes",
        "python_info",
    } <= names
    assert "sts_gpu_utilization_percent" not in names
    assert not [name for name in names if name.endswith("_created")]


def test_known_labels_start_at_zero() -> None:
    values = samples(Metrics())
    for status in ("success", "partial", "failed"):
        assert values["sts_fragments_total", (("status", status),)] == 0
    for severity in ("low", "medium", "high"):
        assert values["sts_backpressure_events_total", (("severity", severity),)] == 0
    for reason in Reason:
        assert values["sts_connections_refused_total", (("reason", reason.value),)] == 0
    for why in CloseReason:
        assert values["sts_connections_closed_total", (("reason", why.value),)] == 0
    for stage in Stage:
        for code in ErrorCode:
            assert values["sts_fragment_errors_total", (("error_code", code.value), ("stage", stage.value))] == 0
    assert values["sts_fragments_refused_total", (("error_code", "BACKPRESSURE_EXCEEDED"),)] == 0


def test_processing_times_have_buckets_from_50_ms_to_30_s() -> None:
    bounds = [
        dict(labels)["le"] for name, labels in samples(Metrics()) if name == "sts_fragment_processing_seconds_bucket"
    ]
    assert bounds[0] == "0.05"
    assert bounds[-2:] == ["30.0", "+Inf"]


def test_what_is_counted_is_rendered() -> None:
    metrics = Metrics()
    metrics.fragments_total.labels(status="success").inc()
    metrics.pool_busy_slots.labels(pool="asr").set(2)
    metrics.pool_abandoned_calls_total.labels(pool="asr").inc()
    metrics.pool_queue_wait_seconds.labels(pool="asr").observe(0.004)
    metrics.pool_batch_size.labels(pool="asr").observe(3)
    values = samples(metrics)
    assert values["sts_fragments_total", (("status", "success"),)] == 1
    assert values["sts_pool_busy_slots", (("pool", "asr"),)] == 2
    assert values["sts_pool_abandoned_calls_total", (("pool", "asr"),)] == 1
    assert values["sts_pool_queue_wait_seconds_bucket", (("le", "0.005"), ("pool", "asr"))] == 1
    assert values["sts_pool_batch_size_sum", (("pool", "asr"),)] == 3
    assert metrics.render()[1].startswith("text/plain")


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.streams_active.inc()
    assert samples(one)["sts_streams_active", ()] == 1
    assert samples(other)["sts_streams_active", ()] == 0


def test_gpu_load_appears_with_its_first_sample_and_can_be_forgotten() -> None:
    metrics = Metrics()
    metrics.set_gpu_utilization(42)
    assert metrics.gpu_utilization == 42
    assert samples(metrics)["sts_gpu_utilization_percent", ()] == 42
    metrics.forget_gpu_utilization()
    metrics.forget_gpu_utilization()
    assert vars(metrics)["gpu_utilization"] is None
    assert ("sts_gpu_utilization_percent", ()) not in samples(metrics)


OPERATING = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()


def test_the_alert_rules_and_the_table_of_metrics_name_what_there_is() -> None:
    metrics = Metrics()
    metrics.set_gpu_utilization(1)
    there = names_with_labels(metrics)
    (rules,) = re.findall(r"^```yaml\n(.*?)^```$", OPERATING, re.MULTILINE | re.DOTALL)
    asked = re.findall(r"\b((?:sts|process)_\w+)(?:\{(\w+)=)?", rules)
    assert len(asked) == rules.count("sts_") + rules.count("process_")
    for name, label in asked:
        assert name in there, name
        assert label in {"", "job", *there[name]}, (name, label)
    told = re.findall(r"`(sts_\w+)(?:\{([\w,]+)\})?`", OPERATING)
    for name, labels in told:
        base = next(known for known in (name, f"{name}_bucket") if known in there)
        assert set(labels.split(",")) - {""} <= there[base], name
    assert {name for name, _ in told} == {name.removesuffix("_bucket") for name in there if name.startswith("sts_")}


def test_the_codes_and_words_in_the_alert_rules_are_known() -> None:
    for word in re.findall(r'(?:status|error_code|provider)="(\w+)"', OPERATING):
        assert word in {"failed", "apertium", *ErrorCode}, word


def names_with_labels(metrics: Metrics) -> dict[str, set[str]]:
    """What can be asked for, a histogram by its buckets; labels that a scrape adds are not there."""
    found = {}
    for collector in set(metrics.registry._collector_to_names):
        for family in collector.describe() if hasattr(collector, "describe") else collector.collect():
            suffix = {"counter": "_total", "histogram": "_bucket"}.get(family.type, "")
            found[family.name + suffix] = set(getattr(collector, "_labelnames", ()))
    return found
