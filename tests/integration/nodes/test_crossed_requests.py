"""Requests that two nodes have begun in opposite orders, each with no block left for those of the other."""

import asyncio
import time

import pytest

from baton.v1 import types_pb2
from prefill_node.service import GRANT_PATIENCE_S
from tests.integration.nodes.routing import BLOCK, Router, idle

pytestmark = pytest.mark.anyio
POOL = 256 * 1024  # bytes: 16 blocks
NUM_BLOCKS = 4  # of a prompt


def prompts(first: int) -> list[list[int]]:
    return [[3 + (11 * (first + i) + k) % 200 for k in range(NUM_BLOCKS * BLOCK - 4)] for i in range(4)]


async def finish(router: Router, generation: types_pb2.Generation) -> list[int]:
    first = await router.prefill.first_token(generation)
    await router.wait_for(lambda: router.finished(generation))
    tokens = router.tokens(generation) | {first.index: first.token_id}
    return [tokens[index] for index in sorted(tokens)]


async def test_requests_of_two_routers_do_not_deadlock_over_blocks(start, expected):
    prefill, decode = (start(role, "--transport", "tcp", "--kv-memory", str(POOL)) for role in ("prefill", "decode"))
    pair = prefill.wait_ready(), decode.wait_ready()
    one, other = [await Router(*pair).attach() for _ in range(2)]
    computed, began = [one.generation(prompt, 3) for prompt in prompts(0)], time.monotonic()
    for generation in computed:
        await one.prefill.start(generation)
        await one.prefill.first_token(generation)
    num_held = sum(prefill.held())
    assert num_held == 4 * NUM_BLOCKS or time.monotonic() - began > GRANT_PATIENCE_S
    granted = [other.generation(prompt, 3) for prompt in prompts(4)]
    grants = [await other.reserve(generation) for generation in granted]
    assert sum(decode.held()) == 4 * NUM_BLOCKS

    async def go_on(generation: types_pb2.Generation) -> list[int]:
        await one.prefill.grant(generation, await one.reserve(generation))
        return await finish(one, generation)

    async def begin(generation: types_pb2.Generation, grant) -> list[int]:
        await other.prefill.start(generation)
        await other.prefill.grant(generation, grant)
        return await finish(other, generation)

    begun = [begin(generation, grant) for generation, grant in zip(granted, grants, strict=True)]
    async with asyncio.timeout(15):
        tokens = await asyncio.gather(*map(go_on, computed), *begun)
    assert tokens == [expected(prompt, 3) for prompt in prompts(0) + prompts(4)]
    counted = prefill.metric("baton_prompt_tokens_total")
    assert counted == sum(map(len, prompts(0) + prompts(4)))  # though some were computed twice
    for router in (one, other):
        await router.close()
    await idle(*pair)
