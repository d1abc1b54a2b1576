from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import policy
from router.policy import NodeView

BLOCK = 16


def node(**fields: Any) -> NodeView:
    return NodeView(**{"num_blocks": 1000, "num_free_blocks": 1000, "prefill_tokens_per_s": 1000.0, **fields})


def prefill(*nodes: NodeView, num_tokens: int = 320, turn: int = 0) -> int | None:
    return policy.choose_prefill(nodes, num_tokens, BLOCK, turn)


def decode(*nodes: NodeView, num_tokens: int = 320, turn: int = 0, prefills_itself: bool = False) -> int | None:
    return policy.choose_decode(nodes, num_tokens, BLOCK, turn, prefills_itself=prefills_itself)


def test_prefill_cost_is_time_to_the_first_token() -> None:
    assert policy.prefill_ms(node(), 320, BLOCK) == 320
    assert policy.prefill_ms(node(num_cached_blocks=10), 320, BLOCK) == 160
    assert policy.prefill_ms(node(num_waiting_tokens=100), 320, BLOCK) == 420
    assert policy.prefill_ms(node(prefill_tokens_per_s=0), 320, BLOCK) == 160  # assumed rate
    assert policy.prefill_ms(node(num_cached_blocks=20), 320, BLOCK) == 1  # the last token is always computed


def test_a_cached_prefix_wins_until_its_node_is_too_busy() -> None:
    cached = {"num_cached_blocks": 10}
    assert prefill(node(), node(**cached)) == 1
    assert prefill(node(), node(**cached, num_waiting_tokens=150)) == 1
    assert prefill(node(), node(**cached, num_waiting_tokens=170)) == 0


def test_the_faster_node_wins() -> None:
    assert prefill(node(prefill_tokens_per_s=500), node(prefill_tokens_per_s=900)) == 1


def test_equals_take_turns() -> None:
    nodes = [node(), node(num_waiting_tokens=500), node()]
    assert [prefill(*nodes, turn=turn) for turn in range(4)] == [0, 2, 0, 2]
    assert [decode(node(), node(), node(), turn=turn) for turn in range(4)] == [0, 1, 2, 0]


def test_decode_prefers_few_running_few_waiting_and_cached_blocks() -> None:
    assert decode(node(num_running=5), node(num_running=3)) == 1
    assert decode(node(num_waiting=1), node(num_running=3)) == 1
    assert decode(node(), node(num_cached_blocks=20)) == 1


def test_decode_keeps_away_from_nodes_that_run_out_of_blocks() -> None:
    assert decode(node(num_free_blocks=40), node(num_running=20)) == 1
    assert decode(node(num_free_blocks=200), node(num_running=20)) == 0


def test_a_node_without_room_is_no_choice() -> None:
    assert decode(node(num_free_blocks=20)) is None  # 320 tokens and one to come take 21
    assert decode(node(num_free_blocks=21)) == 0
    assert decode(node(num_free_blocks=11, num_cached_blocks=10)) == 0
    assert decode(node(num_free_blocks=1), node(num_free_blocks=30)) == 1


def test_what_fits_into_no_pool_is_left_to_a_node_to_refuse() -> None:
    assert decode(node(num_blocks=8, num_free_blocks=8)) == 0


def test_alone_a_decode_node_also_counts_its_prefill() -> None:
    nodes = (node(num_cached_blocks=10, num_running=10), node())
    assert decode(*nodes) == 1
    assert decode(*nodes, prefills_itself=True) == 0


def test_no_nodes_no_choice() -> None:
    assert prefill() is None
    assert decode() is None


VIEWS = st.builds(
    NodeView,
    num_cached_blocks=st.integers(0, 30),
    num_waiting_tokens=st.floats(0, 1e6),
    prefill_tokens_per_s=st.floats(0, 1e5),
    num_running=st.integers(0, 300),
    num_waiting=st.integers(0, 300),
    num_blocks=st.integers(0, 2000),
    num_free_blocks=st.integers(-50, 2000),
    step_s=st.floats(0, 2),
)


@given(st.lists(VIEWS, min_size=1, max_size=6), st.integers(1, 600), st.integers(0, 99))
def test_choices_are_never_worse_than_another_by_more_than_a_tie(
    views: list[NodeView], num_tokens: int, turn: int
) -> None:
    costs = [policy.prefill_ms(view, num_tokens, BLOCK) for view in views]
    at = prefill(*views, num_tokens=num_tokens, turn=turn)
    assert at is not None
    assert costs[at] <= min(costs) + policy.TIE_MS
    chosen = decode(*views, num_tokens=num_tokens, turn=turn)
    able = [view for view in views if policy.has_room(view, num_tokens, BLOCK)]
    assert (chosen is None) == (not able)
    if chosen is not None:
        least = min(policy.decode_ms(view, num_tokens, BLOCK) for view in able)
        assert policy.decode_ms(views[chosen], num_tokens, BLOCK) <= least + policy.TIE_MS


@pytest.mark.parametrize(("num_tokens", "expected"), [(1, 1), (16, 1), (17, 2), (320, 20)])
def test_num_blocks(num_tokens: int, expected: int) -> None:
    assert policy.num_blocks(num_tokens, BLOCK) == expected
