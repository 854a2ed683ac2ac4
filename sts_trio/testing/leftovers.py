"""What is still there although nobody is: nothing, or the server has lost something."""

from __future__ import annotations

from typing import Final

from ..engines.suite import Models
from ..observe.metrics import Metrics
from .engines import ScriptedEngine

_GAUGES: Final = frozenset({"sts_fragments_in_flight", "sts_streams_active", "sts_connections", "sts_pool_busy_slots"})


def left_behind(metrics: Metrics, models: Models) -> list[str]:
    """The gauges that operators see, and what scripted engines know of themselves; empty where nothing is left.

    To be asked when all workers are gone, and all that a grace period gave them.

    Raises:
        AssertionError: there is no gauge of a name that is looked for.
    """
    samples = [sample for family in metrics.registry.collect() for sample in family.samples if sample.name in _GAUGES]
    missing = _GAUGES - {sample.name for sample in samples}
    assert not missing, f"there is no {sorted(missing)} to look at"
    left = [f"{sample.name}{sample.labels or ''} is {sample.value:.0f}" for sample in samples if sample.value]
    for engine in (models.asr, models.translation, models.tts):
        if isinstance(engine, ScriptedEngine):
            if engine.running:
                left.append(f"{engine.name}: {engine.running} calls are running")
            if engine.overlapping_calls:
                left.append(f"{engine.name}: an instance had two callers at once")
    return left
