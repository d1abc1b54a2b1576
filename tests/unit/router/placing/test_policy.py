import random
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.step_cost import StepCost
from router.nodes.fleet_costs import TransferCost
from router.nodes.state import NodeState
from router.placing import policy
from router.placing.placement import Placement
from router.placing.policy import Ask, NodeChoice

BLOCK = 16


def node(*, token_ms: float = 1.0, context_ms: float = 0.0, base_ms: float = 0.0, **fields: Any) -> NodeState:
    cost = StepCost(
        prefill_base_ms=base_ms,
        prefill_token_ms=token_ms,
        prefill_context_ms=context_ms,
        decode_base_ms=10.0,
        decode_request_ms=1.0,
        decode_token_ms=0.001,
    )
    return NodeState(cost=cost, **{"num_blocks": 1000, "num_free_blocks": 1000, **fields})


def ask(num_tokens: int = 320, num_output_tokens: float = 10, **fields: Any) -> Ask:
    return Ask(num_tokens=num_tokens, block_size=BLOCK, num_output_tokens=num_output_tokens, **fields)


def prefill(*nodes: NodeState, cached: tuple[int, ...] = (), **fields: Any) -> int | None:
    choice = policy.choose_prefill(ask(**fields), nodes, cached or [0] * len(nodes))
    return None if choice is None else choice.prefill


def decode(*nodes: NodeState, cached: tuple[int, ...] = (), **fields: Any) -> int | None:
    choice = policy.choose(ask(**fields), [node()], [0], nodes, cached or [0] * len(nodes))
    return None if choice is None else choice.decode


def choose(
    prefills: list[NodeState], held: list[int], decodes: list[NodeState], holds: list[int], **fields: Any
) -> NodeChoice:
    choice = policy.choose(ask(**fields), prefills, held, decodes, holds)
    assert choice is not None
    return choice


def test_prompt_cost_is_time_to_compute_what_is_not_cached() -> None:
    assert policy.prompt_ms(node(), ask(), 0) == 320
    assert policy.prompt_ms(node(), ask(), 10) == 160
    assert policy.prompt_ms(node(), ask(), 20) == 1  # the last token is always computed
    assert policy.prompt_ms(node(context_ms=0.01), ask(), 10) == 160 + 0.01 * 160 * (160 + 80)
    assert policy.prompt_ms(node(base_ms=5, chunk_tokens=100), ask(), 0) == 320 + 4 * 5


def test_a_cached_prefix_wins_until_its_node_is_too_busy() -> None:
    assert prefill(node(), node(), cached=(0, 10)) == 1
    assert prefill(node(), node(queue_ms=150), cached=(0, 10)) == 1
    assert prefill(node(), node(queue_ms=170), cached=(0, 10)) == 0


def test_a_hot_prefix_is_shared_out_as_its_node_gets_busy() -> None:
    hot, other = node(), node()
    chosen = []
    for i in range(40):
        at = prefill(hot, other, cached=(10, 0), turn=i)
        (hot, other)[at or 0].send_prompt(160.0 if at == 0 else 320.0, now_s=0.0)
        chosen.append(at)
    assert chosen[0] == 0
    assert chosen.count(1) > 8


def test_work_that_a_hit_saves_counts_the_more_the_busier_the_pool_is() -> None:
    idle = [node(queue_ms=200), node()]
    busy = [node(queue_ms=200, utilization=0.8), node(utilization=0.8)]
    assert prefill(*idle, cached=(10, 0)) == 1
    assert prefill(*busy, cached=(10, 0)) == 0


def test_the_faster_node_wins() -> None:
    assert prefill(node(token_ms=2.0), node(token_ms=1.1)) == 1


def test_equals_take_turns() -> None:
    nodes = [node(), node(queue_ms=500), node()]
    assert [prefill(*nodes, turn=turn) for turn in range(4)] == [0, 2, 0, 2]
    assert [decode(node(), node(), node(), turn=turn) for turn in range(4)] == [0, 1, 2, 0]


def test_decode_prefers_few_running_little_context_and_no_queue() -> None:
    assert decode(node(num_running=9), node(num_running=3)) == 1
    assert decode(node(num_context_tokens=90_000), node(num_context_tokens=3000)) == 1
    assert decode(node(num_waiting=9), node()) == 1


def test_decode_keeps_away_from_nodes_that_run_out_of_blocks() -> None:
    assert decode(node(num_free_blocks=40), node(num_running=5)) == 1
    assert decode(node(num_free_blocks=200), node(num_running=5)) == 0


def test_a_node_without_room_is_no_choice() -> None:
    assert decode(node(num_free_blocks=20)) is None  # 320 tokens and one to come take 21
    assert decode(node(num_free_blocks=21)) == 0
    assert decode(node(num_free_blocks=11), cached=(10,)) == 0
    assert decode(node(num_free_blocks=1), node(num_free_blocks=30)) == 1


def test_no_pair_uses_a_decode_node_with_a_full_queue() -> None:
    full = node(num_waiting=policy.MAX_QUEUED)
    assert decode(full) is None
    assert decode(full, node(num_running=50)) == 1
    busy = node(num_waiting=1, num_free_blocks=10_000)
    placement = Placement(link(node()), link(busy), choose([node()], [0], [node()], [0]), 320, list)
    for _ in range(policy.MAX_QUEUED - 2):
        placement.begin()
    assert decode(busy) == 0
    placement.begin()
    assert decode(busy) is None  # those sent since its last word count


def link(state: NodeState) -> Any:
    return SimpleNamespace(state=state)


def test_what_fits_into_no_pool_is_left_to_a_node_to_refuse() -> None:
    assert decode(node(num_blocks=8, num_free_blocks=8)) == 0
    assert decode(node(num_blocks=20, num_free_blocks=20)) == 0  # with the token to come it takes 21
    assert decode(node(num_blocks=21, num_free_blocks=20)) is None


def test_a_short_suffix_is_computed_where_its_conversation_was_decoded() -> None:
    choice = choose([node()], [0], [node(), node()], [0, 19])
    assert (choice.prefill, choice.decode, choice.num_uncached_tokens, choice.num_missing_blocks) == (None, 1, 16, 2)


def test_a_long_suffix_too_where_the_prefill_node_lacks_what_came_before() -> None:
    assert choose([node()], [0], [node()], [100], num_tokens=2000).prefill is None
    assert choose([node()], [100], [node(num_running=9)], [100], num_tokens=2000).prefill == 0


def test_running_decodes_have_a_say_in_what_is_computed_beside_them() -> None:
    holds = {"prefills": [node()], "held": [10], "holds": [12]}
    assert choose(decodes=[node()], **holds).prefill is None
    assert choose(decodes=[node(num_running=20)], **holds).prefill == 0


def test_a_fresh_prompt_belongs_to_the_prefill_pool_while_that_has_time() -> None:
    assert choose([node()], [0], [node()], [0], num_tokens=3).prefill == 0
    assert choose([node(queue_ms=1000)], [0], [node()], [0], num_tokens=3).prefill is None


def test_blocks_that_cannot_hide_behind_the_prefill_draw_a_request_to_its_decode_node() -> None:
    slow = TransferCost(latency_ms=1.0, block_ms=50.0)
    nodes = [node(), node(num_running=2)]
    assert choose([node()], [20], nodes, [0, 15], transfer=slow, num_output_tokens=1).decode == 1
    assert choose([node()], [20], nodes, [0, 15], transfer=TransferCost(block_ms=0.01)).decode == 0


def test_one_token_needs_no_decode_node() -> None:
    choice = choose([node()], [0], [node()], [0], num_output_tokens=0)
    assert (choice.prefill, choice.decode, choice.num_missing_blocks) == (0, None, 0)


def test_decode_nodes_alone_count_their_prefill() -> None:
    choice = policy.choose(ask(), [], [], [node(num_running=1, queue_ms=5.0), node()], [19, 0])
    assert choice is not None
    assert (choice.prefill, choice.decode) == (None, 0)
    assert choice.ttft_ms == 5.0 + choice.prompt_ms


def test_no_nodes_no_choice() -> None:
    assert prefill() is None
    assert policy.choose(ask(), [], [], [], []) is None
    assert policy.choose(ask(), [node()], [0], [], []) is None


NODES = st.builds(
    node,
    token_ms=st.floats(0.01, 3),
    queue_ms=st.floats(0, 1e4),
    num_running=st.integers(0, 300),
    num_waiting=st.integers(0, 300),
    num_context_tokens=st.integers(0, 10**6),
    num_free_blocks=st.integers(-50, 1000),
)
HELD = st.integers(0, 30)
POOL = st.lists(st.tuples(NODES, HELD), min_size=1, max_size=5)


@given(POOL, POOL, st.integers(1, 600), st.floats(0, 100), st.floats(0, 20), st.integers(0, 99))
def test_no_pair_is_cheaper_than_the_choice_by_more_than_ties(
    prefills: Any, decodes: Any, num_tokens: int, length: float, block_ms: float, turn: int
) -> None:
    transfer = TransferCost(block_ms=block_ms)
    request = ask(num_tokens, length + 1, transfer=transfer, turn=turn)
    (pool, held), (others, holds) = zip(*prefills, strict=True), zip(*decodes, strict=True)
    choice = policy.choose(request, pool, held, others, holds)
    costs = []
    for p, num in prefills:
        for d, has in decodes:
            one = policy.choose(request, [p], [num], [d], [has])
            if one is not None:
                costs.append(one.cost_ms)
    assert (choice is None) == (not costs)
    if choice is not None:
        hidden = max(policy.prompt_ms(p, request, num) for p, num in prefills)  # all that one side cannot foresee
        slack = 3 * max(policy.TIE_MS, policy.TIE_SHARE * choice.cost_ms) + min(hidden, block_ms * 40)
        assert choice.cost_ms <= min(costs) + slack


@pytest.mark.parametrize(("num_tokens", "expected"), [(1, 1), (16, 1), (17, 2), (320, 20)])
def test_num_blocks(num_tokens: int, expected: int) -> None:
    assert policy.num_blocks(num_tokens, BLOCK) == expected


@pytest.mark.parametrize(("num_nodes", "limit_us"), [(4, 50), (64, 1000)])
def test_a_choice_takes_microseconds(num_nodes: int, limit_us: float) -> None:
    rng = random.Random(1)
    pools = [[node(queue_ms=1000 * rng.random()) for _ in range(num_nodes)] for _ in range(2)]
    held = [[rng.randint(0, 20) for _ in range(num_nodes)] for _ in range(2)]
    best = float("inf")
    for turn in range(60):
        began = time.perf_counter()
        choose(pools[0], held[0], pools[1], held[1], turn=turn)
        best = min(best, time.perf_counter() - began)
    assert 1e6 * best < 2 * limit_us  # twice: for machines that are slow or busy
