# ruff: noqa: N802 - the names of RPCs
"""A prefill and a decode node that compute nothing, over real gRPC: the backend of Baton's router in `bench router`.

    python -m bench._router.nodes REDIS_URL

Every STEP_S the decode node sends one token for each of its requests, in one message per router, as a real one does.
Everything else is answered in the next turn of the event loop.
"""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from baton.net import redis_client, rpc
from baton.net.registry import NodeRecord, Registration, Role
from baton.request import FinishReason
from baton.v1 import node_pb2, node_pb2_grpc, transfer_pb2, types_pb2

STEP_S = 0.01
BEAT_S = 0.5
TOKEN = 1
_ID_BYTES = 4
_LIMIT = int(FinishReason.LENGTH.value)


class Node:
    """A node of either role. A prefill node commits to the decode node by a call within this process."""

    def __init__(self, role: Role, decode: "Node | None") -> None:
        self.role, self.decode = role, decode or self
        self.server = rpc.server()
        self._sessions: dict[str, Session] = {}
        self._ids = itertools.count(1)
        self._granted: dict[int, tuple[Session, types_pb2.Generation]] = {}
        node_pb2_grpc.add_NodeServicer_to_server(self, self.server)  # type: ignore[arg-type]

    async def start(self, redis: Any) -> None:
        """Start serving, and register the node."""
        port = rpc.open_port(self.server, "127.0.0.1:0")
        await self.server.start()
        record = NodeRecord(
            node_id=self.role, role=self.role, epoch=1, state="ready", address=f"127.0.0.1:{port}",
            model_fingerprint="mock", block_size=16, max_model_len=65536,
        )  # fmt: skip
        await Registration(redis, record).start()

    async def Attach(self, requests: AsyncIterator[node_pb2.RouterBatch], context: Any) -> None:
        router_id = (await anext(requests)).router_id
        session = self._sessions[router_id] = Session()
        beside = [asyncio.create_task(session.step()), asyncio.create_task(self._read(session, requests))]
        try:
            for sequence in itertools.count():
                await session.wake.wait()
                session.wake.clear()
                batch, session.batch = session.batch, node_pb2.StepBatch()
                batch.epoch, batch.sequence, batch.num_heard = 1, sequence, session.num_heard
                await context.write(batch)
        finally:
            for task in beside:
                task.cancel()

    async def _read(self, session: "Session", requests: AsyncIterator[node_pb2.RouterBatch]) -> None:
        async for batch in requests:
            session.num_heard += 1
            for key in batch.cancelled_keys:
                session.requests.pop(key, None)
            for start in batch.starts:
                self._begin(session, start)
            for granted in batch.grants:
                self._ship(session, granted)
            session.wake.set()

    def _begin(self, session: "Session", start: node_pb2.Start) -> None:
        generation = start.generation
        if self.role == "prefill":
            session.batch.first_tokens.append(_first_token(generation))
            return
        grant = None
        if start.prefill_node_id:
            grant = transfer_pb2.Grant(grant_id=next(self._ids), decode_node_id=self.role, decode_epoch=1)
            self._granted[grant.grant_id] = session, generation
        else:
            session.begin(generation)
        session.batch.granted.add(key=generation.key, attempt=generation.attempt, grant=grant)

    def _ship(self, session: "Session", granted: node_pb2.Granted) -> None:
        there, generation = self.decode._granted.pop(granted.grant.grant_id)
        there.begin(generation, drawn=1)
        session.batch.transferred.add(key=granted.key, attempt=granted.attempt)


class Session:
    """The state of one attached router."""

    def __init__(self) -> None:
        self.batch = node_pb2.StepBatch()
        self.wake = asyncio.Event()
        self.num_heard = 1
        self.requests: dict[int, list[int]] = {}  # key -> [attempt, next index, limit]

    def begin(self, generation: types_pb2.Generation, drawn: int = 0) -> None:
        """Add the request to the batch; `drawn` of its tokens have been sent already."""
        index = _num_output(generation) + drawn
        self.requests[generation.key] = [generation.attempt, index, generation.sampling.max_tokens]
        self.batch.started.add(key=generation.key, attempt=generation.attempt)

    async def step(self) -> None:
        """Send tokens, forever."""
        load = types_pb2.Load(state=types_pb2.NODE_STATE_READY, num_blocks=10**6, num_free_blocks=10**6)
        loop = asyncio.get_running_loop()
        next_beat = loop.time()
        while True:
            for key, row in list(self.requests.items()):
                self._give_token(key, row)
            if loop.time() >= next_beat:
                next_beat = loop.time() + BEAT_S
                self.batch.load.CopyFrom(load)
            if self.batch.ByteSize():
                self.wake.set()
            await asyncio.sleep(STEP_S)

    def _give_token(self, key: int, row: list[int]) -> None:
        (attempt, index, limit), batch = row, self.batch
        batch.keys.append(key)
        batch.attempts.append(attempt)
        batch.indices.append(index)
        batch.token_ids.append(TOKEN)
        row[1] += 1
        if index + 1 >= limit:
            del self.requests[key]
            batch.finished.add(key=key, attempt=attempt, num_output_tokens=index + 1, reason=_LIMIT)


def _num_output(generation: types_pb2.Generation) -> int:
    return len(generation.token_ids) // _ID_BYTES - generation.num_prompt_tokens


def _first_token(generation: types_pb2.Generation) -> types_pb2.FirstToken:
    only = generation.sampling.max_tokens == 1
    return types_pb2.FirstToken(
        key=generation.key,
        attempt=generation.attempt,
        token_id=TOKEN,
        index=_num_output(generation),
        finish_reason=types_pb2.FINISH_REASON_LENGTH if only else types_pb2.FINISH_REASON_UNSPECIFIED,
    )


async def serve(redis_url: str) -> None:
    """Serve until the process is told to end."""
    redis = redis_client.connect(redis_url, timeout_s=2.0)
    decode = Node("decode", None)
    for node in (decode, Node("prefill", decode)):
        await node.start(redis)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
