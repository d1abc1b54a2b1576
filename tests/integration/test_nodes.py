"""Real node processes, a real Redis, real gRPC; the test is the router."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc import aio

from baton import redis_client, registry, rpc
from baton.request import Generation, SamplingParams
from baton.v1 import (
    decode_pb2,
    decode_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    prefill_pb2,
    prefill_pb2_grpc,
    prompt_pb2,
    prompt_pb2_grpc,
    types_pb2,
)
from engine import random_checkpoint
from tests.metrics_page import samples

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

CHUNK = 64
TOKEN = "of this fleet"
BLOCK = 16
_START_S, _WAIT_S = 40, 15
_keys = itertools.count(1)


class NodeProcess:
    """A node that runs until the fixture ends it, or the test."""

    def __init__(self, role: str, model: Path, redis_url: str, *flags: str, **env: str) -> None:
        command = [sys.executable, "-m", f"{role}_node", "--model", str(model), "--redis-url", redis_url]
        command += ["--num-threads", "1", "--max-num-batched-tokens", str(CHUNK), "--block-size", str(BLOCK), *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | env
        )
        self.transport = flags[flags.index("--transport") + 1]
        self.token = env.get("BATON_SERVICE_TOKEN", "")
        self.said: list[str] = []
        self.facts: dict[str, Any] = {}

    def wait_ready(self) -> "NodeProcess":
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("ready "):
                self.facts = json.loads(line.removeprefix("ready "))
                return self
        raise AssertionError(f"exit code {self.process.wait()}")

    @property
    def id(self) -> str:
        return str(self.facts["node_id"])

    @property
    def epoch(self) -> int:
        return int(self.facts["epoch"])

    @property
    def address(self) -> str:
        return str(self.facts["address"])

    def metric(self, name: str, **labels: str) -> float:
        ((label, value),) = labels.items() or (("role", self.facts["role"]),)
        return samples(self.facts["metrics_url"], name, label)[value]

    def held(self) -> tuple[float, float]:
        """(running, leased) blocks"""
        return tuple(self.metric("baton_kv_blocks", state=state) for state in ("running", "leased"))  # type: ignore[return-value]

    def end(self) -> int:
        self.process.kill()
        return self.process.wait()


class Router:
    """What a router does, for one pair of nodes."""

    def __init__(self, prefill: NodeProcess, decode: NodeProcess, router_id: str) -> None:
        self.id = router_id
        self.prefill_node, self.decode_node = prefill, decode
        self.channels = [rpc.channel(node.address) for node in (prefill, decode)]
        self.metadata = rpc.metadata(decode.token)
        self.prefill = prefill_pb2_grpc.PrefillStub(self.channels[0])
        self.decode = decode_pb2_grpc.DecodeStub(self.channels[1])
        self.node = node_pb2_grpc.NodeStub(self.channels[1])
        self.prompts = [prompt_pb2_grpc.PromptStub(channel) for channel in self.channels]
        self.batches: list[node_pb2.StepBatch] = []
        self.moved = asyncio.Event()
        self.attach()

    def attach(self) -> None:
        self.stream = self.node.Attach(node_pb2.AttachRequest(router_id=self.id), metadata=self.metadata)
        self.reader = asyncio.create_task(self._read(self.stream))

    async def _read(self, stream: Any) -> None:
        with contextlib.suppress(aio.AioRpcError, asyncio.CancelledError):
            async for batch in stream:
                self.batches.append(batch)
                self.moved.set()

    async def lose_stream(self) -> None:
        self.stream.cancel()  # the call, not its reader: a reader cut off in mid-iteration is never closed
        await asyncio.wait([self.reader])

    async def close(self) -> None:
        await self.lose_stream()
        for channel in self.channels:
            await channel.close()

    def generation(self, prompt: list[int], num_tokens: int, **fields: Any) -> types_pb2.Generation:
        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        key = fields.setdefault("key", next(_keys))
        values: dict[str, Any] = {"num_prompt_tokens": len(prompt), "timeout_ms": 30_000} | fields
        return Generation(
            request_id=f"r{key}", token_ids=prompt, sampling=sampling, router_id=self.id, **values
        ).to_proto()

    def begin_leg(self) -> Any:
        return self.prefill.Run(timeout=30, metadata=self.metadata)

    async def generate(self, generation: types_pb2.Generation) -> None:
        await self.decode.Generate(generation, metadata=self.metadata)

    async def reserve(self, generation: types_pb2.Generation) -> Any:
        request = decode_pb2.ReserveRequest(
            generation=generation, prefill_node_id=self.prefill_node.id, prefill_epoch=self.prefill_node.epoch
        )
        return await self.decode.Reserve(request, timeout=_WAIT_S, metadata=self.metadata)

    def tokens(self, key: int, attempt: int = 0) -> dict[int, int]:
        rows = (zip(b.keys, b.attempts, b.indices, b.token_ids, strict=True) for b in self.batches)
        return {index: token for row in rows for k, a, index, token in row if (k, a) == (key, attempt)}

    def finished(self, key: int) -> types_pb2.Finished | None:
        return next((f for batch in self.batches for f in batch.finished if f.key == key), None)

    def started(self, key: int) -> types_pb2.Started | None:
        return next((s for batch in self.batches for s in batch.started if s.key == key), None)

    async def wait_for(self, done: Callable[[], Any]) -> Any:
        async with asyncio.timeout(_WAIT_S):
            while not done():
                self.moved.clear()
                await self.moved.wait()
        return done()

    async def cancel(self, generation: types_pb2.Generation) -> None:
        request = decode_pb2.CancelRequest(router_id=self.id, keys=[generation.key], attempts=[generation.attempt])
        await self.decode.Cancel(request, metadata=self.metadata)

    async def run_apart(self, generation: types_pb2.Generation, *, late_grant: bool = False) -> list[int]:
        """Prefill there, decode here: all output tokens."""
        run = self.begin_leg()
        await run.write(prefill_pb2.RunMessage(generation=generation))
        first = await run.read() if late_grant else None
        await run.write(prefill_pb2.RunMessage(grant=await self.reserve(generation)))
        first = first or await run.read()
        assert (await run.read()).HasField("transferred")
        await run.done_writing()
        assert await run.code() is grpc.StatusCode.OK
        finished = await self.wait_for(lambda: self.finished(generation.key))
        assert finished.reason == types_pb2.FINISH_REASON_LENGTH, finished
        tokens = self.tokens(generation.key, generation.attempt) | {first.first_token.index: first.first_token.token_id}
        return [tokens[index] for index in sorted(tokens)]

    async def run_apart_at_last(self, generations: Iterator[types_pb2.Generation]) -> list[int]:
        """As a router would: attempt after attempt, while the pair cannot exchange blocks."""
        async with asyncio.timeout(_WAIT_S):
            for generation in generations:
                try:
                    return await self.run_apart(generation)
                except aio.AioRpcError:
                    await self.cancel(generation)
        raise AssertionError("no attempt is left")

    async def run_together(self, generation: types_pb2.Generation) -> list[int]:
        await self.generate(generation)
        await self.wait_for(lambda: self.finished(generation.key))
        tokens = self.tokens(generation.key, generation.attempt)
        return [tokens[index] for index in sorted(tokens)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def fleet_redis(_shared_redis: Any) -> str:
    """URL of a Redis that lives as long as the nodes. Other tests may empty it at any time; nodes have to bear that."""
    return str(_shared_redis.url)


@pytest.fixture(scope="module")
def start(model: Path, fleet_redis: str) -> Iterator[Callable[..., NodeProcess]]:
    """Starts a node; whoever wants to use it waits until it is ready."""
    nodes: list[NodeProcess] = []

    def start_node(role: str, *flags: str, **env: str) -> NodeProcess:
        nodes.append(NodeProcess(role, model, fleet_redis, "--kv-memory", "1MiB", *flags, **env))
        return nodes[-1]

    yield start_node
    for node in nodes:
        node.end()


@pytest.fixture(scope="module", params=["tcp", "ucx"])
def pair(start: Callable[..., NodeProcess], request: pytest.FixtureRequest) -> tuple[NodeProcess, NodeProcess]:
    env = {"BATON_SERVICE_TOKEN": TOKEN} if request.param == "ucx" else {}
    prefill, decode = (start(role, "--transport", request.param, **env) for role in ("prefill", "decode"))
    return prefill.wait_ready(), decode.wait_ready()


@pytest.fixture(scope="module")
def expected(model: Path) -> Callable[[list[int], int], list[int]]:
    """Greedy tokens of the reference implementation."""
    import torch
    import transformers

    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def generate(prompt: list[int], num_tokens: int) -> list[int]:
        length = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
        output = reference.generate(
            torch.tensor([prompt]), do_sample=False, eos_token_id=None, pad_token_id=0, **length
        )
        return [int(token) for token in output[0, len(prompt) :]]

    return generate


@pytest.fixture
async def router(pair: tuple[NodeProcess, NodeProcess]) -> AsyncIterator[Router]:
    router = Router(*pair, router_id=f"router-{next(_keys)}")
    yield router
    await router.close()
    await idle(*pair)


def prompt_of(num_tokens: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 512), k=num_tokens)


async def idle(*nodes: NodeProcess) -> None:
    """No block of these nodes is held by anybody; it must come true within 2 s."""
    deadline = time.monotonic() + 2
    while (held := [await asyncio.to_thread(node.held) for node in nodes]) != [(0, 0)] * len(nodes):
        assert time.monotonic() < deadline, held
        await asyncio.sleep(0.02)


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
    started = router.started(once_more.key)
    assert started is not None
    assert started.num_cached_tokens == 3 * BLOCK


async def test_a_second_attempt_goes_on_where_the_first_one_stopped(router: Router) -> None:
    prompt = prompt_of(40, seed=2)
    whole = await router.run_apart(router.generation(prompt, 10))
    rest = router.generation(prompt + whole[:4], 10, num_prompt_tokens=40, attempt=1)
    assert await router.run_apart(rest) == whole[4:]
    assert min(router.tokens(rest.key, 1)) == 5  # token 4 was the prefill node's to tell


async def test_a_first_token_that_is_the_last_needs_no_transfer(router: Router) -> None:
    run = router.begin_leg()
    await run.write(prefill_pb2.RunMessage(generation=router.generation(prompt_of(20, seed=3), 1)))
    await run.done_writing()
    assert (await run.read()).first_token.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert await run.code() is grpc.StatusCode.OK


def score(router: Router, prompt: list[int], num_tokens: int = 0) -> prompt_pb2.PromptRequest:
    return prompt_pb2.PromptRequest(generation=router.generation(prompt, num_tokens), scores=True, num_logprobs=2)


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


async def test_a_cancelled_reservation_gives_its_blocks_back(router: Router) -> None:
    generation = router.generation(prompt_of(100, seed=4), 8)
    await router.reserve(generation)
    assert await asyncio.to_thread(router.decode_node.held) == (0, 7)
    await router.cancel(generation)
    await router.cancel(generation)
    await idle(router.decode_node)
    assert router.finished(generation.key) is None


async def test_a_cancel_that_comes_before_its_reservation(router: Router) -> None:
    generation = router.generation(prompt_of(100, seed=5), 8)
    await router.cancel(generation)
    with pytest.raises(aio.AioRpcError) as raised:
        await router.reserve(generation)
    assert raised.value.code() is grpc.StatusCode.CANCELLED


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
    with pytest.raises(aio.AioRpcError):
        await calls[0]
    await router.cancel(granted[0])
    await asyncio.wait_for(calls[1], 5)
    assert not calls[2].done()
    await router.cancel(queued[2])
    for generation in [*granted, queued[1]]:
        await router.cancel(generation)
    with pytest.raises(aio.AioRpcError):
        await calls[2]


async def test_a_cancelled_running_request_falls_silent(router: Router) -> None:
    generation = router.generation(prompt_of(30, seed=6), 450)
    await router.generate(generation)
    await router.wait_for(lambda: len(router.tokens(generation.key)) > 3)
    await router.cancel(generation)
    await idle(router.decode_node)
    assert len(router.tokens(generation.key)) < 450
    assert router.finished(generation.key) is None


@pytest.mark.parametrize("phase", ["queued", "sampled", "granted", "committed"])
async def test_ending_the_prefill_stream_gives_blocks_back_in_every_phase(router: Router, phase: str) -> None:
    generation = router.generation(prompt_of(300, seed=7), 200)
    run = router.begin_leg()
    await run.write(prefill_pb2.RunMessage(generation=generation))
    if phase != "queued":
        await run.read()
    if phase in ("granted", "committed"):
        await run.write(prefill_pb2.RunMessage(grant=await router.reserve(generation)))
    if phase == "committed":
        await run.read()
    run.cancel()
    await idle(router.prefill_node)
    await router.cancel(generation)
    await idle(router.decode_node)


async def test_a_stream_without_generation_or_grant_is_refused(router: Router) -> None:
    empty = router.begin_leg()
    await empty.done_writing()
    assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT
    no_grant = router.begin_leg()
    await no_grant.write(prefill_pb2.RunMessage(generation=router.generation(prompt_of(20, seed=8), 5)))
    await no_grant.done_writing()
    assert (await no_grant.read()).HasField("first_token")
    assert await no_grant.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("prompt", [[], [511, 512], [3] * 512, [3] * 100_000], ids=len)
async def test_a_bad_request_ends_alone(router: Router, prompt: list[int]) -> None:
    good = router.generation(prompt_of(20, seed=9), 40)
    await router.generate(good)
    with pytest.raises(aio.AioRpcError) as raised:
        await router.generate(router.generation(prompt, 5))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(aio.AioRpcError) as raised:
        await router.reserve(router.generation(prompt, 5))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    run = router.begin_leg()
    await run.write(prefill_pb2.RunMessage(generation=router.generation(prompt, 5)))
    assert await run.code() is grpc.StatusCode.INVALID_ARGUMENT
    finished = await router.wait_for(lambda: router.finished(good.key))
    assert finished.num_output_tokens == 40


async def test_a_node_of_a_fleet_with_a_token_refuses_strangers(router: Router) -> None:
    if not router.decode_node.token:
        pytest.skip("this pair has no token")
    router.metadata = rpc.metadata("another")
    with pytest.raises(aio.AioRpcError) as raised:
        await router.generate(router.generation([5], 1))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_request_whose_time_is_up_is_told_so(router: Router) -> None:
    generation = router.generation(prompt_of(20, seed=10), 5, timeout_ms=150)
    await router.reserve(generation)  # and no prefill node ever sends anything
    finished = await router.wait_for(lambda: router.finished(generation.key))
    assert finished.error_code in ("deadline_exceeded", "transfer_failed")
    assert finished.reason == types_pb2.FINISH_REASON_ERROR


async def test_a_router_that_attaches_again_misses_nothing(router: Router) -> None:
    generation = router.generation(prompt_of(20, seed=11), 60)
    await router.lose_stream()
    await router.generate(generation)
    await asyncio.to_thread(wait_until, lambda: router.decode_node.held() == (0, 0))
    router.attach()
    await router.wait_for(lambda: router.finished(generation.key))
    assert sorted(router.tokens(generation.key)) == list(range(60))


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_a_router_gone_for_good_loses_its_requests(router: Router) -> None:
    other = Router(router.prefill_node, router.decode_node, "short-lived")
    await other.wait_for(lambda: other.batches)
    reserved = other.generation(prompt_of(50, seed=12), 5)
    await other.reserve(reserved)
    await other.close()
    assert await asyncio.to_thread(router.decode_node.held) == (0, 4)
    await asyncio.sleep(4)
    assert await asyncio.to_thread(router.decode_node.held) == (0, 4)
    await asyncio.sleep(1.2)
    await idle(router.decode_node)


async def attempt_that_fails(router: Router, generation: types_pb2.Generation) -> types_pb2.Finished:
    """Through a prefill node with a fault; the decode node's last word."""
    run = router.begin_leg()
    await run.write(prefill_pb2.RunMessage(generation=generation))
    await run.write(prefill_pb2.RunMessage(grant=await router.reserve(generation)))
    assert (await run.read()).HasField("first_token")
    finished: types_pb2.Finished = await router.wait_for(lambda: router.finished(generation.key))
    with contextlib.suppress(aio.AioRpcError):
        await run.read()
    assert await run.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)
    return finished


@pytest.mark.parametrize("fault", ["crash_before_commit", "corrupt_message:1"])
async def test_a_failed_transfer_is_told_and_costs_no_blocks(
    start: Callable[..., NodeProcess], pair: tuple[NodeProcess, NodeProcess], expected: Any, fault: str
) -> None:
    prefill, decode = pair
    env = {"BATON_KV_FAULTS": fault, "BATON_SERVICE_TOKEN": decode.token}
    faulty = start("prefill", "--transport", decode.transport, **env)
    await asyncio.to_thread(faulty.wait_ready)
    router = Router(faulty, decode, f"router-{fault}")
    prompt = prompt_of(150, seed=13)
    finished = await attempt_that_fails(router, router.generation(prompt, 5))
    assert (finished.reason, finished.error_code) == (types_pb2.FINISH_REASON_ERROR, "transfer_failed")
    await idle(decode)
    retrying = Router(prefill, decode, f"retrying-{fault}")
    assert await retrying.run_apart(retrying.generation(prompt, 5)) == expected(prompt, 5)
    await router.close()
    await retrying.close()
    faulty.end()


@pytest.fixture
def fresh(start: Callable[..., NodeProcess]) -> tuple[NodeProcess, NodeProcess]:
    prefill, decode = start("prefill", "--transport", "tcp"), start("decode", "--transport", "tcp")
    return prefill.wait_ready(), decode.wait_ready()


async def test_sigterm_drains(fresh: tuple[NodeProcess, NodeProcess], fleet_redis: str, expected: Any) -> None:
    prefill, decode = fresh
    before = set(os.listdir("/dev/shm"))
    redis = redis_client.connect(fleet_redis, timeout_s=2)
    router = Router(prefill, decode, "router")
    prompt = prompt_of(100, seed=14)
    running = router.generation(prompt, 350)
    await router.generate(running)
    half_way = router.generation(prompt[:50], 5)
    await router.reserve(half_way)
    for node in fresh:
        node.process.send_signal(signal.SIGTERM)
    await router.wait_for(lambda: any(b.load.state == types_pb2.NODE_STATE_DRAINING for b in router.batches))
    async with asyncio.timeout(1):
        while (decode.id, "draining") not in {(r.node_id, r.state) for r in await registry.list_nodes(redis)}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(aio.AioRpcError) as raised:
        await router.generate(router.generation(prompt, 5))
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await asyncio.to_thread(prefill.process.wait, _WAIT_S) == 0  # it had nothing to do
    await router.cancel(half_way)
    finished = await router.wait_for(lambda: router.finished(running.key))
    assert finished.reason == types_pb2.FINISH_REASON_LENGTH
    assert [token for _, token in sorted(router.tokens(running.key).items())][:20] == expected(prompt, 20)
    assert await asyncio.to_thread(decode.process.wait, _WAIT_S) == 0
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
    for flags in (["--model", str(tmp_path)], ["--model", str(tmp_path), "--redis-url", "redis://127.0.0.1:1/0"]):
        command = [sys.executable, "-m", "decode_node", "--redis-url", redis_url, *flags]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)
        assert ended.returncode == 1
        assert ended.stderr.startswith("decode_node: error: ")
        assert ended.stderr.count("\n") == 1


def ucx_of(node: NodeProcess) -> psutil.Process:
    (found,) = [c for c in psutil.Process(node.process.pid).children() if "kv_transfer.ucx_child" in c.cmdline()]
    return found


class Stream:
    """Requests on the decode node, one after the other; every token is looked at."""

    def __init__(self, router: Router, expected: list[int], prompt: list[int]) -> None:
        self.num_tokens, self.longest_gap_s, self._over = 0, 0.0, False
        self.task = asyncio.create_task(self._run(router, expected, prompt))

    async def _run(self, router: Router, expected: list[int], prompt: list[int]) -> None:
        while not self._over:
            generation = router.generation(prompt, len(expected))
            await router.generate(generation)
            tokens: dict[int, int] = {}
            while len(tokens) < len(expected):
                since_s = time.monotonic()
                more = await router.wait_for(partial(self._more, router, generation.key, len(tokens)))
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - since_s)
                self.num_tokens += len(more) - len(tokens)
                tokens = more
            assert [tokens[index] for index in range(len(expected))] == expected

    def _more(self, router: Router, key: int, num_seen: int) -> dict[int, int] | None:
        tokens = router.tokens(key)
        return tokens if len(tokens) > num_seen else None

    async def end(self) -> None:
        self._over = True
        await self.task


@pytest.mark.parametrize("end", [signal.SIGSEGV, signal.SIGSTOP])
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_crash_within_ucx_costs_a_transfer_and_no_token(router: Router, role: str, end: signal.Signals) -> None:
    """Of the interrupted request there is another attempt; what the decode node runs meanwhile notices nothing."""
    if router.decode_node.transport != "ucx":
        pytest.skip("this pair has no UCX process")
    node = router.decode_node if role == "decode" else router.prefill_node
    await router.run_apart(router.generation(prompt_of(40, seed=40), 3))  # both are connected
    victim, restarts = ucx_of(node), node.metric("baton_kv_transport_restarts_total")
    beside, prompt = prompt_of(30, seed=41), prompt_of(300, seed=42 + int(end))
    undisturbed = await router.run_together(router.generation(beside, 200))
    stream = Stream(router, undisturbed, beside)
    os.kill(victim.pid, signal.SIGSTOP)  # so that the transfer is under way when it dies
    run = router.begin_leg()
    generation = router.generation(prompt, 8)
    await run.write(prefill_pb2.RunMessage(generation=generation))
    await run.write(prefill_pb2.RunMessage(grant=await router.reserve(generation)))
    if end is not signal.SIGSTOP:
        os.kill(victim.pid, end)
        os.kill(victim.pid, signal.SIGCONT)
    with contextlib.suppress(aio.AioRpcError):
        while await run.read() is not aio.EOF:  # the first token, if it comes before the end
            pass
    # OK where nothing was under way yet: the transfer has waited for the new process
    assert await run.code() in (grpc.StatusCode.OK, grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)
    await router.cancel(generation)
    num_tokens = stream.num_tokens
    again = (router.generation(prompt, 8, key=generation.key + 10_000 * i, attempt=i) for i in range(1, 100))
    assert await router.run_apart_at_last(again) == await router.run_together(router.generation(prompt, 8))
    await router.wait_for(lambda: stream.num_tokens > num_tokens)
    await stream.end()
    assert stream.longest_gap_s < 2
    assert node.metric("baton_kv_transport_restarts_total") > restarts
    assert (node.process.poll(), ucx_of(node).pid != victim.pid) == (None, True)
