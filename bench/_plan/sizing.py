"""Finds the number of nodes: an estimate from utilization, then simulations until both limits hold.

The estimate assumes prefill nodes that are busy for 70 % of the time, and decode nodes with the largest batch whose
steps are within the limit. Then nodes are added to whichever pool exceeds its limit in the simulation.
"""

import math
from dataclasses import dataclass

from baton.errors import ConfigError
from bench._plan.node_model import NodeModel
from bench._plan.simulation import Outcome, Workload, outcome, simulate

MAX_NODES = 1000
FULL_BATCH = 32
_UTILIZATION = 0.7
_MIN_REQUESTS, _REQUESTS_PER_NODE = 2000, 20
_MAX_CHOICES = 3_000_000  # nodes times requests, because each choice looks at every node
_MAX_ROUNDS = 24


@dataclass(frozen=True)
class Size:
    """The number of nodes in each pool."""

    prefill: int
    decode: int


@dataclass(frozen=True)
class Limits:
    """Limits on p99, in seconds."""

    ttft_s: float
    tpot_s: float


def estimate(model: NodeModel, workload: Workload, speed: float, limits: Limits) -> Size:
    """Estimate the size without simulating. Raises ConfigError if a single request already exceeds a limit."""
    rate = workload.mean_rate * speed
    num_prompt, num_output = workload.mean_tokens
    prompt_ms = model.cost.prefill_ms(max(round(num_prompt), 1), 0, model.chunk_tokens)
    prefill = math.ceil(rate * prompt_ms / 1000 / _UTILIZATION)
    batch = largest_batch(model, num_prompt + num_output / 2, num_prompt + num_output, limits.tpot_s)
    step_ms = model.cost.decode_step_ms(batch, round(batch * (num_prompt + num_output / 2)))
    decode = math.ceil(rate * num_output * step_ms / 1000 / batch / _UTILIZATION)
    return Size(max(prefill, 1), max(decode, 1))


def largest_batch(model: NodeModel, context: float, held_tokens: float, tpot_s: float) -> int:
    """Return how many requests a decode node can run: by step time, and by blocks. Raises ConfigError if none."""
    cost = model.cost
    room_ms = 1000 * tpot_s - cost.decode_base_ms
    each_ms = cost.decode_request_ms + cost.decode_token_ms * context
    if room_ms < each_ms:
        single_ms = cost.decode_base_ms + each_ms
        raise ConfigError(f"a step of one request takes {single_ms:.1f} ms: --slo-tpot-ms cannot be below that")
    by_steps = room_ms / each_ms if each_ms else 1e9
    by_blocks = model.num_blocks * model.block_size / held_tokens
    return max(int(min(by_steps, by_blocks, 256)), 1)


def capacity(model: NodeModel, num_prompt: int, num_output: int) -> float:
    """Return the request rate that saturates one prefill node, or one decode node with a full batch."""
    prompt_ms = model.prefill_beside * model.cost.prefill_ms(num_prompt, 0, model.chunk_tokens)
    step_ms = model.cost.decode_step_ms(FULL_BATCH, round(FULL_BATCH * (num_prompt + num_output / 2)))
    return 1000 / max(prompt_ms, model.join_ms + model.decode_beside * step_ms * num_output / FULL_BATCH)


def search(model: NodeModel, workload: Workload, speed: float, limits: Limits) -> tuple[Size, Outcome]:
    """Return the first size, growing from the estimate, that keeps both limits. Raises ConfigError at 1,000 nodes."""
    size = estimate(model, workload, speed, limits)
    for _ in range(_MAX_ROUNDS):
        if size.prefill + size.decode > MAX_NODES:
            break
        found = run(model, workload, speed, size)
        missing_prefill = found.ttft_p99_s > limits.ttft_s
        missing_decode = found.tpot_p99_s > limits.tpot_s
        if not missing_prefill and not missing_decode:
            return size, found
        size = Size(_grown(size.prefill, missing_prefill), _grown(size.decode, missing_decode))
    raise ConfigError(f"no fleet of up to {MAX_NODES} nodes meets these limits: relax them")


def run(model: NodeModel, workload: Workload, speed: float, size: Size, number: int = 0) -> Outcome:
    """Simulate a size with this many requests; 0 chooses enough for stable figures."""
    num_nodes = size.prefill + size.decode
    number = number or min(max(_MIN_REQUESTS, _REQUESTS_PER_NODE * num_nodes), _MAX_CHOICES // num_nodes)
    block_size = workload.block_size
    fleet, requests = simulate(model, size.prefill, size.decode, workload.requests(speed, number), block_size)
    return outcome(model, fleet, requests)


def _grown(number: int, is_short: bool) -> int:
    return number + max(number // 10, 1) if is_short else number
