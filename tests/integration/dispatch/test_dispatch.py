"""A request through the dispatcher while nothing breaks."""

import asyncio
import time
from typing import Any

import pytest

from baton.errors import DeadlineExceeded, InvalidRequest, NoCapacity, NumericalError, Overloaded
from baton.kv import prefix_index
from baton.kv.prefix_hash import block_hashes, root_hash
from baton.kv.prefix_index import IndexWriter
from baton.net.registry import list_nodes
from baton.request import FinishReason
from router.job import PromptWork

pytestmark = pytest.mark.anyio

PROMPT = list(range(10, 30))


async def test_tokens_of_both_legs_reach_the_sink_in_order(fleet: Any, output_of: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    await fleet.start()
    _, sink = fleet.submit(PROMPT, 12)
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
    """Has the index say that `node` holds these tokens; returns when it does."""
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
    assert [len(node.seen("generate")) for node in nodes] == [2, 2]


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


@pytest.mark.parametrize("when", ["computing", "decoding"])
async def test_cancel_reaches_both_legs(fleet: Any, until: Any, when: str) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    decode.pause_at = 4
    await fleet.start()
    if when == "computing":
        prefill.compute.clear()
    handle, sink = fleet.submit(PROMPT)
    await until(lambda: len(decode.seen("reserve")) == 1 and len(prefill.seen("run")) == 1)
    if when == "decoding":
        await until(lambda: len(sink.tokens) == 4)
    handle.cancel()
    handle.cancel()
    await until(lambda: decode.cancelled == [(1, 0)])
    await until(lambda: prefill.num_broken_runs == (when == "computing"))
    assert fleet.dispatcher.num_in_flight == 0
    assert not sink.num_ends


async def test_a_handle_can_be_cancelled_from_its_own_sink(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    await fleet.start()
    handle, sink = fleet.submit(PROMPT, 1000)
    record = sink.on_tokens

    def stop_at_five(tokens: list[int], logprobs: Any) -> None:
        record(tokens, logprobs)
        if len(sink.tokens) == 5:
            handle.cancel()

    sink.on_tokens = stop_at_five
    await until(lambda: decode.cancelled == [(1, 0)])
    assert len(sink.tokens) == 5
    assert not sink.num_ends


async def test_a_sink_that_raises_ends_its_own_request_only(fleet: Any, until: Any, output_of: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    await fleet.start()
    _, bad = fleet.submit(PROMPT)
    bad.on_tokens = None
    _, good = fleet.submit(PROMPT)
    await good.finished()
    assert good.tokens == output_of(PROMPT, 12)
    await until(lambda: (1, 0) in decode.cancelled)


async def test_errors_of_a_request_go_to_the_client_and_are_not_retried(fleet: Any) -> None:
    prefill, decode = await fleet.add("prefill"), await fleet.add("decode")
    await fleet.start()
    decode.finish_error = "numerical_error"
    assert isinstance(await fleet.submit(PROMPT)[1].outcome(), NumericalError)
    assert [g.attempt for g in prefill.seen("run")] == [0]
    decode.finish_error = ""
    prefill.refusals = [InvalidRequest("too odd", param="prompt")]
    error = await fleet.submit(PROMPT)[1].outcome()
    assert isinstance(error, InvalidRequest)
    assert (error.message, error.param) == ("too odd", "prompt")


async def test_without_nodes_a_request_waits_until_its_deadline(fleet: Any) -> None:
    await fleet.start()
    began = time.monotonic()
    error = await fleet.submit(PROMPT, timeout_s=0.6)[1].outcome()
    assert isinstance(error, NoCapacity)
    assert error.retry_after_s > 0
    assert 0.5 < time.monotonic() - began < 2.0


async def test_a_request_waits_for_a_node_that_comes_in_time(fleet: Any, output_of: Any) -> None:
    await fleet.start()
    assert not fleet.dispatcher.ready
    _, sink = fleet.submit(PROMPT)
    await fleet.add("decode")
    await sink.finished()
    assert sink.tokens == output_of(PROMPT, 12)
    assert fleet.dispatcher.ready
    facts = fleet.dispatcher.facts
    assert (facts.model_fingerprint, facts.block_size, facts.max_model_len) == ("cafe", 4, 4096)


async def test_the_deadline_holds_while_tokens_flow(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.pause_at = 3
    await fleet.start()
    _, sink = fleet.submit(PROMPT, timeout_s=0.5)
    assert isinstance(await sink.outcome(), DeadlineExceeded)
    assert len(sink.tokens) == 3
    await until(lambda: decode.cancelled == [(1, 0)])


async def test_too_many_in_flight_are_refused_at_once(fleet: Any) -> None:
    await fleet.start(max_in_flight=2)
    handles = [fleet.submit(PROMPT)[0] for _ in range(2)]
    with pytest.raises(Overloaded):
        fleet.submit(PROMPT)
    handles[0].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    fleet.submit(PROMPT)


async def test_full_nodes_mean_overloaded_after_a_while(fleet: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode", num_free_blocks=2)
    await fleet.start(max_full_wait_s=0.3)
    sinks = [fleet.submit(PROMPT)[1] for _ in range(3)]
    for sink in sinks:
        error = await sink.outcome()
        assert isinstance(error, Overloaded)
        assert error.retry_after_s > 0
    assert not decode.calls


async def test_requests_wait_in_line_for_room(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode", num_free_blocks=6)  # of 4 tokens
    await fleet.start()
    holders = fleet.dispatcher._replica._holders.values()
    await until(lambda: all(holder.loaded for holder in holders))  # lookups that ask Redis overtake each other
    prompts = [[0, *PROMPT, *PROMPT], [1, *PROMPT], [2, *PROMPT]]  # the first one takes 11 blocks, the others 6
    sinks = [fleet.submit(prompt)[1] for prompt in prompts]
    seen_loads = len(decode.loads_told)
    await until(lambda: len(decode.loads_told) > seen_loads + 2)
    assert not decode.calls
    decode.load.num_free_blocks = 11
    for sink in sinks:
        await sink.finished()
    assert [g.token_ids[0] for _, g in decode.calls] == [0, 1, 2]


async def test_a_draining_router_finishes_what_it_has(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.pause_at = 2
    await fleet.start()
    _, sink = fleet.submit(PROMPT)
    await until(lambda: len(sink.tokens) == 2)
    drain = asyncio.create_task(fleet.dispatcher.drain(10.0))
    deadline = time.monotonic() + 5
    while "draining" not in [n.state for n in await list_nodes(fleet.redis) if n.role == "router"]:
        assert time.monotonic() < deadline
    assert not drain.done()
    decode.go.set()
    await drain
    assert len(sink.tokens) == 12


async def test_stopping_tells_every_sink(fleet: Any, until: Any) -> None:
    await fleet.add("prefill")
    decode = await fleet.add("decode")
    decode.pause_at = 2
    await fleet.start()
    handle, cancelled = fleet.submit(PROMPT)
    _, kept = fleet.submit(PROMPT)
    await until(lambda: len(kept.tokens) == 2)
    handle.cancel()
    await fleet.dispatcher.stop()
    assert isinstance(await kept.outcome(), NoCapacity)
    assert not cancelled.num_ends
    assert [n for n in await list_nodes(fleet.redis) if n.role == "router"] == []


async def test_nodes_are_shown_with_their_last_load(fleet: Any, until: Any) -> None:
    await fleet.add("prefill", "p")
    decode = await fleet.add("decode", "d", num_free_blocks=77, num_running=3)
    await fleet.start()
    shown = {node.node_id: node for node in fleet.dispatcher.nodes()}
    assert (shown["d"].num_free_blocks, shown["d"].num_running, shown["d"].state) == (77, 3, "ready")
    assert shown["p"].role == "prefill"
    await decode.die()
    await until(lambda: {node.node_id: node.state for node in fleet.dispatcher.nodes()}["d"] == "starting")


@pytest.mark.parametrize(
    ("call", "work"), [("on_tokens", None), ("on_finish", None), ("on_prompt", PromptWork(num_logprobs=0))]
)
async def test_a_client_whose_answer_cannot_be_made_is_told_so(
    fleet: Any, until: Any, monkeypatch: pytest.MonkeyPatch, call: str, work: PromptWork | None
) -> None:
    await fleet.add("prefill")
    await fleet.add("decode")
    dispatcher = await fleet.start()
    _, sink = fleet.submit(PROMPT, 12, work=work)
    monkeypatch.setattr(sink, call, lambda *args: 1 / 0)
    error = await sink.outcome()
    assert (error.code, error.message) == ("internal_error", "internal error")
    await until(lambda: dispatcher.num_in_flight == 0)
    assert sink.num_ends == 1
