"""Nodes that compute nothing answer the bench directly, as they answer a router."""

import asyncio
import subprocess
import sys

from bench._router.direct import node_ttfts


async def measured(redis_url: str) -> list[float]:
    ttfts = await node_ttfts(redis_url, 5)
    await asyncio.sleep(0.1)  # gRPC tells of the end of a call after it: in this loop, not in that of another test
    return ttfts


def test_the_prefill_node_is_found_and_answers(redis_url: str) -> None:
    command = [sys.executable, "-m", "bench._router.nodes", redis_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as nodes:
        try:
            assert nodes.stdout is not None
            assert nodes.stdout.readline().startswith("ready")
            ttfts = asyncio.run(measured(redis_url))
        finally:
            nodes.kill()
    assert len(ttfts) == 5
    assert all(0 < ttft_s < 5 for ttft_s in ttfts)
