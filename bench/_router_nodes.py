# ruff: noqa: N802 - the names of RPCs
"""A prefill and a decode node that compute nothing, over real gRPC: what is behind Baton's router in `bench router`.

    python -m bench._router_nodes REDIS_URL

Every STEP_S the decode node gives each of its requests one token, in one message per router, as a real one does.
"""

import asyncio
import itertools
import sys
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from baton import redis_client, rpc
from baton.registry import NodeRecord, Registration, Role
from baton.request import FinishReason
from baton.v1 import (
    decode_pb2,
    decode_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    prefill_pb2,
    prefill_pb2_grpc,
    transfer_pb2,
    types_pb2,
)

STEP_S = 0.01
BEAT_S = 0.5
TOKEN = 1
_LIMIT = int(FinishReason.LENGTH.value)


class Node:
    """Both roles' services. A prefill node commits to the decode node by a call in this process."""

    def __init__(self, role: Role, decode: "Node | None") -> None:
        self.role, self.decode = role, decode or self
        self.server = rpc.server()
        self._requests: dict[str, dict[int, list[int]]] = {}  # router -> key -> [attempt, next index, limit]
        self._finished: dict[str, deque[types_pb2.Finished]] = {}
        self._started: dict[str, deque[types_pb2.Started]] = {}
        self._granted: dict[int, types_pb2.Generation] = {}
        self._ids = itertools.count(1)
        node_pb2_grpc.add_NodeServicer_to_server(self, self.server)  # type: ignore[arg-type]
        decode_pb2_grpc.add_DecodeServicer_to_server(self, self.server)  # type: ignore[arg-type]
        prefill_pb2_grpc.add_PrefillServicer_to_server(self, self.server)  # type: ignore[arg-type]

    async def start(self, redis: Any) -> None:
        """Serve, and be found."""
        port = rpc.open_port(self.server, "127.0.0.1:0")
        await self.server.start()
        record = NodeRecord(
            node_id=self.role, role=self.role, epoch=1, state="ready", address=f"127.0.0.1:{port}",
            model_fingerprint="mock", block_size=16, max_model_len=65536,
        )  # fmt: skip
        await Registration(redis, record).start()

    async def Attach(self, request: node_pb2.AttachRequest, context: Any) -> AsyncIterator[node_pb2.StepBatch]:
        router = request.router_id
        requests = self._requests.setdefault(router, {})
        load = types_pb2.Load(state=types_pb2.NODE_STATE_READY, num_blocks=10**6, num_free_blocks=10**6)
        loop = asyncio.get_running_loop()
        next_beat = loop.time()
        for sequence in itertools.count():
            batch = node_pb2.StepBatch(epoch=1, sequence=sequence)
            while True:
                self._step(router, requests, batch)
                if loop.time() >= next_beat:
                    next_beat = loop.time() + BEAT_S
                    batch.load.CopyFrom(load)
                    break
                if batch.keys or batch.started:
                    break
                await asyncio.sleep(STEP_S)
            yield batch
            await asyncio.sleep(STEP_S)

    def _step(self, router: str, requests: dict[int, list[int]], batch: node_pb2.StepBatch) -> None:
        batch.started.extend(self._started.pop(router, ()))
        for key, row in list(requests.items()):
            attempt, index, limit = row
            batch.keys.append(key)
            batch.attempts.append(attempt)
            batch.indices.append(index)
            batch.token_ids.append(TOKEN)
            row[1] += 1
            if index + 1 >= limit:
                del requests[key]
                batch.finished.add(key=key, attempt=attempt, num_output_tokens=index + 1, reason=_LIMIT)

    async def Reserve(self, request: decode_pb2.ReserveRequest, context: Any) -> transfer_pb2.Grant:
        grant_id = next(self._ids)
        self._granted[grant_id] = request.generation
        return transfer_pb2.Grant(grant_id=grant_id, decode_node_id=self.role, decode_epoch=1)

    async def Generate(self, request: types_pb2.Generation, context: Any) -> decode_pb2.GenerateReply:
        self.begin(request)
        return decode_pb2.GenerateReply()

    async def Cancel(self, request: decode_pb2.CancelRequest, context: Any) -> decode_pb2.CancelReply:
        for key in request.keys:
            self._requests.get(request.router_id, {}).pop(key, None)
        return decode_pb2.CancelReply()

    async def Run(self, requests: Any, context: Any) -> AsyncIterator[prefill_pb2.RunEvent]:
        generation = (await anext(requests)).generation
        only = generation.sampling.max_tokens == 1
        reason = FinishReason.LENGTH if only else FinishReason.UNFINISHED
        index = len(generation.token_ids) - generation.num_prompt_tokens
        first = prefill_pb2.FirstToken(token_id=TOKEN, index=index, finish_reason=reason.value)
        yield prefill_pb2.RunEvent(first_token=first)
        if only:
            return
        grant = (await anext(requests)).grant
        self.decode.begin(self.decode._granted.pop(grant.grant_id), drawn=1)
        yield prefill_pb2.RunEvent(transferred=prefill_pb2.Transferred())

    def begin(self, generation: types_pb2.Generation, drawn: int = 0) -> None:
        """The request joins the batch; `drawn` tokens of it are there already."""
        index = len(generation.token_ids) - generation.num_prompt_tokens + drawn
        row = [generation.attempt, index, generation.sampling.max_tokens]
        self._requests.setdefault(generation.router_id, {})[generation.key] = row
        started = types_pb2.Started(key=generation.key, attempt=generation.attempt)
        self._started.setdefault(generation.router_id, deque()).append(started)


async def serve(redis_url: str) -> None:
    """Until the process is told to end."""
    redis = redis_client.connect(redis_url, timeout_s=2.0)
    decode = Node("decode", None)
    for node in (decode, Node("prefill", decode)):
        await node.start(redis)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
