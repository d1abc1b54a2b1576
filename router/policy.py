"""Which prefill node and which decode node serve a request: the ones with the least predicted cost, in milliseconds.

    prefill    (uncached tokens + waiting tokens) / measured tokens per second
    transfer   blocks that the decode node lacks
    decode     requests that share its steps, requests that wait for blocks, and how few blocks it has left

The cost of a pair is a sum of one term per node, so each pool is chosen from by itself. Pure functions: who is alive
and what is cached where is found out by others.
"""

from collections.abc import Sequence

import msgspec

ASSUMED_PREFILL_TOKENS_PER_S = 2000.0  # of a node that has not computed a prompt yet
TRANSFER_MS_PER_BLOCK = 0.2  # most of a transfer hides behind the prefill
RUNNING_MS = 2.0  # what one more request in the batch costs the others and this one
ASSUMED_STEP_MS = 30.0  # of a node that has not run a step yet
SCARCE = 0.1  # share of free blocks below which requests are preempted sooner or later
SCARCITY_MS = 500.0
TIE_MS = 1.0  # differences that small are noise: spread the load instead


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """What a choice needs to know of a node."""

    num_cached_blocks: int = 0  # leading blocks of this request
    num_waiting_tokens: float = 0
    prefill_tokens_per_s: float = 0  # 0 is unknown
    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    step_s: float = 0  # 0 is unknown


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that so many tokens take."""
    return -(-num_tokens // block_size)


def num_uncached_tokens(node: NodeView, num_tokens: int, block_size: int) -> int:
    """Tokens that the node would have to compute: the last one always."""
    return max(num_tokens - node.num_cached_blocks * block_size, 1)


def num_missing_blocks(node: NodeView, num_tokens: int, block_size: int) -> int:
    """Blocks that the node would have to allocate, with room for one more token."""
    return max(num_blocks(num_tokens + 1, block_size) - node.num_cached_blocks, 0)


def prefill_ms(node: NodeView, num_tokens: int, block_size: int) -> float:
    """Until the first token, if this node computes the prompt."""
    tokens = num_uncached_tokens(node, num_tokens, block_size) + node.num_waiting_tokens
    return 1000 * tokens / max(node.prefill_tokens_per_s or ASSUMED_PREFILL_TOKENS_PER_S, 1.0)


def decode_ms(node: NodeView, num_tokens: int, block_size: int) -> float:
    """What decoding here costs this request and the others, missing blocks included."""
    missing = num_missing_blocks(node, num_tokens, block_size)
    step_ms = 1000 * node.step_s or ASSUMED_STEP_MS
    share = (node.num_free_blocks - missing) / max(node.num_blocks, 1)
    scarcity = SCARCITY_MS * max(SCARCE - share, 0) / SCARCE
    return TRANSFER_MS_PER_BLOCK * missing + RUNNING_MS * node.num_running + step_ms * node.num_waiting + scarcity


def has_room(node: NodeView, num_tokens: int, block_size: int) -> bool:
    """Whether the request's blocks fit now. One that fits into no pool at all is left to the node to refuse."""
    fits_never = num_blocks(num_tokens + 1, block_size) > node.num_blocks
    return fits_never or num_missing_blocks(node, num_tokens, block_size) <= node.num_free_blocks


def choose_prefill(nodes: Sequence[NodeView], num_tokens: int, block_size: int, turn: int) -> int | None:
    """Index of the best node, None where there is none. `turn` counts up from request to request."""
    return _cheapest([prefill_ms(node, num_tokens, block_size) for node in nodes], turn)


def choose_decode(
    nodes: Sequence[NodeView], num_tokens: int, block_size: int, turn: int, *, prefills_itself: bool
) -> int | None:
    """Index of the best node that has room, None where none has."""
    costs = []
    for node in nodes:
        cost = decode_ms(node, num_tokens, block_size)
        if prefills_itself:
            cost += prefill_ms(node, num_tokens, block_size)
        costs.append(cost if has_room(node, num_tokens, block_size) else float("inf"))
    return _cheapest(costs, turn)


def _cheapest(costs: Sequence[float], turn: int) -> int | None:
    least = min(costs, default=float("inf"))
    if least == float("inf"):
        return None
    near = [index for index, cost in enumerate(costs) if cost <= least + TIE_MS]
    return near[turn % len(near)]
