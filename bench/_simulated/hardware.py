"""The hardware of simulated nodes, and the requests that they serve."""

import msgspec

from baton.step_cost import StepCost

# Roughly a model of 70 billion parameters on eight accelerators; only the proportions matter.
DEFAULT_COST = StepCost(
    prefill_base_ms=6.0,
    prefill_token_ms=0.08,
    prefill_context_ms=1e-6,
    decode_base_ms=12.0,
    decode_request_ms=0.05,
    decode_token_ms=2e-5,
)


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of nodes and of the network between them."""

    cost: StepCost = msgspec.field(default_factory=lambda: DEFAULT_COST)
    chunk_tokens: int = 2048
    block_size: int = 512  # tokens
    num_blocks: int = 4096  # of a node's pool
    latency_ms: float = 3.0  # of a transfer
    block_ms: float = 6.5  # of each transferred block
    noise: float = 0.1  # standard deviation of the logarithm of a prompt's time
    join_ms: float = 0.0  # a decode node stands still for so long when a request joins
    prefill_beside: float = 1.0  # factor on prefill while all decode nodes are busy
    decode_beside: float = 1.0  # factor on decoding while all prefill nodes are busy; above 1 on shared cores


class SimulatedRequest(msgspec.Struct, kw_only=True, eq=False):
    """A request and its outcome. Times are in milliseconds since the trace began; -1 means not yet."""

    arrival_ms: float
    num_prompt_tokens: int
    num_output_tokens: int
    hashes: list[int]  # of full blocks
    tenant: str = ""
    max_ttft_ms: float = 0.0  # 0: no limit
    first_token_ms: float = -1.0
    end_ms: float = -1.0
    refused_ms: float = -1.0
    num_cached_blocks: int = 0  # on the node that computed it
    is_alone: bool = False  # computed on its decode node

    @property
    def ttft_ms(self) -> float:
        """The time to its first token."""
        return self.first_token_ms - self.arrival_ms

    @property
    def latency_ms(self) -> float:
        """The time to its last token."""
        return self.end_ms - self.arrival_ms
