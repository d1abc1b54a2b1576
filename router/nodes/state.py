"""A node's load as placement sees it: what the node last reported, plus what this router has sent it since.

It also keeps the work that was recently sent there, which decays: so a node whose cache attracts many requests gets
more expensive before its queue shows it. Each link has one, and so has a simulation: no network or clock is used.
"""

import math

import msgspec

from baton.step_cost import StepCost
from baton.v1 import types_pb2

FADING_S = 20.0  # time constant with which work sent decays
MAX_UTILIZATION = 0.95
ASSUMED_PREFILL_TOKENS_PER_S = 2000.0  # while no node has computed a prompt yet
ASSUMED_DECODE = StepCost(decode_base_ms=30.0, decode_request_ms=1.0, decode_token_ms=1e-3)


class NodeState(msgspec.Struct, kw_only=True, eq=False):
    """Mutable. Times in milliseconds; `queue_ms` and the counts include what this router has sent since."""

    cost: StepCost = msgspec.field(default_factory=StepCost)
    chunk_tokens: int = 2048
    num_blocks: int = 0
    num_free_blocks: int = 0
    queue_ms: float = 0.0  # time to compute the prompts ahead of a new request
    num_waiting: int = 0
    num_running: int = 0  # including requests with reserved blocks that do not run yet
    num_context_tokens: int = 0  # of the running ones
    recent_ms: float = 0.0  # work sent, decayed
    faded_at_s: float = 0.0
    utilization: float = 0.0

    def take_load(self, load: types_pb2.Load, pooled: StepCost, now_s: float) -> None:
        """Replace the state by a load that the node has reported. `pooled`: costs to assume if its own are unknown."""
        self.cost = known_cost(load, pooled)
        self.chunk_tokens = load.max_num_batched_tokens or self.chunk_tokens
        self.num_blocks, self.num_free_blocks = load.num_blocks, load.num_free_blocks
        self.num_waiting, self.num_running = load.num_waiting, load.num_running + load.num_reserved
        self.num_context_tokens = load.num_context_tokens
        rate = load.prefill_tokens_per_s
        self.queue_ms = load.num_waiting_tokens * (1000 / rate if rate > 0 else self.cost.prefill_token_ms)
        self.fade(now_s)

    def send_prompt(self, work_ms: float, now_s: float) -> None:
        """Add a prompt that is sent there to be computed."""
        self.queue_ms += work_ms
        self.num_waiting += 1
        self.fade(now_s)
        self.recent_ms += work_ms
        self._utilize()

    def prompt_done(self, work_ms: float) -> None:
        """Remove a prompt that has been computed, or was given up."""
        self.queue_ms = max(self.queue_ms - work_ms, 0.0)
        self.num_waiting = max(self.num_waiting - 1, 0)

    def send_decode(self, num_tokens: int, num_blocks: int) -> None:
        """Add a request that is sent there to be decoded."""
        self.num_running += 1
        self.num_context_tokens += num_tokens
        self.num_free_blocks -= num_blocks

    def decode_done(self, num_tokens: int, num_blocks: int) -> None:
        """Remove a request that has ended."""
        self.num_running = max(self.num_running - 1, 0)
        self.num_context_tokens = max(self.num_context_tokens - num_tokens, 0)
        self.num_free_blocks += num_blocks

    def fade(self, now_s: float) -> None:
        """Decay the work sent, up to `now_s`."""
        elapsed_s, self.faded_at_s = now_s - self.faded_at_s, now_s
        self.recent_ms *= math.exp(-max(elapsed_s, 0.0) / FADING_S)
        self._utilize()

    def _utilize(self) -> None:
        self.utilization = min(self.recent_ms / (1000 * FADING_S), MAX_UTILIZATION)


def known_cost(load: types_pb2.Load, pooled: StepCost) -> StepCost:
    """Return a node's step costs: its own fit, else one from its mean speed, else the fleet's, else assumed values."""
    reported, cost = load.step_cost, StepCost()
    if reported.prefill_base_ms + reported.prefill_token_ms + reported.prefill_context_ms > 0:
        cost.prefill_base_ms = reported.prefill_base_ms
        cost.prefill_token_ms = reported.prefill_token_ms
        cost.prefill_context_ms = reported.prefill_context_ms
    elif load.prefill_tokens_per_s > 0:
        cost.prefill_token_ms = 1000 / load.prefill_tokens_per_s
    elif pooled.prefill_token_ms + pooled.prefill_base_ms > 0:
        cost.prefill_base_ms = pooled.prefill_base_ms
        cost.prefill_token_ms = pooled.prefill_token_ms
        cost.prefill_context_ms = pooled.prefill_context_ms
    else:
        cost.prefill_token_ms = 1000 / ASSUMED_PREFILL_TOKENS_PER_S
    if reported.decode_base_ms + reported.decode_request_ms + reported.decode_token_ms > 0:
        source: StepCost | types_pb2.StepCost = reported
    else:
        source = pooled if pooled.decode_base_ms + pooled.decode_request_ms > 0 else ASSUMED_DECODE
    cost.decode_base_ms = source.decode_base_ms
    cost.decode_request_ms = source.decode_request_ms
    cost.decode_token_ms = source.decode_token_ms
    return cost
