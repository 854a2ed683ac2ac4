"""Results that were sent but not acknowledged (contract, "Order, retries, resume"). Pure.

A result is kept until the worker's ``fragment:ack``, the stream's end, or the stream's byte budget: existing workers
never acknowledge, so without the budget a stream's memory would grow for days. The oldest go first.
"""

from __future__ import annotations

from attrs import define, field

from protocol.dubbing import FragmentProcessed

from .memory import json_bytes

OVERHEAD_BYTES = 1_024
"""What a result weighs beside its audio, texts and metadata: ids, timings, the objects themselves."""


def weight_bytes(result: FragmentProcessed) -> int:
    """Memory a kept result is accounted with."""
    audio = len(result.dubbed_audio.data) if result.dubbed_audio else 0
    texts = 4 * (len(result.transcript or "") + len(result.translated_text or ""))
    return audio + texts + json_bytes(result.metadata) + OVERHEAD_BYTES


@define
class ResultBuffer:
    """Kept results by fragment_id, in the order in which they left."""

    budget_bytes: int
    used_bytes: int = field(default=0, init=False)
    _kept: dict[str, FragmentProcessed] = field(factory=dict, init=False)

    def keep(self, result: FragmentProcessed) -> None:
        """Keep `result`, in place of an older one of the same fragment; forget the oldest beyond the budget."""
        weight = weight_bytes(result)
        self.forget(result.fragment_id)
        self._kept[result.fragment_id] = result
        self.used_bytes += weight
        self._keep_to_budget()

    def replace(self, result: FragmentProcessed) -> None:
        """Keep `result` where an older one of its fragment is kept, and in the older one's place."""
        self.used_bytes += weight_bytes(result) - weight_bytes(self._kept[result.fragment_id])
        self._kept[result.fragment_id] = result
        self._keep_to_budget()

    def _keep_to_budget(self) -> None:
        while self.used_bytes > self.budget_bytes:
            self.forget(next(iter(self._kept)))

    def forget(self, fragment_id: str) -> None:
        """The worker has it; no effect where it is not kept."""
        if (result := self._kept.pop(fragment_id, None)) is not None:
            self.used_bytes -= weight_bytes(result)

    def forget_before(self, number: int) -> None:
        """The worker has a first result of every sequence number below this one. Of retries that says nothing."""
        for result in self.unacknowledged():
            if result.sequence_number < number and "late" not in result.metadata:
                self.forget(result.fragment_id)

    def get(self, fragment_id: str) -> FragmentProcessed | None:
        return self._kept.get(fragment_id)

    def unacknowledged(self) -> list[FragmentProcessed]:
        """What must be sent again after a reconnection, in order."""
        return list(self._kept.values())
