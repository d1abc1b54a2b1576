"""What a prefill and a decode node make of requests while nothing breaks."""

import asyncio
from collections.abc import Callable

import pytest

from baton.v1 import types_pb2
from tests.integration.nodes.routing import BLOCK, Router, prompt_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.mark.parametrize("num_tokens", [1, 5, 2 * BLOCK, 200])
async def test_tokens_are_the_same_apart_together_and_in_the_reference(
    router: Router, expected: Callable[[list[int], int], list[int]], num_tokens: int
) -> None:
    prompt = prompt_of(num_tokens, seed=num_tokens)
    apart = await router.run_apart(router.generation(prompt, 12))
    together = await router.run_together(router.generation(prompt, 12))
    assert apart == together == expected(prompt, 12)


async def test_many_requests_at_once_with_grants_before_and_after_the_compute(
    router: Router, expected: Callable[[list[int], int], list[int]]
) -> None:
    prompts = [prompt_of(20 + 7 * i, seed=100 + i) for i in range(8)]
    runs = [router.run_apart(router.generation(p, 8), late_grant=i % 2 == 1) for i, p in enumerate(prompts)]
    assert await asyncio.gather(*runs) == [expected(prompt, 8) for prompt in prompts]


async def test_only_missing_blocks_are_shipped(router: Router) -> None:
    prompt = prompt_of(3 * BLOCK + 5, seed=1)
    first = await router.run_apart(router.generation(prompt, 4))
    again = router.generation(prompt, 4)
    grant = await router.reserve(again)
    assert (grant.num_present_blocks, grant.num_missing_blocks) == (3, 1)
    await router.cancel(again)
    once_more = router.generation(prompt, 4)
    assert await router.run_apart(once_more) == first
    started = router.started(once_more)
    assert started is not None
    assert started.num_cached_tokens == 3 * BLOCK


async def test_a_second_attempt_goes_on_where_the_first_one_stopped(router: Router) -> None:
    prompt = prompt_of(40, seed=2)
    whole = await router.run_apart(router.generation(prompt, 10))
    rest = router.generation(prompt + whole[:4], 10, num_prompt_tokens=40, attempt=1)
    assert await router.run_apart(rest) == whole[4:]
    assert min(router.tokens(rest)) == 5  # token 4 was the prefill node's to tell


async def test_a_first_token_that_is_the_last_needs_no_transfer(router: Router) -> None:
    generation = router.generation(prompt_of(20, seed=3), 1)
    await router.prefill.start(generation)
    first = await router.prefill.first_token(generation)
    assert first.finish_reason == types_pb2.FINISH_REASON_LENGTH
