"""A node as choices see it: what it last said of its load, and what this router has sent it since.

Also the work that was lately sent there, which fades: a node whose cache draws many requests gets dearer before its
queue shows it. Links keep one of these for each node, and so does a simulation; nothing here knows a network or clock.
"""

import math

import msgspec

from baton.step_cost import StepCost
from baton.v1 import types_pb2

FADING_S = 20.0  # in which work sent fades to a third
MAX_UTILIZATION = 0.95
ASSUMED_PREFILL_TOKENS_PER_S = 2000.0  # of nodes of which none has computed a prompt yet
ASSUMED_DECODE = StepCost(decode_base_ms=30.0, decode_request_ms=1.0, decode_token_ms=1e-3)


class NodeState(msgspec.Struct, kw_only=True, eq=False):
    """Mutable. Times in milliseconds; `queue_ms` and the counts include what this router has sent since."""

    cost: StepCost = msgspec.field(default_factory=StepCost)
    chunk_tokens: int = 2048
    num_blocks: int = 0
    num_free_blocks: int = 0
    queue_ms: float = 0.0  # of prompts to be computed, ahead of a newcomer
    num_waiting: int = 0
    num_running: int = 0  # or about to, with their blocks reserved
    num_context_tokens: int = 0  # of those
    recent_ms: float = 0.0  # work sent, faded
    faded_at_s: float = 0.0
    utilization: float = 0.0

    def take_load(self, load: types_pb2.Load, pooled: StepCost, now_s: float) -> None:
        """The node has told its load. `pooled` stands in for what it does not know of itself."""
        self.cost = known_cost(load, pooled)
        self.chunk_tokens = load.max_num_batched_tokens or self.chunk_tokens
        self.num_blocks, self.num_free_blocks = load.num_blocks, load.num_free_blocks
        self.num_waiting, self.num_running = load.num_waiting, load.num_running + load.num_reserved
        self.num_context_tokens = load.num_context_tokens
        rate = load.prefill_tokens_per_s
        self.queue_ms = load.num_waiting_tokens * (1000 / rate if rate > 0 else self.cost.prefill_token_ms)
        self.fade(now_s)

    def send_prompt(self, work_ms: float, now_s: float) -> None:
        """A prompt goes there to be computed."""
        self.queue_ms += work_ms
        self.num_waiting += 1
        self.fade(now_s)
        self.recent_ms += work_ms
        self._utilize()

    def prompt_done(self, work_ms: float) -> None:
        """A prompt that was sent there is computed, or given up."""
        self.queue_ms = max(self.queue_ms - work_ms, 0.0)
        self.num_waiting = max(self.num_waiting - 1, 0)

    def send_decode(self, num_tokens: int, num_blocks: int) -> None:
        """A request goes there to be decoded."""
        self.num_running += 1
        self.num_context_tokens += num_tokens
        self.num_free_blocks -= num_blocks

    def decode_done(self, num_tokens: int, num_blocks: int) -> None:
        """A request that was decoded there is over."""
        self.num_running = max(self.num_running - 1, 0)
        self.num_context_tokens = max(self.num_context_tokens - num_tokens, 0)
        self.num_free_blocks += num_blocks

    def fade(self, now_s: float) -> None:
        """Work sent long ago counts less."""
        elapsed_s, self.faded_at_s = now_s - self.faded_at_s, now_s
        self.recent_ms *= math.exp(-max(elapsed_s, 0.0) / FADING_S)
        self._utilize()

    def _utilize(self) -> None:
        self.utilization = min(self.recent_ms / (1000 * FADING_S), MAX_UTILIZATION)


def known_cost(load: types_pb2.Load, pooled: StepCost) -> StepCost:
    """A node's own coefficients; where it has none, what its plain means say; where it has none either, the pool's."""
    told, cost = load.step_cost, StepCost()
    if told.prefill_base_ms + told.prefill_token_ms + told.prefill_context_ms > 0:
        cost.prefill_base_ms = told.prefill_base_ms
        cost.prefill_token_ms = told.prefill_token_ms
        cost.prefill_context_ms = told.prefill_context_ms
    elif load.prefill_tokens_per_s > 0:
        cost.prefill_token_ms = 1000 / load.prefill_tokens_per_s
    elif pooled.prefill_token_ms + pooled.prefill_base_ms > 0:
        cost.prefill_base_ms = pooled.prefill_base_ms
        cost.prefill_token_ms = pooled.prefill_token_ms
        cost.prefill_context_ms = pooled.prefill_context_ms
    else:
        cost.prefill_token_ms = 1000 / ASSUMED_PREFILL_TOKENS_PER_S
    if told.decode_base_ms + told.decode_request_ms + told.decode_token_ms > 0:
        source: StepCost | types_pb2.StepCost = told
    else:
        source = pooled if pooled.decode_base_ms + pooled.decode_request_ms > 0 else ASSUMED_DECODE
    cost.decode_base_ms = source.decode_base_ms
    cost.decode_request_ms = source.decode_request_ms
    cost.decode_token_ms = source.decode_token_ms
    return cost
