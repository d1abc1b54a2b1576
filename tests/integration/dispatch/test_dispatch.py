"""A request through the dispatcher while nothing breaks."""

import time
from typing import Any

import pytest

from baton.kv import prefix_index
from baton.kv.index_writer import IndexWriter
from baton.kv.prefix_hash import block_hashes, root_hash
from baton.request import FinishReason

pytestmark = pytest.mark.anyio

PROMPT = list(range(10, 30))


async def test_tokens_of_both_legs_reach_the_sink_in_order(fleet: Any, output_of: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    await fleet.start()
    handle, sink = fleet.submit(PROMPT, 12)
    reason, usage = await sink.outcome()
    assert sink.tokens == output_of(PROMPT, 12)
    assert reason is FinishReason.LENGTH
    assert (usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_output_tokens) == (20, 2, 12)
    assert usage.num_attempts == 1
    assert usage.timings == pytest.approx(
        {"queue_s": 0.5, "prefill_s": 0.25, "transfer_s": 0.125, "first_decode_s": 0.3}
    )
    assert [g.attempt for g in prefill.seen("run") + decode.seen("reserve")] == [0, 0]
    assert fleet.dispatcher.num_in_flight == 0
    assert handle._timer.cancelled()  # else it would keep all of the request until its deadline
    assert not decode.cancelled


async def test_many_requests_at_once_do_not_mix(fleet: Any, output_of: Any) -> None:
    for role in ("prefill", "prefill", "decode", "decode"):
        await fleet.add(role)
    await fleet.start()
    prompts = [[n, *PROMPT] for n in range(60)]
    sinks = [fleet.submit(prompt, 1 + n % 9)[1] for n, prompt in enumerate(prompts)]
    for n, (prompt, sink) in enumerate(zip(prompts, sinks, strict=True)):
        await sink.finished()
        assert sink.tokens == output_of(prompt, 1 + n % 9)
    assert all(len(node.seen("run")) > 10 for node in fleet.nodes.values() if node.role == "prefill")
    assert all(len(node.seen("reserve")) > 10 for node in fleet.nodes.values() if node.role == "decode")


async def test_calls_carry_the_service_token(fleet: Any, output_of: Any) -> None:
    fleet.token = "shared"
    await fleet.add("prefill")
    await fleet.add("decode")
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 12)


async def _index(fleet: Any, node: Any, token_ids: list[int]) -> IndexWriter:
    """Make the index say that `node` has the blocks of these tokens; returns when it does."""
    hashes = block_hashes(token_ids, 4, root_hash("cafe"))

    async def snapshot() -> list[Any]:
        return hashes

    writer = IndexWriter(fleet.redis, "cafe", node.node_id, node.epoch, snapshot)
    await writer.start()
    who = {node.node_id: node.epoch}
    deadline = time.monotonic() + 5
    while await prefix_index.lookup(fleet.redis, "cafe", who, hashes) != {node.node_id: len(hashes)}:
        assert time.monotonic() < deadline
    return writer


async def test_all_that_comes_up_in_a_turn_travels_in_one_message(fleet: Any, until: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    prefill.compute.clear()
    await fleet.start()
    holders = fleet.dispatcher._replica._holders.values()
    await until(lambda: all(holder.loaded for holder in holders))  # else each placement waits for Redis
    sinks = [fleet.submit([n, *PROMPT])[1] for n in range(12)]
    for handle, _ in [fleet.submit([n, *PROMPT]) for n in range(3)]:
        handle.cancel()
    prefill.compute.set()
    for sink in sinks:
        await sink.finished()
    for node in (prefill, decode):
        assert [len(batch.starts) for batch in node.batches if batch.starts] == [12]
    assert sum(len(batch.grants) for batch in prefill.batches) == 12
    assert not [batch for node in (prefill, decode) for batch in node.batches if batch.cancelled_keys]


async def test_one_token_needs_no_decode_node(fleet: Any, output_of: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 1)
    reason, _ = await sink.outcome()
    assert (sink.tokens, reason) == (output_of(PROMPT, 1), FinishReason.LENGTH)
    assert (len(prefill.calls), decode.calls) == (1, [])


async def test_a_first_token_that_is_the_last_cancels_the_reservation(fleet: Any, until: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    prefill.first_reason = FinishReason.STOP
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    reason, usage = await sink.outcome()
    assert (sink.tokens, reason, usage.num_output_tokens) == ([999], FinishReason.STOP, 1)
    await until(lambda: len(decode.cancelled) == 1)


async def test_a_short_uncached_suffix_stays_on_the_decode_node(fleet: Any, output_of: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    writer = await _index(fleet, decode, PROMPT[:4])
    await fleet.start()
    _, sink = fleet.submit(PROMPT[:6], 5)
    usage = await sink.finished()
    assert sink.tokens == output_of(PROMPT[:6], 5)
    assert (prefill.calls, len(decode.seen("generate"))) == ([], 1)
    assert usage.timings == pytest.approx({"queue_s": 0.1, "prefill_s": 0.2, "first_decode_s": 0.3})
    await writer.stop()


async def test_a_short_prompt_that_is_cached_nowhere_is_shipped(fleet: Any, output_of: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    await fleet.start()
    _, sink = fleet.submit([1, 2, 3], 5)
    await sink.finished()
    assert sink.tokens == output_of([1, 2, 3], 5)
    assert (len(prefill.seen("run")), len(decode.seen("generate"))) == (1, 0)


async def test_decode_nodes_alone_serve_everything(fleet: Any, output_of: Any) -> None:
    nodes = [await fleet.add("decode"), await fleet.add("decode")]
    await fleet.start()
    sinks = [fleet.submit(PROMPT)[1] for _ in range(4)]
    for sink in sinks:
        await sink.finished()
        assert sink.tokens == output_of(PROMPT, 12)
    served = [len(node.seen("generate")) for node in nodes]
    assert sum(served) == 4
    assert min(served) >= 1  # one that was quick may have had three


async def test_logprobs_stay_beside_their_tokens(fleet: Any) -> None:
    await fleet.add("prefill")
    await fleet.add("decode")
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 6, num_logprobs=0)
    await sink.finished()
    assert sink.logprobs == [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]


async def test_a_cached_prefix_draws_its_requests(fleet: Any, until: Any) -> None:
    nodes = [await fleet.add("prefill", prefill_tokens_per_s=100.0) for _ in range(2)]
    await fleet.add("decode")
    writer = await _index(fleet, nodes[1], PROMPT[:16])
    await fleet.start()
    for _ in range(4):
        await fleet.submit(PROMPT)[1].finished()
    assert [len(node.seen("run")) for node in nodes] == [0, 4]
    await writer.stop()


async def test_nodes_are_shown_with_their_last_load(fleet: Any, until: Any) -> None:
    await fleet.add("prefill", "p")
    decode = await fleet.add("decode", "d", num_free_blocks=77, num_running=3)
    await fleet.start()
    shown = {link.record.node_id: link for link in fleet.dispatcher.links}
    assert (shown["d"].load.num_free_blocks, shown["d"].load.num_running, shown["d"].health) == (77, 3, "ready")
    assert shown["p"].record.role == "prefill"
    await decode.die()
    await until(lambda: shown["d"].health == "lost")
