"""How an attempt's work is counted on its nodes, from its beginning to its end."""

from types import SimpleNamespace
from typing import Any

import pytest

from baton.step_cost import StepCost
from router.nodes.state import NodeState
from router.placing.placement import Placement
from router.placing.policy import NodeChoice

NUM_TOKENS, NUM_MISSING, PROMPT_MS = 320, 21, 50.0
NOTHING = (0.0, 0)


def link(**fields: Any) -> Any:
    cost = StepCost(prefill_token_ms=5.0)
    return SimpleNamespace(state=NodeState(cost=cost, num_blocks=1000, num_free_blocks=1000, **fields))


def place(prefill: Any, decode: Any) -> tuple[Placement, list[str]]:
    """Return a placement, and the calls that it makes."""
    choice = NodeChoice(
        prefill=None, decode=None, cost_ms=0, queue_ms=0, prompt_ms=PROMPT_MS, num_uncached_tokens=1,
        num_missing_blocks=NUM_MISSING,
    )  # fmt: skip
    told: list[str] = []
    placement = Placement(prefill, decode, choice, NUM_TOKENS, lambda: told.append("less to do"))
    placement.on_computed = lambda: told.append("computed")
    placement.begin()
    return placement, told


def prompts(node: Any) -> tuple[float, int]:
    return node.state.queue_ms, node.state.num_waiting


def decoding(node: Any) -> tuple[int, int, int]:
    return node.state.num_running, node.state.num_context_tokens, 1000 - node.state.num_free_blocks


@pytest.mark.parametrize("is_computed", [True, False])
@pytest.mark.parametrize("has_prefill", [True, False])
def test_both_parts_count_until_they_are_done(has_prefill: bool, is_computed: bool) -> None:
    prefill, decode = link() if has_prefill else None, link()
    computing, other = (prefill, decode) if has_prefill else (decode, link())
    placement, told = place(prefill, decode)
    assert placement.compute_s == 5.0 * NUM_TOKENS / 1000
    assert (prompts(computing), prompts(other)) == ((PROMPT_MS, 1), NOTHING)
    assert decoding(decode) == (1, NUM_TOKENS, NUM_MISSING)
    for _ in range(2 * is_computed):
        placement.computed()
    assert told == ["computed", "less to do"][: 2 * is_computed]
    assert prompts(computing) == (NOTHING if is_computed else (PROMPT_MS, 1))
    assert decoding(decode) == (1, NUM_TOKENS, NUM_MISSING)
    placement.end()
    assert (prompts(computing), decoding(decode)) == (NOTHING, (0, 0, 0))
    assert told.count("computed") == is_computed
    assert told[-1] == "less to do"


def test_where_one_token_is_wanted_its_end_is_that_of_the_prompt() -> None:
    prefill = link()
    placement, told = place(prefill, None)
    assert (prompts(prefill), decoding(prefill)) == ((PROMPT_MS, 1), (0, 0, 0))
    placement.end()
    assert (prompts(prefill), decoding(prefill), told) == (NOTHING, (0, 0, 0), ["less to do"])


def test_a_decode_leg_counts_as_waiting_where_others_wait() -> None:
    for num_waiting, has_prefill, expected in ((0, True, 0), (3, True, 4), (3, False, 4)):
        decode = link(num_waiting=num_waiting)
        place(link() if has_prefill else None, decode)
        assert decode.state.num_waiting == expected  # alone there it counts as any prompt does


def test_kv_travels_only_where_there_are_two_nodes() -> None:
    prefill, decode = link(), link()
    for node, node_id in ((prefill, "p0"), (decode, "d0")):
        node.record = SimpleNamespace(node_id=node_id)
    both = place(prefill, decode)[0]
    assert (both.pair, both.names) == ((prefill.record, decode.record), {"prefill": "p0", "decode": "d0"})
    for one, names in ((place(None, decode)[0], {"decode": "d0"}), (place(prefill, None)[0], {"prefill": "p0"})):
        assert (one.pair, one.names) == (None, names)
