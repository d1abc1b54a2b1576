"""Every family's KV from a real prefill node to a real decode node over TCP: same tokens as one engine alone.

Both nodes run in this process, each as it would on its own: engine, step thread, gRPC, transfer, registration.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

import decode_node.node
import prefill_node.node
from baton.kv.layout import KVLayout
from baton.net import redis_client, registry
from baton.net.registry import NodeRecord
from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig
from baton.request import Generation, SamplingParams
from engine.loading import load_engine
from kv_transfer.staged_pool import StagedPool
from tests.integration.engine_runs import ahead
from tests.node_stream import NodeStream

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_late")]

PROMPT = [(7 * i * i + 3 * i) % 199 for i in range(53)]
NUM_TOKENS = 9


def generation(prompt: list[int]) -> Generation:
    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    return Generation(
        request_id="r",
        key=1,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=sampling,
        router_id="router",
        timeout_ms=30_000,
    )


@contextlib.asynccontextmanager
async def running(role: Any, config: NodeConfig, runs_ahead: bool = False) -> AsyncIterator[NodeRecord]:
    """A node of that role until the block is left; it must drain by itself."""
    shutdown = Shutdown()
    engine = await asyncio.to_thread(load_engine, config.model, config)
    engine = ahead(engine) if runs_ahead else engine
    serving = asyncio.create_task(role.serve(config, engine, shutdown))
    try:
        yield await registered(config, serving)
    finally:
        shutdown.request()
        await serving
        engine.check()


async def registered(config: NodeConfig, serving: "asyncio.Task[None]") -> NodeRecord:
    redis = redis_client.connect(config.redis_url)
    try:
        async with asyncio.timeout(20):
            while not serving.done():
                with contextlib.suppress(*redis_client.REDIS_ERRORS):  # its 50 ms may be over on a busy machine
                    for record in await registry.list_nodes(redis):
                        if record.node_id == config.node_id and record.state == "ready":
                            return record
                await asyncio.sleep(0.01)
    finally:
        await redis.aclose()
    await serving
    raise AssertionError("the node has ended")


async def apart(prefill: NodeRecord, decode: NodeRecord, prompt: list[int]) -> list[int]:
    """Prefill there, decode here, as a router asks for it: all output tokens."""
    to_prefill, to_decode = (NodeStream(node.address, node.epoch, "router") for node in (prefill, decode))
    for stream in (to_prefill, to_decode):
        await stream.attach()
    asked = generation(prompt).to_proto()
    await to_prefill.start(asked)
    await to_decode.start(asked, (prefill.node_id, prefill.epoch))
    grant = await to_decode.granted(asked)
    assert grant.num_missing_blocks == -(-len(prompt) // 8)
    await to_prefill.grant(asked, grant)
    first = await to_prefill.first_token(asked)
    await to_prefill.word("transferred", asked)
    await to_decode.word("finished", asked)
    for stream in (to_prefill, to_decode):
        await stream.close()
    tokens = to_decode.tokens(asked)
    return [first.token_id, *(tokens[index] for index in sorted(tokens))]


async def split(
    directory: Path, redis_url: str, runs_ahead: bool = False, device: str = "cpu", prompt: list[int] = PROMPT
) -> None:
    """Both nodes on this checkpoint say what one engine says."""
    config = {"model": str(directory), "redis_url": redis_url, "transport": "tcp", "device": device}
    config |= {"kv_memory": "2MiB", "block_size": 8, "num_threads": 1, "max_num_batched_tokens": 24}
    prefill, decode = (NodeConfig(node_id=role, **config) for role in ("prefill", "decode"))
    async with (
        running(prefill_node.node, prefill, runs_ahead) as first,
        running(decode_node.node, decode, runs_ahead) as second,
    ):
        assert first.model_fingerprint == second.model_fingerprint
        tokens = await apart(first, second, prompt)
    alone = load_engine(directory, decode)
    request = alone.add(generation(prompt))
    while alone.has_work:
        alone.step()
    assert len(tokens) == NUM_TOKENS
    assert tokens == request.token_ids[len(prompt) :]


async def test_same_tokens_as_one_engine_alone(family, redis_url):
    await split(family.directory, redis_url)


@pytest.mark.parametrize("length", [92, 96, 100])
async def test_longrope_beyond_its_first_length(length, tmp_path, save_family, redis_url):
    """96 tokens: a request gets there while it is decoded, with its first token, or is there from the start."""
    save_family(tmp_path, "phi3-longrope")
    await split(tmp_path, redis_url, prompt=[(7 * i * i + 3 * i) % 199 for i in range(length)])


@pytest.mark.parametrize("name", ["llama", "deepseek-v3"])
async def test_as_on_a_gpu(name, tmp_path, save_family, redis_url, monkeypatch):
    """Blocks travel through staging memory at both ends, and steps run ahead."""
    pools = []

    def staged(buffer: torch.Tensor, layout: KVLayout, num_blocks: int) -> StagedPool:
        pools.append(StagedPool(buffer, layout, num_blocks, max_lent_bytes=2 * layout.block_group_bytes))
        return pools[-1]

    for node in (prefill_node.node, decode_node.node):
        monkeypatch.setattr(node, "pool_of", staged)
    save_family(tmp_path, name)
    await split(tmp_path, redis_url, runs_ahead=True)
    assert len(pools) == 2
    assert [(pool._lent_bytes, pool._landing_bytes, pool._waiting) for pool in pools] == [(0, 0, [])] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gemma2", "deepseek-v3"])
async def test_on_a_gpu(name, tmp_path, save_family, redis_url):
    save_family(tmp_path, name)
    await split(tmp_path, redis_url, device="cuda")
