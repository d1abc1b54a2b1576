"""Estimates that a router makes over all nodes: mean step costs, the cost of transfers, the length of answers."""

import msgspec

from baton.step_cost import StepCost
from baton.v1 import types_pb2

_SMOOTHING = 0.05  # weight of the latest sample
_RISE = 1.02  # factor by which an estimate rises at most, per sample
_EXPOSED_MS = 2.0  # a transfer whose tail exceeds the latency by this much was limited by bandwidth


class TransferCost(msgspec.Struct, kw_only=True):
    """The time that a KV transfer adds to a request: `latency + max(0, blocks · block_ms - prefill)`.

    A transfer overlaps the prefill, so only its tail, from the end of the prefill on, is reported. The time per block
    is at most `(prefill + tail) / blocks`, and just that if the transfer outlasted the prefill.
    """

    latency_ms: float = 2.0
    block_ms: float = 0.2

    def exposed_ms(self, num_blocks: int, prefill_ms: float) -> float:
        """Predict the time that a transfer adds between the end of the prefill and the second token."""
        hidden = num_blocks * self.block_ms - prefill_ms
        return self.latency_ms + (hidden if hidden > 0 else 0.0)

    def note(self, num_blocks: int, prefill_ms: float, tail_ms: float) -> None:
        """Learn from an accepted transfer. `tail_ms`: from the end of the prefill to the accepted commit."""
        if num_blocks > 0:
            at_most = max(prefill_ms + tail_ms - self.latency_ms, 0.0) / num_blocks
            if at_most < self.block_ms or tail_ms > self.latency_ms + _EXPOSED_MS:
                self.block_ms = _least(self.block_ms, at_most)
        if num_blocks * self.block_ms <= prefill_ms:  # hidden behind the prefill: the tail is latency alone
            self.latency_ms = _least(self.latency_ms, tail_ms)


def _least(before: float, sample: float) -> float:
    """Move an estimate towards a sample, down quickly, up slowly: slow samples may have queued or stalled."""
    return before + 0.3 * (sample - before) if sample < before else min(sample, _RISE * before + 1e-3)


class FleetCosts:
    """The estimates of one router. Its links feed them, placement reads them."""

    def __init__(self) -> None:
        self.pooled = StepCost()
        self.transfer = TransferCost()
        self.output_tokens = 100.0  # mean length of an answer

    def take_load(self, load: types_pb2.Load) -> None:
        """Learn from a node's load."""
        reported, pooled = load.step_cost, self.pooled
        for name in _FIELDS:
            value = getattr(reported, name)
            if value > 0:
                before = getattr(pooled, name)
                setattr(pooled, name, before + _SMOOTHING * (value - before) if before else value)

    def note_output(self, num_tokens: int) -> None:
        """Learn the length of a complete answer."""
        self.output_tokens += _SMOOTHING * (num_tokens - self.output_tokens)


_FIELDS = StepCost.__struct_fields__
