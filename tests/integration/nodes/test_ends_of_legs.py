"""However a leg ends, its router hears of it and its blocks come back."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from baton.v1 import types_pb2
from tests.integration.nodes.routing import BLOCK, NodeProcess, Router, idle, prompt_of
from tests.node_stream import LegFailed

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

BAD = r"invalid_value|context_length_exceeded"


async def test_a_cancelled_reservation_gives_its_blocks_back(router: Router) -> None:
    generation = router.generation(prompt_of(100, seed=4), 8)
    await router.reserve(generation)
    assert await asyncio.to_thread(router.decode_node.held) == (0, 7)
    await router.cancel(generation)
    await router.cancel(generation)
    await idle(router.decode_node)
    assert router.finished(generation) is None


async def test_a_cancel_that_comes_before_its_reservation(router: Router) -> None:
    early = router.generation(prompt_of(100, seed=5), 8)
    await router.cancel(early)
    await router.decode.start(early, (router.prefill_node.id, router.prefill_node.epoch))
    again = router.generation(prompt_of(100, seed=5), 8, key=early.key, attempt=1)
    await router.reserve(again)
    assert await asyncio.to_thread(router.decode_node.held) == (0, 7)
    assert router.decode.said("granted", early) is None
    await router.cancel(again)


async def test_reservations_wait_for_blocks_in_order_and_can_be_cancelled(router: Router) -> None:
    num_blocks = int(await asyncio.to_thread(partial(router.decode_node.metric, "baton_kv_blocks", state="free")))
    num_blocks += int(await asyncio.to_thread(partial(router.decode_node.metric, "baton_kv_blocks", state="cached")))
    granted = []
    while num_blocks > 0:
        num_tokens = BLOCK * min(num_blocks, 31)
        granted.append(router.generation(prompt_of(num_tokens, seed=1000 + num_blocks), 2))
        await router.reserve(granted[-1])
        num_blocks -= 31
    queued = [router.generation(prompt_of(BLOCK * 31, seed=2000 + i), 2) for i in range(3)]
    calls = []
    for generation in queued:
        calls.append(asyncio.create_task(router.reserve(generation)))
        await router.wait_for(lambda: router.batches and router.batches[-1].load.num_waiting == len(calls))
    assert not any(call.done() for call in calls)
    await router.cancel(queued[0])
    await router.cancel(granted[0])
    await asyncio.wait_for(calls[1], 5)
    assert not calls[2].done()
    await router.cancel(queued[2])
    for generation in [*granted, queued[1]]:
        await router.cancel(generation)
    await idle(router.decode_node)
    for call in (calls[0], calls[2]):  # nobody hears of what he gave up
        assert not call.done()
        call.cancel()


async def test_a_cancelled_running_request_falls_silent(router: Router) -> None:
    generation = router.generation(prompt_of(30, seed=6), 450)
    await router.generate(generation)
    await router.wait_for(lambda: len(router.tokens(generation)) > 3)
    await router.cancel(generation)
    await idle(router.decode_node)
    assert len(router.tokens(generation)) < 450
    assert router.finished(generation) is None


@pytest.mark.parametrize("phase", ["queued", "sampled", "granted", "committed"])
async def test_a_cancelled_prefill_leg_gives_blocks_back_in_every_phase(router: Router, phase: str) -> None:
    generation = router.generation(prompt_of(300, seed=7), 200)
    await router.prefill.start(generation)
    if phase != "queued":
        await router.prefill.first_token(generation)
    if phase in ("granted", "committed"):
        await router.prefill.grant(generation, await router.reserve(generation))
    if phase == "committed":
        await router.prefill.word("transferred", generation)
    await router.prefill.cancel(generation)
    await idle(router.prefill_node)
    await router.cancel(generation)
    await idle(router.decode_node)


async def test_a_leg_whose_grant_never_comes_ends_with_its_time(router: Router) -> None:
    generation = router.generation(prompt_of(20, seed=8), 5, timeout_ms=400)
    await router.prefill.start(generation)
    await router.prefill.first_token(generation)
    with pytest.raises(LegFailed, match="deadline_exceeded"):
        await router.prefill.word("transferred", generation)
    await idle(router.prefill_node)


@pytest.mark.parametrize("prompt", [[], [511, 512], [3] * 512, [3] * 100_000], ids=len)
async def test_a_bad_request_ends_alone(router: Router, prompt: list[int]) -> None:
    good = router.generation(prompt_of(20, seed=9), 40)
    await router.generate(good)
    with pytest.raises(LegFailed, match=BAD):
        await router.generate(router.generation(prompt, 5))
    with pytest.raises(LegFailed, match=BAD):
        await router.reserve(router.generation(prompt, 5))
    bad = router.generation(prompt, 5)
    await router.prefill.start(bad)
    with pytest.raises(LegFailed, match=BAD):
        await router.prefill.first_token(bad)
    finished = await router.wait_for(lambda: router.finished(good))
    assert finished.num_output_tokens == 40


async def test_a_request_past_its_deadline_ends_with_an_error(router: Router) -> None:
    generation = router.generation(prompt_of(20, seed=10), 5, timeout_ms=150)
    await router.reserve(generation)  # and no prefill node ever sends anything
    finished = await router.wait_for(lambda: router.finished(generation))
    assert finished.error_code in ("deadline_exceeded", "transfer_failed")
    assert finished.reason == types_pb2.FINISH_REASON_ERROR


async def attempt_that_fails(router: Router, generation: types_pb2.Generation) -> types_pb2.Finished:
    """Through a prefill node with a fault; the decode node's last word."""
    await router.begin_apart(generation)
    finished: types_pb2.Finished = await router.wait_for(lambda: router.finished(generation))
    with pytest.raises(LegFailed, match=r"transfer_failed|node_unavailable"):
        await router.prefill.word("transferred", generation)
    return finished


@pytest.mark.parametrize("fault", ["crash_before_commit", "corrupt_message:1"])
async def test_a_failed_transfer_is_reported_and_leaks_no_blocks(
    start: Callable[..., NodeProcess], pair: tuple[NodeProcess, NodeProcess], expected: Any, fault: str
) -> None:
    prefill, decode = pair
    env = {"BATON_FAULTS": fault, "BATON_SERVICE_TOKEN": decode.token}
    faulty = start("prefill", "--transport", decode.transport, **env)
    await asyncio.to_thread(faulty.wait_ready)
    router = await Router(faulty, decode).attach()
    prompt = prompt_of(150, seed=13)
    finished = await attempt_that_fails(router, router.generation(prompt, 5))
    assert (finished.reason, finished.error_code) == (types_pb2.FINISH_REASON_ERROR, "transfer_failed")
    await idle(decode)
    retrying = await Router(prefill, decode).attach()
    assert await retrying.run_apart(retrying.generation(prompt, 5)) == expected(prompt, 5)
    await router.close()
    await retrying.close()
    faulty.end()
