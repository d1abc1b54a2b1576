"""Placement policies of simple proxies and other routers, to compare with the router's own."""

from collections.abc import Callable, Sequence

from bench._simulated.fleet import Place, Pools, place_by_cost
from router.nodes.state import NodeState
from router.placing import policy
from router.placing.policy import Ask, NodeChoice

Pick = Callable[[Ask, Sequence[NodeState], Sequence[int]], int]


def round_robin(ask: Ask, nodes: Sequence[NodeState], cached: Sequence[int]) -> int:
    """Choose the nodes in turn."""
    return ask.turn % len(nodes)


def least_loaded(ask: Ask, nodes: Sequence[NodeState], cached: Sequence[int]) -> int:
    """Choose the node with the fewest requests."""
    return min(range(len(nodes)), key=lambda i: (_load(nodes[i]), _rank(ask, i)))


def prefix_affinity(ask: Ask, nodes: Sequence[NodeState], cached: Sequence[int]) -> int:
    """Choose the node with the longest prefix if it is half of the prompt and loads are even, else the least loaded.

    Loads are uneven if they differ by more than 32 requests and by more than a tenth, the usual thresholds.
    """
    longest = max(cached)
    loads = [_load(node) for node in nodes]
    uneven = max(loads) - min(loads) > 32 and max(loads) > 1.1 * min(loads)
    if uneven or 2 * longest * ask.block_size < ask.num_tokens:
        return least_loaded(ask, nodes, cached)
    return min((i for i in range(len(nodes)) if cached[i] == longest), key=lambda i: (loads[i], _rank(ask, i)))


def _pairs(pick: Pick, pick_decode: Pick) -> Place:
    """Return a policy that always uses a prefill node, and a decode node with enough free blocks."""

    def place(ask: Ask, pools: Pools) -> NodeChoice | None:
        able = [
            i
            for i, node in enumerate(pools.decodes)
            if policy.has_room(node, ask.num_tokens, _missing(ask, pools.decode_cached[i]), ask.block_size)
        ]
        if not able:
            return None
        nodes, cached = [pools.decodes[i] for i in able], [pools.decode_cached[i] for i in able]
        decode = able[pick_decode(ask, nodes, cached)]
        prefill = pick(ask, pools.prefills, pools.prefill_cached)
        held = pools.prefill_cached[prefill]
        work_ms = policy.prompt_ms(pools.prefills[prefill], ask, held)
        return NodeChoice(
            prefill=prefill,
            decode=decode if ask.num_output_tokens else None,
            cost_ms=0.0,
            queue_ms=pools.prefills[prefill].queue_ms,
            prompt_ms=work_ms,
            num_uncached_tokens=max(ask.num_tokens - held * ask.block_size, 1),
            num_missing_blocks=_missing(ask, pools.decode_cached[decode]),
        )

    return place


def _missing(ask: Ask, num_cached: int) -> int:
    return policy.num_missing_blocks(ask.num_tokens, num_cached, ask.block_size)


def _load(node: NodeState) -> int:
    return node.num_waiting + node.num_running


def _rank(ask: Ask, at: int) -> int:
    """Rank equal nodes differently for each request, but identically in every run."""
    return (at * 2654435761 + ask.turn * 40503) % 65537


POLICIES: dict[str, Place] = {
    "baton": place_by_cost,
    "round robin": _pairs(round_robin, round_robin),
    "least loaded": _pairs(least_loaded, least_loaded),
    "prefix affinity": _pairs(prefix_affinity, least_loaded),
}
