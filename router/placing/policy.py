"""Which nodes serve a request: those that cost everybody the least time, in predicted milliseconds.

A way to serve a request is a pair (prefill node, decode node), or a decode node alone. Its cost is a sum:

    queue      until the node begins with this prompt
    prefill    base · steps + token · tokens + context · tokens · tokens before them, of what is not cached there
    transfer   what shows of it: latency + blocks that the decode node lacks, as far as the prefill does not hide them
    decode     the answer's expected length · step time, which grows with requests and with their context
    harm       the same work as others feel it: a prompt delays those behind it and, on a decode node, every running
               request; a running request slows all other steps; blocks that run out have requests preempted

Only the transfer depends on both nodes of a pair, so the best pair is found by choosing one side for the best other
side, a few times: O(P + D). Pure functions of small structs: who is alive and what is cached where others find out.
"""

from collections.abc import Sequence

import msgspec

from router.nodes.fleet_costs import TransferCost
from router.nodes.state import NodeState

SCARCE = 0.1  # share of free blocks below which requests are preempted sooner or later
SCARCITY_MS = 500.0
TIE_MS = 1.0  # differences that small are noise: spread the load instead
TIE_SHARE = 0.01
FRESH_MS = 50.0  # a prompt computed on a decode node is found there only, and its pool is not the place for new ones
SHORT_MS = 20.0  # what a decode node with a prefill pool beside it computes of a prompt that is mostly new to it
MAX_BACKLOG_S = 1.0  # before every node: then requests wait in the router; twice the time between two words on load
MAX_QUEUED = 64  # requests that wait for blocks or a place in the batch of a decode node, which refuses from 256 on
PRESSURE = 2.0  # found on traces: less loses hits, more lets queues grow before a hot prefix is shared out
_NEVER = float("inf")


class Ask(msgspec.Struct, kw_only=True):
    """A request, as far as its cost depends on it."""

    num_tokens: int  # prompt, and output of earlier attempts
    block_size: int
    num_output_tokens: float = 0.0  # expected; 0: only the token that comes with the prompt
    transfer: TransferCost = msgspec.field(default_factory=TransferCost)
    turn: int = 0  # counts up from request to request


class Choice(msgspec.Struct, kw_only=True):
    """Indices into the given pools, and what was predicted."""

    prefill: int | None  # None: all on the decode node
    decode: int | None  # None: nothing is left to decode
    cost_ms: float
    queue_ms: float  # before the prompt begins
    prompt_ms: float  # computing it
    num_uncached_tokens: int  # where it is computed
    num_missing_blocks: int  # on the decode node

    @property
    def ttft_ms(self) -> float:
        """Until the first token."""
        return self.queue_ms + self.prompt_ms


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that so many tokens take."""
    return -(-num_tokens // block_size)


def num_missing_blocks(num_tokens: int, num_cached_blocks: int, block_size: int) -> int:
    """Blocks that a node would have to allocate, with room for one more token."""
    return max(num_blocks(num_tokens + 1, block_size) - num_cached_blocks, 0)


def has_room(node: NodeState, num_tokens: int, num_missing: int, block_size: int) -> bool:
    """Whether the request's blocks fit now. One that fits into no pool at all is left to the node to refuse."""
    return num_missing <= node.num_free_blocks or num_blocks(num_tokens + 1, block_size) > node.num_blocks


def prompt_ms(node: NodeState, ask: Ask, num_cached_blocks: int) -> float:
    """Computing what is not cached of the prompt: the last token always."""
    cached = num_cached_blocks * ask.block_size
    num_uncached = max(ask.num_tokens - cached, 1)
    return node.cost.prefill_ms(num_uncached, ask.num_tokens - num_uncached, node.chunk_tokens)


def decode_ms(node: NodeState, ask: Ask, num_missing: int) -> float:
    """Decoding an answer there, as this request and the others feel it; inf without room."""
    if not has_room(node, ask.num_tokens, num_missing, ask.block_size):
        return _NEVER
    cost, running, length = node.cost, node.num_running, ask.num_output_tokens
    slower = cost.decode_request_ms + cost.decode_token_ms * ask.num_tokens
    step = (
        cost.decode_base_ms + cost.decode_request_ms * running + cost.decode_token_ms * node.num_context_tokens + slower
    )
    share = (node.num_free_blocks - num_missing) / (node.num_blocks or 1)
    scarcity = SCARCITY_MS * (SCARCE - share) / SCARCE if share < SCARCE else 0.0
    return length * (step + slower * running) + step * node.num_waiting + scarcity


def pressure(nodes: Sequence[NodeState]) -> float:
    """What a millisecond of work costs those that come later, on any node: the busier the pool, the more."""
    mean = sum([node.utilization for node in nodes]) / (len(nodes) or 1)
    return PRESSURE * mean / (1.0 - mean)


def choose(
    ask: Ask,
    prefills: Sequence[NodeState],
    prefill_cached: Sequence[int],
    decodes: Sequence[NodeState],
    decode_cached: Sequence[int],
) -> Choice | None:
    """The cheapest way, None where there is none. `…_cached`: leading blocks of the request that each node holds."""
    missing = [num_missing_blocks(ask.num_tokens, cached, ask.block_size) for cached in decode_cached]
    decoding = [decode_ms(node, ask, num) for node, num in zip(decodes, missing, strict=True)]
    pair = None
    if prefills:
        free = [_NEVER if node.num_waiting >= MAX_QUEUED else ms for node, ms in zip(decodes, decoding, strict=True)]
        pair = _best_pair(ask, prefills, prefill_cached, missing, free)
    alone = _best_alone(ask, decodes, decode_cached, missing, decoding, takes_all=not prefills)
    if pair is None or (alone is not None and alone.cost_ms < pair.cost_ms):
        return alone
    return pair


def least_queue_ms(nodes: Sequence[NodeState]) -> float:
    """Until the first of the nodes begins with a newcomer."""
    return min((node.queue_ms for node in nodes), default=0.0)


def prompt_costs(nodes: Sequence[NodeState], work: Sequence[float]) -> list[float]:
    """Of computing a prompt on each of the nodes, where it takes so many milliseconds."""
    later = 1.0 + pressure(nodes)
    return [node.queue_ms + ms * later for node, ms in zip(nodes, work, strict=True)]


def choose_prefill(ask: Ask, nodes: Sequence[NodeState], cached: Sequence[int]) -> Choice | None:
    """A node for work on the prompt alone."""
    work = [prompt_ms(node, ask, num) for node, num in zip(nodes, cached, strict=True)]
    costs = prompt_costs(nodes, work)
    at = cheapest(costs, ask.turn)
    return None if at is None else _choice(ask, nodes[at], cached[at], work[at], costs[at], prefill=at)


def cheapest(costs: Sequence[float], turn: int) -> int | None:
    """Index of the least, by turns among those that hardly differ; None where all are infinite."""
    least = min(costs, default=_NEVER)
    if least == _NEVER:
        return None
    limit = least + max(TIE_MS, TIE_SHARE * least)
    near = [index for index, cost in enumerate(costs) if cost <= limit]
    return near[turn % len(near)]


def _best_pair(
    ask: Ask,
    prefills: Sequence[NodeState],
    prefill_cached: Sequence[int],
    missing: Sequence[int],
    decoding: Sequence[float],
) -> Choice | None:
    work = [prompt_ms(node, ask, num) for node, num in zip(prefills, prefill_cached, strict=True)]
    prompts = prompt_costs(prefills, work)
    at = cheapest(prompts, ask.turn)
    if at is None:
        return None
    if not ask.num_output_tokens:
        return _choice(ask, prefills[at], prefill_cached[at], work[at], prompts[at], prefill=at)
    exposed = ask.transfer.exposed_ms
    to = cheapest([ms + exposed(num, work[at]) for ms, num in zip(decoding, missing, strict=True)], ask.turn)
    if to is None:
        return None
    num_missing = missing[to]
    costs = [cost + exposed(num_missing, ms) for cost, ms in zip(prompts, work, strict=True)]
    at = cheapest(costs, ask.turn) or 0
    return _choice(
        ask,
        prefills[at],
        prefill_cached[at],
        work[at],
        costs[at] + decoding[to],
        prefill=at,
        decode=to,
        num_missing=num_missing,
    )


def _best_alone(
    ask: Ask,
    nodes: Sequence[NodeState],
    cached: Sequence[int],
    missing: Sequence[int],
    decoding: Sequence[float],
    *,
    takes_all: bool,
) -> Choice | None:
    """On one decode node; its running requests wait while the prompt is computed, and their steps lengthen that.

    Unless it `takes_all`, only what is short, or the lesser part of a prompt: what is known of its load is not fresh.
    """
    work, pressed = [], pressure(nodes)
    for node, num in zip(nodes, cached, strict=True):
        num_uncached = max(ask.num_tokens - num * ask.block_size, 1)
        steps = -(-num_uncached // node.chunk_tokens)
        cost = node.cost
        mixed = cost.decode_request_ms * node.num_running + cost.decode_token_ms * node.num_context_tokens
        work.append(prompt_ms(node, ask, num) + steps * mixed)
    costs = [
        ms + node.queue_ms + own * (1.0 + node.num_running + node.num_waiting + pressed) + (0.0 if num else FRESH_MS)
        if takes_all or own <= SHORT_MS or 2 * num * ask.block_size >= ask.num_tokens
        else _NEVER
        for node, num, own, ms in zip(nodes, cached, work, decoding, strict=True)
    ]
    at = cheapest(costs, ask.turn)
    if at is None:
        return None
    return _choice(ask, nodes[at], cached[at], work[at], costs[at], decode=at, num_missing=missing[at])


def _choice(
    ask: Ask,
    node: NodeState,
    num_cached_blocks: int,
    work_ms: float,
    cost_ms: float,
    *,
    prefill: int | None = None,
    decode: int | None = None,
    num_missing: int = 0,
) -> Choice:
    return Choice(
        prefill=prefill,
        decode=decode,
        cost_ms=cost_ms,
        queue_ms=node.queue_ms,
        prompt_ms=work_ms,
        num_uncached_tokens=max(ask.num_tokens - num_cached_blocks * ask.block_size, 1),
        num_missing_blocks=num_missing,
    )
