"""Nodes that start and drain, and routers that come and go."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from baton.net import redis_client, registry, rpc
from baton.v1 import node_pb2_grpc, types_pb2
from tests.integration.nodes.routing import BLOCK, NodeProcess, Router, idle, prompt_of
from tests.node_stream import WAIT_S, LegFailed

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_a_node_of_a_fleet_with_a_token_refuses_strangers(router: Router) -> None:
    if not router.decode_node.token:
        pytest.skip("this pair has no token")
    for stream in (router.prefill, router.decode):
        call = node_pb2_grpc.NodeStub(stream.channel).Attach(metadata=rpc.metadata("another"))
        with pytest.raises(aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_router_that_attaches_again_begins_with_nothing(router: Router) -> None:
    left = router.generation(prompt_of(20, seed=11), 450)
    await router.generate(left)
    await router.wait_for(lambda: router.tokens(left))
    await router.decode.lose()
    await router.decode.attach()
    again = router.generation(prompt_of(20, seed=11), 60, key=left.key, attempt=1)
    assert len(await router.run_together(again)) == 60
    await idle(router.decode_node)
    assert len(router.tokens(left)) < 100
    assert router.finished(left) is None


async def test_a_router_gone_for_good_loses_its_requests(router: Router) -> None:
    other = await Router(router.prefill_node, router.decode_node).attach()
    await other.wait_for(lambda: other.batches)
    reserved = other.generation(prompt_of(50, seed=12), 5)
    await other.reserve(reserved)
    assert await asyncio.to_thread(router.decode_node.held) == (0, 4)
    await other.close()
    await idle(router.decode_node)


@pytest.fixture
def fresh(start: Callable[..., NodeProcess]) -> tuple[NodeProcess, NodeProcess]:
    prefill, decode = start("prefill", "--transport", "tcp"), start("decode", "--transport", "tcp")
    return prefill.wait_ready(), decode.wait_ready()


async def test_sigterm_drains(fresh: tuple[NodeProcess, NodeProcess], fleet_redis: str, expected: Any) -> None:
    prefill, decode = fresh
    before = set(os.listdir("/dev/shm"))
    redis = redis_client.connect(fleet_redis, timeout_s=2)
    router = await Router(prefill, decode).attach()
    await router.run_apart(router.generation(prompt_of(20, seed=15), 2))
    prompt = prompt_of(100, seed=14)
    running = router.generation(prompt, 350)
    await router.generate(running)
    half_way = router.generation(prompt[:50], 5)
    await router.reserve(half_way)
    for node in fresh:
        node.process.send_signal(signal.SIGTERM)
    await router.wait_for(lambda: any(b.load.state == types_pb2.NODE_STATE_DRAINING for b in router.batches))
    async with asyncio.timeout(10):  # it has a reservation, and stays
        while (decode.id, "draining") not in {(r.node_id, r.state) for r in await registry.list_nodes(redis)}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(LegFailed, match="node_unavailable"):
        await router.generate(router.generation(prompt, 5))
    assert await asyncio.to_thread(prefill.process.wait, WAIT_S) == 0  # it had nothing left to do
    await router.cancel(half_way)
    finished = await router.wait_for(lambda: router.finished(running))
    assert finished.reason == types_pb2.FINISH_REASON_LENGTH
    assert [token for _, token in sorted(router.tokens(running).items())][:20] == expected(prompt, 20)
    assert await asyncio.to_thread(decode.process.wait, WAIT_S) == 0
    assert not {node.node_id for node in await registry.list_nodes(redis)} & {prefill.id, decode.id}
    assert set(os.listdir("/dev/shm")) <= before
    await router.close()
    await redis.aclose()


async def test_a_node_says_how_far_it_is_and_registers(pair: tuple[NodeProcess, NodeProcess], fleet_redis: str) -> None:
    redis = redis_client.connect(fleet_redis, timeout_s=2)
    by_id = {record.node_id: record for record in await registry.list_nodes(redis)}
    await redis.aclose()
    for node, role in zip(pair, ("prefill", "decode"), strict=True):
        fractions = [float(line.split()[1]) for line in node.said if line.startswith("progress ")]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        record = by_id[node.id]
        assert (record.role, record.state, record.models) == (role, "ready", ("tiny",))
        assert (record.address, record.epoch, record.block_size) == (node.address, node.epoch, BLOCK)


def test_a_node_that_cannot_start_says_why_in_one_line(tmp_path: Path, redis_url: str) -> None:
    for flags in (["--model", str(tmp_path)], ["--model", str(tmp_path), "--redis-url", "http://127.0.0.1"]):
        command = [sys.executable, "-m", "decode_node", "--redis-url", redis_url, *flags]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
        assert ended.returncode == 1
        assert ended.stderr.startswith("baton decode: error: ")
        assert ended.stderr.count("\n") == 1
