# ruff: noqa: N802 - the names of RPCs
"""A fleet of real gRPC servers that compute nothing but follow the protocol, and can be told to break it."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from baton import redis_client, rpc, rpc_errors
from baton.errors import BatonError, NodeUnavailable
from baton.registry import NodeRecord, Registration
from baton.request import FinishReason, SamplingParams
from baton.v1 import (
    decode_pb2,
    decode_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    prefill_pb2,
    prefill_pb2_grpc,
    prompt_pb2,
    prompt_pb2_grpc,
    transfer_pb2,
    types_pb2,
)
from router.dispatch import DispatchConfig, Dispatcher
from router.job import Job

MODEL = "cafe"
BLOCK = 4
BEAT_S = 0.1
EOS = 999


def next_token(token_ids: list[int]) -> int:
    """The model: any prefix decides what comes next."""
    return (sum(i * t for i, t in enumerate(token_ids, 1)) * 31 + len(token_ids)) % 997


def output_of(prompt: list[int], num_tokens: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(next_token(token_ids))
    return token_ids[len(prompt) :]


class Node:
    """Either role. Attributes that tests set are all read at the moment they matter."""

    def __init__(self, fleet: "Fleet", role: str, node_id: str, epoch: int, token: str) -> None:
        self.fleet, self.role, self.node_id, self.epoch = fleet, role, node_id, epoch
        self.server = rpc.server(token)
        node_pb2_grpc.add_NodeServicer_to_server(self, self.server)
        decode_pb2_grpc.add_DecodeServicer_to_server(self, self.server)
        prefill_pb2_grpc.add_PrefillServicer_to_server(self, self.server)
        prompt_pb2_grpc.add_PromptServicer_to_server(self, self.server)
        self.load = types_pb2.Load(state=types_pb2.NODE_STATE_READY, num_blocks=1000, num_free_blocks=1000)
        self.streams: dict[str, asyncio.Queue[node_pb2.StepBatch]] = {}
        self.tampers: list[Callable[[node_pb2.StepBatch], list[node_pb2.StepBatch]]] = []
        self.pause_at = 10**9  # output position at which decoding stops until `go`
        self.go = asyncio.Event()
        self.compute = asyncio.Event()  # prefill waits for it
        self.compute.set()
        self.first_token_held: asyncio.Event | None = None  # until then it comes after the transfer, not before
        self.refusals: list[BatonError] = []  # of the next calls
        self.transfer_errors: list[BatonError] = []
        self.finish_error = ""
        self.first_reason = FinishReason.UNFINISHED
        self.warm = asyncio.Event()  # cleared: frozen
        self.warm.set()
        self.reserved: dict[int, types_pb2.Generation] = {}
        self.tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self.calls: list[tuple[str, types_pb2.Generation]] = []
        self.cancelled: list[tuple[int, int]] = []
        self.num_cancels_to_lose = 0
        self.num_broken_runs = 0
        self.prompt_stops_at = 10**9  # position after which a scored prompt says nothing more, until `go`
        self.lost_positions: set[int] = set()
        self.loads_told: list[int] = []
        self._ids = itertools.count(1)

    async def start(self, port: int = 0) -> None:
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()
        record = NodeRecord(
            node_id=self.node_id,
            role=self.role,
            epoch=self.epoch,
            state="ready",
            address=f"127.0.0.1:{self.port}",
            model_fingerprint=MODEL,
            block_size=BLOCK,
            max_model_len=4096,
        )
        self.registration = Registration(self.fleet.redis, record)
        await self.registration.start()

    async def die(self) -> None:
        """As SIGKILL does it: the registration lingers, connections break."""
        self.registration._task.cancel()
        for task in self.tasks.values():
            task.cancel()
        await self.server.stop(None)

    async def stop(self) -> None:
        await self.registration.stop()
        for task in self.tasks.values():
            task.cancel()
        await self.server.stop(None)

    def seen(self, kind: str) -> list[types_pb2.Generation]:
        return [generation for name, generation in self.calls if name == kind]

    # Node

    async def Attach(self, request: Any, context: Any) -> AsyncIterator[node_pb2.StepBatch]:
        queue = self.streams[request.router_id] = asyncio.Queue()
        sequence = 0
        while True:
            try:
                batch = await asyncio.wait_for(queue.get(), BEAT_S)
            except TimeoutError:
                batch = node_pb2.StepBatch(load=self.load)
            if sequence == 0 or not batch.HasField("load"):
                batch.load.CopyFrom(self.load)
            self.loads_told.append(batch.load.num_free_blocks)
            await self.warm.wait()
            batch.epoch, batch.sequence = self.epoch, sequence
            sequence += 1
            batches = [batch]
            if (batch.keys or batch.finished) and self.tampers:
                batches = self.tampers.pop(0)(batch)
            for each in batches:
                yield each

    # Decode

    async def Reserve(self, request: decode_pb2.ReserveRequest, context: Any) -> transfer_pb2.Grant:
        self.calls.append(("reserve", request.generation))
        await self._refuse(context)
        grant_id = next(self._ids)
        self.reserved[grant_id] = request.generation
        return transfer_pb2.Grant(grant_id=grant_id, decode_node_id=self.node_id, decode_epoch=self.epoch)

    async def Generate(self, request: types_pb2.Generation, context: Any) -> decode_pb2.GenerateReply:
        self.calls.append(("generate", request))
        await self._refuse(context)
        self._begin(request, list(request.token_ids))
        return decode_pb2.GenerateReply()

    async def Cancel(self, request: decode_pb2.CancelRequest, context: Any) -> decode_pb2.CancelReply:
        if self.num_cancels_to_lose:
            self.num_cancels_to_lose -= 1
            await rpc_errors.abort(context, NodeUnavailable("lost"))
        for pair in zip(request.keys, request.attempts, strict=True):
            self.cancelled.append(pair)
            if pair in self.tasks:
                self.tasks.pop(pair).cancel()
        return decode_pb2.CancelReply()

    def commit(self, grant_id: int, first_token: int) -> None:
        generation = self.reserved.pop(grant_id)
        self._begin(generation, [*generation.token_ids, first_token])

    def _begin(self, generation: types_pb2.Generation, token_ids: list[int]) -> None:
        self.tasks[generation.key, generation.attempt] = asyncio.create_task(self._decode(generation, token_ids))

    async def _decode(self, generation: types_pb2.Generation, token_ids: list[int]) -> None:
        queue = self.streams[generation.router_id]
        ids = {"key": generation.key, "attempt": generation.attempt}
        queue.put_nowait(
            node_pb2.StepBatch(
                started=[types_pb2.Started(**ids, num_cached_tokens=3, queue_s=0.1, prefill_s=0.2, first_step_s=0.3)]
            )
        )
        while (index := len(token_ids) - generation.num_prompt_tokens) < generation.sampling.max_tokens:
            if index >= self.pause_at:
                await self.go.wait()
            token = next_token(token_ids)
            token_ids.append(token)
            batch = node_pb2.StepBatch(
                keys=[generation.key], attempts=[generation.attempt], indices=[index], token_ids=[token]
            )
            if generation.sampling.num_logprobs >= 0:
                batch.logprobs.add(**ids, index=index, logprob=-float(index))
            last = index + 1 == generation.sampling.max_tokens
            if last or self.finish_error:
                reason = FinishReason.ERROR if self.finish_error else FinishReason.LENGTH
                batch.finished.add(**ids, num_output_tokens=index + 1, reason=reason, error_code=self.finish_error)
            queue.put_nowait(batch)
            if self.finish_error:
                return
            await asyncio.sleep(0.001)

    # Prefill

    async def Run(self, requests: Any, context: Any) -> AsyncIterator[prefill_pb2.RunEvent]:
        generation = (await anext(requests)).generation
        self.calls.append(("run", generation))
        try:
            await self._refuse(context)
            await self.compute.wait()
            token_ids = list(generation.token_ids)
            index = len(token_ids) - generation.num_prompt_tokens
            reason = self.first_reason or (
                FinishReason.LENGTH if index + 1 == generation.sampling.max_tokens else FinishReason.UNFINISHED
            )
            first = prefill_pb2.FirstToken(
                token_id=EOS if reason is FinishReason.STOP else next_token(token_ids),
                index=index,
                finish_reason=reason,
                num_cached_tokens=2,
                queue_s=0.5,
                prefill_s=0.25,
            )
            if generation.sampling.num_logprobs >= 0:
                first.logprobs.logprob = -float(index)
            if self.first_token_held is None:
                yield prefill_pb2.RunEvent(first_token=first)
            if reason:
                return
            grant = (await anext(requests)).grant
            if self.transfer_errors:
                await rpc_errors.abort(context, self.transfer_errors.pop(0))
            self.fleet.nodes[grant.decode_node_id].commit(grant.grant_id, first.token_id)
            if self.first_token_held is not None:
                await self.first_token_held.wait()
                yield prefill_pb2.RunEvent(first_token=first)
            yield prefill_pb2.RunEvent(transferred=prefill_pb2.Transferred(tail_s=0.125))
        except asyncio.CancelledError:
            self.num_broken_runs += 1
            raise

    # Prompt

    async def Compute(self, request: prompt_pb2.PromptRequest, context: Any) -> AsyncIterator[prompt_pb2.PromptEvent]:
        generation = request.generation
        self.calls.append(("prompt", generation))
        try:
            await self._refuse(context)
            for position in range(1, generation.num_prompt_tokens) if request.scores else ():
                if position > self.prompt_stops_at:
                    await self.go.wait()
                if position not in self.lost_positions:
                    row = prompt_pb2.PromptLogprobs(position=position, logprobs=[-float(position)], ranks=[1])
                    yield prompt_pb2.PromptEvent(logprobs=row)
            computed = prompt_pb2.Computed(num_cached_tokens=1, queue_s=0.5, prefill_s=0.25)
            if request.embeds:
                computed.embedding = bytes(4 * (request.dimensions or 8))
            if generation.sampling.max_tokens:
                last = generation.sampling.max_tokens == 1
                computed.first_token.token_id = next_token(list(generation.token_ids))
                computed.first_token.finish_reason = FinishReason.LENGTH if last else FinishReason.UNFINISHED
            yield prompt_pb2.PromptEvent(computed=computed)
        except asyncio.CancelledError:
            self.num_broken_runs += 1
            raise

    async def _refuse(self, context: Any) -> None:
        if self.refusals:
            await rpc_errors.abort(context, self.refusals.pop(0))


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.num_ends = 0
        self.prompts: list[Any] = []

    def on_prompt(self, result: Any) -> None:
        assert not self.tokens
        self.prompts.append(result)

    def on_tokens(self, tokens: list[int], logprobs: Any) -> None:
        assert not self.num_ends
        self.tokens += tokens
        self.logprobs += [row.logprob for row in logprobs or ()]

    def on_finish(self, reason: FinishReason, usage: Any) -> None:
        self._end((reason, usage))

    def on_error(self, error: BatonError) -> None:
        self._end(error)

    def _end(self, outcome: Any) -> None:
        self.num_ends += 1
        self.ended.set_result(outcome)

    async def outcome(self, timeout_s: float = 15.0) -> Any:
        return await asyncio.wait_for(asyncio.shield(self.ended), timeout_s)

    async def finished(self) -> Any:
        outcome = await self.outcome()
        assert not isinstance(outcome, BatonError), repr(outcome)
        return outcome[1]


class Fleet:
    def __init__(self, redis_url: str) -> None:
        self.url = redis_url
        self.redis = redis_client.connect(redis_url, timeout_s=2.0)
        self.nodes: dict[str, Node] = {}
        self.dispatcher: Dispatcher = None  # type: ignore[assignment]
        self.token = ""
        self._epochs = itertools.count(1)

    async def add(self, role: str, node_id: str = "", port: int = 0, **load: Any) -> Node:
        node_id = node_id or f"{role}-{len(self.nodes)}"
        node = Node(self, role, node_id, next(self._epochs), self.token)
        for name, value in load.items():
            setattr(node.load, name, value)
        self.nodes[node_id] = node
        await node.start(port)
        return node

    async def start(self, *, num_alive: int | None = None, **config: Any) -> Dispatcher:
        self.dispatcher = Dispatcher(
            self.url, endpoint="127.0.0.1:1", service_token=self.token, config=DispatchConfig(**config)
        )
        await self.dispatcher.start()
        await self.alive(len(self.nodes) if num_alive is None else num_alive)
        return self.dispatcher

    async def alive(self, num_nodes: int) -> None:
        await until(lambda: sum(node.state == "ready" for node in self.dispatcher.nodes()) == num_nodes)

    def submit(
        self, prompt: list[int], max_tokens: int = 12, *, timeout_s: float = 20.0, work: Any = None, **sampling: Any
    ) -> Any:
        """(handle, sink)."""
        sink = Recorder()
        job = Job(
            request_id="request",
            token_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, **sampling),
            prompt_work=work,
            deadline_s=time.monotonic() + timeout_s,
        )
        return self.dispatcher.submit(job, sink), sink

    async def close(self) -> None:
        async with asyncio.timeout(10):
            if self.dispatcher is not None:
                await self.dispatcher.stop()
            for node in self.nodes.values():
                await node.stop()
            await self.redis.aclose()


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.005)


@pytest.fixture(name="until")
def _until() -> Any:
    return until


@pytest.fixture(name="output_of")
def _output_of() -> Any:
    return output_of


@pytest.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    fleet = Fleet(redis_url)
    yield fleet
    await fleet.close()


@pytest.fixture
async def fragile_fleet(redis_server: Any) -> AsyncIterator[Fleet]:
    """A fleet whose Redis may be killed."""
    fleet = Fleet(redis_server.url)
    yield fleet
    await fleet.close()
