"""Chooses the nodes for a request: those with the least cost to all requests, in predicted milliseconds.

A request is served by a pair (prefill node, decode node), or by a decode node alone. The cost of each option is a sum:

    queue      time until the node starts on this prompt
    prefill    base · steps + token · tokens + context · tokens · tokens before them, for what is not cached there
    transfer   latency + transfer time of the blocks that the decode node lacks, as far as the prefill does not hide it
    decode     expected length of the answer · step time, which grows with the number of requests and their context
    harm       what the same work costs others: a prompt delays those behind it and, on a decode node, every running
               request; a running request slows down all other steps; a lack of blocks leads to preemptions

Only the transfer depends on both nodes of a pair. So the best pair is approximated by choosing one side, then the other
side given the first, a few times: O(P + D). These are pure functions of small structs; callers find out which nodes are
alive and what they have cached.
"""

from collections.abc import Sequence

import msgspec

from router.nodes.fleet_costs import TransferCost
from router.nodes.state import NodeState

SCARCE = 0.1  # share of free blocks below which preemptions become likely
SCARCITY_MS = 500.0  # cost of having no free block
TIE_MS = 1.0  # smaller differences are noise: spread the load instead
TIE_SHARE = 0.01
FRESH_MS = 50.0  # penalty for a new prefix on a decode node: only that node will have it cached
SHORT_MS = 20.0  # the longest mostly uncached prompt that a decode node computes if there is a prefill pool
MAX_BACKLOG_S = 1.0  # if all nodes have more, requests wait in the router; twice the interval of load reports
MAX_QUEUED = 64  # requests waiting on a decode node, beyond which no pair uses it; the node refuses from 256 on
PRESSURE = 2.0  # tuned on traces: less loses cache hits; more lets queues grow before a hot prefix is replicated
_NEVER = float("inf")


class Ask(msgspec.Struct, kw_only=True):
    """What the cost of a request depends on."""

    num_tokens: int  # prompt, and output of earlier attempts
    block_size: int
    num_output_tokens: float = 0.0  # expected number; 0: only the token that the prefill samples
    transfer: TransferCost = msgspec.field(default_factory=TransferCost)
    turn: int = 0  # counts up from request to request, to break ties


class NodeChoice(msgspec.Struct, kw_only=True):
    """The chosen nodes, as indices into the given pools, and the predictions for them."""

    prefill: int | None  # None: the decode node does it all
    decode: int | None  # None: nothing is left to decode
    cost_ms: float
    queue_ms: float  # until the prompt starts
    prompt_ms: float  # to compute the prompt
    num_uncached_tokens: int  # on the node that computes the prompt
    num_missing_blocks: int  # on the decode node

    @property
    def ttft_ms(self) -> float:
        """The predicted time to first token."""
        return self.queue_ms + self.prompt_ms


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold `num_tokens`."""
    return -(-num_tokens // block_size)


def num_missing_blocks(num_tokens: int, num_cached_blocks: int, block_size: int) -> int:
    """Return how many blocks a node would have to allocate, with room for one more token."""
    return max(num_blocks(num_tokens + 1, block_size) - num_cached_blocks, 0)


def has_room(node: NodeState, num_tokens: int, num_missing: int, block_size: int) -> bool:
    """Whether the request's blocks fit now. True if they would never fit: then the node refuses the request."""
    return num_missing <= node.num_free_blocks or num_blocks(num_tokens + 1, block_size) > node.num_blocks


def prompt_ms(node: NodeState, ask: Ask, num_cached_blocks: int) -> float:
    """Predict the time to compute the uncached part of the prompt, which is its last token at least."""
    cached = num_cached_blocks * ask.block_size
    num_uncached = max(ask.num_tokens - cached, 1)
    return node.cost.prefill_ms(num_uncached, ask.num_tokens - num_uncached, node.chunk_tokens)


def decode_ms(node: NodeState, ask: Ask, num_missing: int) -> float:
    """Predict the cost of decoding the answer there, to this request and to the others; inf if there is no room."""
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
    """Return what a millisecond of work costs later requests, on any node: the busier the pool, the more."""
    mean = sum([node.utilization for node in nodes]) / (len(nodes) or 1)
    return PRESSURE * mean / (1.0 - mean)


def choose(
    ask: Ask,
    prefills: Sequence[NodeState],
    prefill_cached: Sequence[int],
    decodes: Sequence[NodeState],
    decode_cached: Sequence[int],
) -> NodeChoice | None:
    """Return the cheapest option, or None if there is none.

    `prefill_cached`, `decode_cached`: how many leading blocks of the request each node has.
    """
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
    """Return the time until the first of the nodes could start on a new prompt."""
    return min((node.queue_ms for node in nodes), default=0.0)


def prompt_costs(nodes: Sequence[NodeState], work: Sequence[float]) -> list[float]:
    """Return the cost of computing a prompt on each node, where it takes `work` milliseconds."""
    later = 1.0 + pressure(nodes)
    return [node.queue_ms + ms * later for node, ms in zip(nodes, work, strict=True)]


def choose_prefill(ask: Ask, nodes: Sequence[NodeState], cached: Sequence[int]) -> NodeChoice | None:
    """Choose a node for work on the prompt alone."""
    work = [prompt_ms(node, ask, num) for node, num in zip(nodes, cached, strict=True)]
    costs = prompt_costs(nodes, work)
    at = cheapest(costs, ask.turn)
    return None if at is None else _choice(ask, nodes[at], cached[at], work[at], costs[at], prefill=at)


def cheapest(costs: Sequence[float], turn: int) -> int | None:
    """Return the index of the least cost, in turn among those that hardly differ; None if all are infinite."""
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
) -> NodeChoice | None:
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
) -> NodeChoice | None:
    """Choose a single decode node. Prefill and decode then share steps, so each slows the other down.

    Unless `takes_all`, a decode node only gets prompts that are short or at least half cached: its reported load may be
    stale.
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
) -> NodeChoice:
    return NodeChoice(
        prefill=prefill,
        decode=decode,
        cost_ms=cost_ms,
        queue_ms=node.queue_ms,
        prompt_ms=work_ms,
        num_uncached_tokens=max(ask.num_tokens - num_cached_blocks * ask.block_size, 1),
        num_missing_blocks=num_missing,
    )
