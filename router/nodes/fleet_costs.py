"""What a router learns that no single node can tell: means over the fleet, transfers, the length of answers."""

import msgspec

from baton.step_cost import StepCost
from baton.v1 import types_pb2

_SMOOTHING = 0.05  # weight of the latest sample
_RISE = 1.02  # of an estimate, with a sample above it
_EXPOSED_MS = 2.0  # a transfer that ends so much later than its prompt has shown its bandwidth


class TransferCost(msgspec.Struct, kw_only=True):
    """A transfer hides behind the prompt: what shows of it is `latency + max(0, blocks · each - prefill)`.

    How long the end took is all that is reported. `(prefill + end) / blocks` is never less than what a block takes, and
    just that where the transfer was not hidden.
    """

    latency_ms: float = 2.0
    block_ms: float = 0.2

    def exposed_ms(self, num_blocks: int, prefill_ms: float) -> float:
        """What a transfer adds between the end of the prefill and the second token."""
        hidden = num_blocks * self.block_ms - prefill_ms
        return self.latency_ms + (hidden if hidden > 0 else 0.0)

    def note(self, num_blocks: int, prefill_ms: float, tail_ms: float) -> None:
        """A transfer is over."""
        if num_blocks > 0:
            at_most = max(prefill_ms + tail_ms - self.latency_ms, 0.0) / num_blocks
            if at_most < self.block_ms or tail_ms > self.latency_ms + _EXPOSED_MS:
                self.block_ms = _least(self.block_ms, at_most)
        if num_blocks * self.block_ms <= prefill_ms:  # hidden: what is left is latency
            self.latency_ms = _least(self.latency_ms, tail_ms)


def _least(before: float, sample: float) -> float:
    """Down quickly, up slowly: transfers that waited for one another, or stalled, say nothing of the network."""
    return before + 0.3 * (sample - before) if sample < before else min(sample, _RISE * before + 1e-3)


class FleetCosts:
    """One per router: its links add what they hear, and placing reads it."""

    def __init__(self) -> None:
        self.pooled = StepCost()
        self.transfer = TransferCost()
        self.output_tokens = 100.0  # mean length of an answer

    def take_load(self, load: types_pb2.Load) -> None:
        """A node has told its load."""
        told, pooled = load.step_cost, self.pooled
        for name in _FIELDS:
            value = getattr(told, name)
            if value > 0:
                before = getattr(pooled, name)
                setattr(pooled, name, before + _SMOOTHING * (value - before) if before else value)

    def note_output(self, num_tokens: int) -> None:
        """An answer is complete."""
        self.output_tokens += _SMOOTHING * (num_tokens - self.output_tokens)


_FIELDS = StepCost.__struct_fields__
