"""Calls a router's backend directly, to measure the part of TTFT that is not the router's.

An OpenAI server is called by a stream over HTTP, Baton's nodes by a start message on the stream between services.
Requests are sent STEP_S apart, as they arrive through a router whose clients wait for a second token. Processes that
sleep that long wake with cold caches, and take more than twice as long as when called without pauses.
"""

import asyncio
import itertools
import time
from typing import Any

from baton.net import redis_client, rpc
from baton.net.registry import list_nodes
from baton.request import Generation, SamplingParams
from baton.v1 import node_pb2, node_pb2_grpc
from bench._router.nodes import STEP_S

NUM_WARM = 20


async def node_ttfts(redis_url: str, num_requests: int) -> list[float]:
    """Return the seconds from a start to its first token on the registered prefill node, one request at a time."""
    redis = redis_client.connect(redis_url)
    records = await list_nodes(redis)
    await redis.aclose()
    address = next(record.address for record in records if record.role == "prefill")
    channel = rpc.channel(address, None)
    call = node_pb2_grpc.NodeStub(channel).Attach()
    try:
        async with asyncio.timeout(60):
            await call.write(node_pb2.RouterBatch(router_id="direct", epoch=1))
            return [await _first_token_s(call, key) for key in range(1, NUM_WARM + num_requests + 1)][NUM_WARM:]
    finally:
        call.cancel()
        await channel.close()


async def _first_token_s(call: Any, key: int) -> float:
    generation = Generation(
        request_id=f"direct-{key}",
        key=key,
        token_ids=[0, 1],
        num_prompt_tokens=2,
        sampling=SamplingParams(max_tokens=2),
        router_id="direct",
    )
    await asyncio.sleep(STEP_S)
    began_s = time.monotonic()
    start = node_pb2.Start(generation=generation.to_proto())
    await call.write(node_pb2.RouterBatch(epoch=1, sequence=key, starts=[start]))
    for _ in itertools.count():
        batch = await call.read()
        if any(first.key == key for first in batch.first_tokens):
            break
    return time.monotonic() - began_s
