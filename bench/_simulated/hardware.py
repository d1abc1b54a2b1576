"""What simulated nodes are made of, and the requests that they are given."""

import msgspec

from baton.step_cost import StepCost

# A model of 70 billion parameters on eight accelerators, roughly; what matters is the shape.
DEFAULT_COST = StepCost(
    prefill_base_ms=6.0,
    prefill_token_ms=0.08,
    prefill_context_ms=1e-6,
    decode_base_ms=12.0,
    decode_request_ms=0.05,
    decode_token_ms=2e-5,
)


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of node and the network between nodes."""

    cost: StepCost = msgspec.field(default_factory=lambda: DEFAULT_COST)
    chunk_tokens: int = 2048
    block_size: int = 512  # tokens
    num_blocks: int = 4096  # of a node's pool
    latency_ms: float = 3.0  # of a transfer
    block_ms: float = 6.5  # of each block in it
    noise: float = 0.1  # standard deviation of the logarithm of a prompt's time
    join_ms: float = 0.0  # for which a decode node stands still whenever a request comes to it
    prefill_beside: float = 1.0  # times as long prefill nodes take while all decode nodes are busy
    decode_beside: float = 1.0  # and the other way round: what the pools take from each other on shared cores


class SimulatedRequest(msgspec.Struct, kw_only=True, eq=False):
    """What is asked, and what became of it. Times in milliseconds since the trace began; -1 is not yet."""

    arrival_ms: float
    num_prompt_tokens: int
    num_output_tokens: int
    hashes: list[int]  # of full blocks
    tenant: str = ""
    max_ttft_ms: float = 0.0  # 0: as long as it takes
    first_token_ms: float = -1.0
    end_ms: float = -1.0
    refused_ms: float = -1.0
    num_cached_blocks: int = 0  # where it was computed
    is_alone: bool = False  # computed where it is decoded

    @property
    def ttft_ms(self) -> float:
        """Until its first token."""
        return self.first_token_ms - self.arrival_ms

    @property
    def latency_ms(self) -> float:
        """Until its last token."""
        return self.end_ms - self.arrival_ms
