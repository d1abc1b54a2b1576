# ruff: noqa: N802 - the names of RPCs
"""Nodes that are real gRPC servers without an engine: they follow the protocol, or break it as a test asks."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

from baton.errors import BatonError
from baton.net import rpc
from baton.net.registry import NodeRecord, Registration
from baton.request import FinishReason, Generation
from baton.v1 import node_pb2, node_pb2_grpc, prompt_pb2_grpc, transfer_pb2, types_pb2
from tests.integration.dispatch.model import next_token
from tests.integration.dispatch.prompts import Prompts

MODEL = "cafe"
BLOCK = 4
BEAT_S = 0.1
EOS = 999

Batch = node_pb2.StepBatch


class Node:
    """Either role. Attributes that tests set are all read at the moment they matter."""

    def __init__(self, fleet: Any, role: str, node_id: str, epoch: int, token: str) -> None:
        self.fleet, self.role, self.node_id, self.epoch = fleet, role, node_id, epoch
        self.server = rpc.server(token)
        node_pb2_grpc.add_NodeServicer_to_server(self, self.server)
        prompt_pb2_grpc.add_PromptServicer_to_server(Prompts(self), self.server)
        self.load = types_pb2.Load(state=types_pb2.NODE_STATE_READY, num_blocks=1000, num_free_blocks=1000)
        self.streams: dict[str, asyncio.Queue[Batch]] = {}
        self.tampers: list[Callable[[Batch], list[Batch]]] = []
        self.pause_at = 10**9  # output position at which decoding stops until `go`
        self.go = asyncio.Event()
        self.compute = asyncio.Event()  # prefill waits for it
        self.compute.set()
        self.ship = asyncio.Event()  # what it has computed waits for it, once there is a grant
        self.ship.set()
        self.first_token_held: asyncio.Event | None = None  # until then it comes after the transfer, not before
        self.refusals: list[BatonError] = []  # of the next starts
        self.transfer_errors: list[BatonError] = []
        self.finish_error = ""
        self.first_reason = FinishReason.UNFINISHED
        self.warm = asyncio.Event()  # cleared: frozen
        self.warm.set()
        self.legs: dict[tuple[int, int], asyncio.Task[None] | None] = {}  # None: it has blocks, and waits for a commit
        self.reserved: dict[int, Generation] = {}
        self.grants: dict[tuple[int, int], asyncio.Future[transfer_pb2.Grant]] = {}
        self.calls: list[tuple[str, Generation]] = []
        self.cancelled: list[tuple[int, int]] = []
        self.batches: list[node_pb2.RouterBatch] = []
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
        """Die as by SIGKILL: the registration stays, connections break."""
        self.registration._task.cancel()
        self._end_legs()
        await self.server.stop(None)

    async def stop(self) -> None:
        await self.registration.stop()
        self._end_legs()
        await self.server.stop(None)

    def seen(self, kind: str) -> list[Generation]:
        return [generation for name, generation in self.calls if name == kind]

    # the stream

    async def Attach(self, requests: Any, context: Any) -> AsyncIterator[Batch]:
        router_id = (await anext(requests)).router_id
        for key, attempt in list(self.legs):
            self._cancel(key, attempt)  # a stream begins with nothing
        queue = self.streams[router_id] = asyncio.Queue()
        reading = asyncio.create_task(self._read(router_id, requests))
        sequence, self.num_heard = 0, 1
        try:
            while True:
                try:
                    batch = await asyncio.wait_for(queue.get(), BEAT_S)
                except TimeoutError:
                    batch = Batch(load=self.load)
                if sequence == 0 or not batch.HasField("load"):
                    batch.load.CopyFrom(self.load)
                self.loads_told.append(batch.load.num_free_blocks)
                await self.warm.wait()
                batch.epoch, batch.sequence, batch.num_heard = self.epoch, sequence, self.num_heard
                sequence += 1
                batches = [batch]
                if (batch.keys or batch.finished) and self.tampers:
                    batches = self.tampers.pop(0)(batch)
                for each in batches:
                    yield each
        finally:
            reading.cancel()

    async def _read(self, router_id: str, requests: Any) -> None:
        async for batch in requests:
            await self.warm.wait()
            self.batches.append(batch)
            self.num_heard += 1
            assert (batch.epoch, batch.sequence > 0) == (self.epoch, True)
            for key, attempt in zip(batch.cancelled_keys, batch.cancelled_attempts, strict=True):
                self._cancel(key, attempt)
            for start in batch.starts:
                self._start(Generation.from_proto(start.generation, router_id), start.prefill_node_id)
            for granted in batch.grants:
                if (waiting := self.grants.get((granted.key, granted.attempt))) is not None:
                    waiting.set_result(granted.grant)

    def say(self, generation: Generation, **words: Any) -> None:
        if (queue := self.streams.get(generation.router_id)) is not None:
            queue.put_nowait(Batch(**words))

    def _start(self, generation: Generation, prefill_node_id: str) -> None:
        kind = "run" if self.role == "prefill" else "reserve" if prefill_node_id else "generate"
        self.calls.append((kind, generation))
        ids = key, attempt = generation.key, generation.attempt
        if self.refusals:
            self._fail(generation, self.refusals.pop(0))
        elif kind == "run":
            self.grants[ids] = asyncio.get_running_loop().create_future()
            self.legs[ids] = asyncio.create_task(self._run(generation))
        elif kind == "reserve":
            grant = transfer_pb2.Grant(grant_id=next(self._ids), decode_node_id=self.node_id, decode_epoch=self.epoch)
            self.reserved[grant.grant_id] = generation
            self.legs[ids] = None
            self.say(generation, granted=[node_pb2.Granted(key=key, attempt=attempt, grant=grant)])
        else:
            self.say(generation, granted=[node_pb2.Granted(key=key, attempt=attempt)])
            self._begin(generation, list(generation.token_ids))

    def _fail(self, generation: Generation, error: BatonError) -> None:
        ids = {"key": generation.key, "attempt": generation.attempt}
        said = {"code": error.code, "message": error.message, "param": error.param or ""}
        self.say(generation, failed=[node_pb2.Failed(**ids, **said)])

    def _cancel(self, key: int, attempt: int) -> None:
        self.cancelled.append((key, attempt))
        task = self.legs.pop((key, attempt), None)
        if task is not None:
            task.cancel()

    def _end_legs(self) -> None:
        for task in self.legs.values():
            if task is not None:
                task.cancel()

    # decode

    def commit(self, grant_id: int, first_token: int) -> None:
        generation = self.reserved.pop(grant_id)
        self._begin(generation, [*generation.token_ids, first_token])

    def _begin(self, generation: Generation, token_ids: list[int]) -> None:
        self.legs[generation.key, generation.attempt] = asyncio.create_task(self._decode(generation, token_ids))

    async def _decode(self, generation: Generation, token_ids: list[int]) -> None:
        ids = {"key": generation.key, "attempt": generation.attempt}
        times = {"num_cached_tokens": 3, "queue_s": 0.1, "prefill_s": 0.2, "first_step_s": 0.3}
        self.say(generation, started=[types_pb2.Started(**ids, **times)])
        while (index := len(token_ids) - generation.num_prompt_tokens) < generation.sampling.max_tokens:
            if index >= self.pause_at:
                await self.go.wait()
            token = next_token(token_ids)
            token_ids.append(token)
            batch = Batch(keys=[generation.key], attempts=[generation.attempt], indices=[index], token_ids=[token])
            if generation.sampling.num_logprobs >= 0:
                batch.logprobs.add(**ids, index=index, logprob=-float(index))
            last = index + 1 == generation.sampling.max_tokens
            if last or self.finish_error:
                reason = FinishReason.ERROR if self.finish_error else FinishReason.LENGTH
                batch.finished.add(**ids, num_output_tokens=index + 1, reason=reason, error_code=self.finish_error)
                del self.legs[generation.key, generation.attempt]
            self.streams[generation.router_id].put_nowait(batch)
            if self.finish_error:
                return
            await asyncio.sleep(0.001)

    # prefill

    async def _run(self, generation: Generation) -> None:
        ids = {"key": generation.key, "attempt": generation.attempt}
        try:
            await self.compute.wait()
            first = self._first_token(generation, ids)
            if self.first_token_held is None:
                self.say(generation, first_tokens=[first])
            if not first.finish_reason:
                grant = await self.grants[generation.key, generation.attempt]
                await self.ship.wait()
                if self.transfer_errors:
                    self._fail(generation, self.transfer_errors.pop(0))
                else:
                    self.fleet.nodes[grant.decode_node_id].commit(grant.grant_id, first.token_id)
                    if self.first_token_held is not None:
                        await self.first_token_held.wait()
                        self.say(generation, first_tokens=[first])
                    self.say(generation, transferred=[node_pb2.Transferred(**ids, tail_s=0.125)])
            self.legs.pop((generation.key, generation.attempt), None)
        except asyncio.CancelledError:
            self.num_broken_runs += 1
            raise

    def _first_token(self, generation: Generation, ids: dict[str, int]) -> types_pb2.FirstToken:
        token_ids, index = list(generation.token_ids), generation.num_output_tokens
        is_last = index + 1 == generation.sampling.max_tokens
        reason = self.first_reason or (FinishReason.LENGTH if is_last else FinishReason.UNFINISHED)
        first = types_pb2.FirstToken(
            **ids,
            token_id=EOS if reason is FinishReason.STOP else next_token(token_ids),
            index=index,
            finish_reason=reason,
            num_cached_tokens=2,
            queue_s=0.5,
            prefill_s=0.25,
        )
        if generation.sampling.num_logprobs >= 0:
            first.logprobs.logprob = -float(index)
        return first
