"""Work on prompts alone, which nodes of both pools do."""

from collections.abc import Callable

import grpc
import pytest
from grpc import aio

from baton.v1 import prompt_pb2
from tests.integration.nodes.routing import Router, idle, prompt_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def score(router: Router, prompt: list[int], num_tokens: int = 0) -> prompt_pb2.PromptRequest:
    generation = router.generation(prompt, num_tokens)
    return prompt_pb2.PromptRequest(generation=generation, router_id=router.id, scores=True, num_logprobs=2)


async def test_prompts_are_worked_on_by_nodes_of_both_pools(
    router: Router, expected: Callable[[list[int], int], list[int]]
) -> None:
    prompt = prompt_of(200, seed=31)
    for stub in router.prompts:
        events = [event async for event in stub.Compute(score(router, prompt, 3), metadata=router.metadata)]
        assert [event.logprobs.position for event in events[:-1]] == [1, 65, 129, 193]  # a message for each chunk
        assert sum(len(event.logprobs.logprobs) for event in events[:-1]) == 199
        assert sum(len(event.logprobs.top_token_ids) for event in events[:-1]) == 2 * 199
        computed = events[-1].computed
        assert (computed.first_token.token_id, computed.num_cached_tokens) == (expected(prompt, 1)[0], 0)
    await idle(router.prefill_node, router.decode_node)


async def test_work_on_a_prompt_ends_with_its_call_or_its_router(router: Router) -> None:
    for stub, node in zip(router.prompts, (router.prefill_node, router.decode_node), strict=True):
        for num_events in (0, 1):
            call = stub.Compute(score(router, prompt_of(490, seed=32)), metadata=router.metadata)
            for _ in range(num_events):
                await call.read()
            call.cancel()
            await idle(node)
    late = score(router, prompt_of(490, seed=33))
    late.generation.timeout_ms = 1
    call = router.prompts[0].Compute(late, metadata=router.metadata)
    with pytest.raises(aio.AioRpcError) as raised:
        [event async for event in call]
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    too_long = score(router, prompt_of(513, seed=34))
    with pytest.raises(aio.AioRpcError) as raised:
        [event async for event in router.prompts[0].Compute(too_long, metadata=router.metadata)]
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
