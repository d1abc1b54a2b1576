import pytest

from router.admin.bottleneck import Bottleneck, PoolNode, judge, with_missing

IDLE_PREFILL = PoolNode(role="prefill", prefill_tokens_per_s=1000)
IDLE_DECODE = PoolNode(role="decode", kv_usage=0.2)


def verdict(*nodes, num_unplaced=0, expects_prefill=True):
    return judge(nodes, num_unplaced, expects_prefill=expects_prefill)


def test_idle_pools_are_no_bottleneck():
    found = verdict(IDLE_PREFILL, IDLE_DECODE)
    assert found.pool == "none"
    assert "20%" in found.words


def test_prompts_wait():
    busy = PoolNode(role="prefill", num_waiting_tokens=6000, prefill_tokens_per_s=1000)
    found = verdict(busy, IDLE_PREFILL, IDLE_DECODE)
    assert found.pool == "prefill"
    assert "6,000 prompt tokens" in found.words
    assert "3.0 s of work for 2 nodes" in found.words


def test_blocks_run_out():
    full = PoolNode(role="decode", kv_usage=0.97, num_waiting=4, preemptions_per_min=3)
    found = verdict(IDLE_PREFILL, full, IDLE_DECODE)
    assert found.pool == "decode"
    assert all(part in found.words for part in ("97%", "4 requests wait", "3 preemptions"))


def test_the_worse_of_two_is_named():
    full = PoolNode(role="decode", kv_usage=0.9)
    swamped = PoolNode(role="prefill", num_waiting_tokens=100_000, prefill_tokens_per_s=1000)
    assert verdict(swamped, full).pool == "prefill"
    hurried = PoolNode(role="prefill", num_waiting_tokens=510, prefill_tokens_per_s=1000)
    assert verdict(hurried, full).pool == "decode"


@pytest.mark.parametrize(
    ("nodes", "missing"), [((), "decode"), ((IDLE_DECODE,), "prefill"), ((IDLE_PREFILL,), "decode")]
)
def test_a_pool_that_is_gone_comes_first(nodes, missing):
    found = verdict(*nodes, num_unplaced=1)
    assert found.pool == "down"
    assert f"No {missing} node" in found.words
    assert "1 request wait" in found.words


def test_a_colocated_fleet_has_no_prefill_pool():
    assert verdict(IDLE_DECODE, expects_prefill=False).pool == "none"
    swamped = PoolNode(role="decode", num_waiting_tokens=9000, prefill_tokens_per_s=1000)
    found = verdict(swamped, expects_prefill=False)
    assert found.pool == "decode"
    assert "Add a decode node" in found.words


def test_missing_nodes_are_named_after_the_verdict():
    calm = Bottleneck("none", "All is well.")
    assert with_missing(calm, []) == calm
    assert with_missing(calm, ["decode-1"]) == Bottleneck("none", "All is well. Lost or stuck: decode-1.")
