"""A node process without an engine, against a real Redis."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from baton.errors import ConfigError
from baton.kv.prefix_hash import BlockHash
from baton.net import redis_client, registry, rpc
from baton.node.session import Leg
from baton.node.shell import NodeFacts, NodeShell
from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig
from baton.request import Generation, SamplingParams
from baton.v1 import transfer_pb2, types_pb2
from tests.node_stream import NodeStream

pytestmark = pytest.mark.anyio

FACTS = NodeFacts(
    role="prefill",
    services=("baton.v1.Node", "baton.v1.Prompt"),
    models=("m",),
    model_fingerprint="f",
    block_size=16,
    max_model_len=512,
    num_blocks=10,
)


class NoLegs:
    """Accepts no leg."""

    def begin(self, generation: Generation, prefill_node_id: str, prefill_epoch: int) -> None:
        raise NotImplementedError

    def take_grant(self, leg: Leg, grant: transfer_pb2.Grant) -> None:
        raise NotImplementedError


async def no_blocks() -> list[BlockHash]:
    return []


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[redis_client.Redis]:
    redis = redis_client.connect(redis_url, timeout_s=2)
    yield redis
    await redis.aclose()


@pytest.fixture
async def shell(redis: redis_client.Redis) -> AsyncIterator[NodeShell]:
    shell = NodeShell(NodeConfig(node_id="p0", drain_timeout_s=0.3), FACTS, redis, no_blocks)
    await shell.listen(NoLegs())
    yield shell
    await shell.leave()
    await shell.close()


async def health(shell: NodeShell) -> int:
    async with rpc.channel(shell.address) as channel:
        request = health_pb2.HealthCheckRequest(service="baton.v1.Prompt")
        with contextlib.suppress(grpc.aio.AioRpcError):  # it says NOT_FOUND of a service that it does not know
            return int((await health_pb2_grpc.HealthStub(channel).Check(request)).status)
    return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


async def states(redis: redis_client.Redis) -> dict[str, str]:
    return {record.node_id: record.state for record in await registry.list_nodes(redis)}


def prefix_keys(shell: NodeShell) -> tuple[str, str]:
    """The keys in Redis that hold the node's blocks."""
    blocks = f"baton:prefix:f:p0:{shell.epoch}"
    return blocks, f"{blocks}:seq"


async def until(ask: Callable[[], Awaitable[Any]], expected: Any) -> None:
    async with asyncio.timeout(10):
        while await ask() != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_node_is_registered_only_while_it_runs(shell: NodeShell, redis: redis_client.Redis) -> None:
    assert await states(redis) == {}
    assert await health(shell) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    shutdown = Shutdown()
    running = asyncio.create_task(shell.run(shutdown))
    await until(lambda: health(shell), health_pb2.HealthCheckResponse.SERVING)
    assert await states(redis) == {"p0": "ready"}
    assert shell.board.load().state == types_pb2.NODE_STATE_READY
    shutdown.request()
    await running
    assert shell.sessions.draining
    assert shell.board.load().state == types_pb2.NODE_STATE_DRAINING
    assert await health(shell) == health_pb2.HealthCheckResponse.NOT_SERVING
    await until(lambda: states(redis), {"p0": "draining"})
    await shell.leave()
    assert await states(redis) == {}


@pytest.fixture
async def running(shell: NodeShell, redis: redis_client.Redis) -> AsyncIterator[None]:
    """The shell is part of the fleet, and its (empty) set of blocks is in Redis."""
    task = asyncio.create_task(shell.run(Shutdown()))
    await until(lambda: states(redis), {"p0": "ready"})
    await until(lambda: redis.exists(*prefix_keys(shell)), 2)
    yield
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.usefixtures("running")
async def test_leaving_without_a_drain_deregisters_the_node_and_its_blocks(
    shell: NodeShell, redis: redis_client.Redis
) -> None:
    await shell.leave()
    assert shell.sessions.draining
    assert await health(shell) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await states(redis) == {}
    assert await redis.exists(*prefix_keys(shell)) == 0


@pytest.mark.usefixtures("running")
async def test_the_registry_record_follows_the_load(shell: NodeShell, redis: redis_client.Redis) -> None:
    async def told() -> list[tuple[int, int, int]]:
        records = await registry.list_nodes(redis)
        return [(record.num_free_blocks, record.num_running, record.num_waiting) for record in records]

    load = types_pb2.Load(num_blocks=10, num_free_blocks=7, num_running=2, num_waiting=1)
    shell.board.publish(load, num_cached=0, num_leased=0, num_preemptions=0)
    await until(told, [(7, 2, 1)])


async def test_closing_ends_the_routers_streams_at_once_and_leaves_no_task(
    shell: NodeShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.node.shell._STOP_GRACE_S", 60.0)  # for those who do not listen
    running = asyncio.create_task(shell.run(Shutdown()))
    stream = await NodeStream(shell.address, shell.epoch, "r").attach()
    await stream.wait_for(lambda: stream.batches)
    shell.fail(RuntimeError("out of memory"))
    shell.fail(RuntimeError("and once more"))
    with pytest.raises(RuntimeError, match="out of memory"):
        await running
    await shell.leave()
    began_s = time.monotonic()
    await shell.close()
    assert time.monotonic() - began_s < 30.0
    assert await stream.call.code() is grpc.StatusCode.OK
    await stream.close()
    left = {task.get_name() for task in asyncio.all_tasks()}
    assert not left & {"heartbeats", "record", "drain", "prefix index writer"}


async def test_a_drain_ends_at_its_timeout(shell: NodeShell) -> None:
    class Leg:
        generation = Generation(
            request_id="r1", key=1, token_ids=[], num_prompt_tokens=0, sampling=SamplingParams(), router_id="r"
        )

        def cancel(self) -> None:
            pass

    shell.sessions.open(Leg())  # type: ignore[arg-type]
    shutdown = Shutdown()
    shutdown.request()
    async with asyncio.timeout(10):
        await shell.run(shutdown)
    assert shell.sessions.num_legs == 1


async def test_an_error_in_the_step_thread_ends_the_node(shell: NodeShell) -> None:
    shell.fail(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        await shell.run(Shutdown())


async def test_a_node_can_close_right_after_its_record_changed(shell: NodeShell, redis: redis_client.Redis) -> None:
    for num_turns in range(4):
        another = NodeShell(NodeConfig(node_id=f"p{num_turns}"), FACTS, redis, no_blocks)
        await another.listen(NoLegs())
        shutdown = Shutdown()
        shutdown.request()
        async with asyncio.timeout(3):
            await another.run(shutdown)
            for _ in range(num_turns):
                await asyncio.sleep(0)
            await another.leave()
            await another.close()
    assert await states(redis) == {}


async def test_a_taken_port_is_a_config_error(shell: NodeShell, redis: redis_client.Redis) -> None:
    port = int(shell.address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=str(port)):
        await NodeShell(NodeConfig(port=port), FACTS, redis, no_blocks).listen(NoLegs())


async def test_reflection_names_the_services(shell: NodeShell) -> None:
    async with rpc.channel(shell.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        call.cancel()
    names = {service.name for service in answer.list_services_response.service}
    assert {"baton.v1.Node", "baton.v1.Prompt"} <= names
