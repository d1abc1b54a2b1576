"""A router's end of the stream to one node, for tests: says what it is told to, and remembers what comes."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Any

from grpc import aio

from baton.net import rpc
from baton.v1 import node_pb2, node_pb2_grpc, transfer_pb2, types_pb2

WAIT_S = 15
WORDS = ("granted", "first_tokens", "transferred", "started", "finished", "failed")


class LegFailed(Exception):
    """The node's Failed, or the end of its stream."""

    def __init__(self, failed: node_pb2.Failed | None) -> None:
        self.code = "node_unavailable" if failed is None else failed.code
        super().__init__(f"{self.code}: {failed.message if failed else 'the stream has ended'}")


class NodeStream:
    """`batches` holds all that has come, of all streams one after the other."""

    def __init__(self, address: str, epoch: int, router_id: str, token: str = "") -> None:
        self.router_id, self.epoch = router_id, epoch
        self.channel = rpc.channel(address)
        self.metadata = rpc.metadata(token)
        self.batches: list[node_pb2.StepBatch] = []
        self._words: dict[tuple[str, int, int], Any] = {}  # the first ones, by kind, key and attempt
        self._tokens: dict[tuple[int, int], dict[int, int]] = {}  # by key and attempt
        self.moved = asyncio.Event()
        self.writing = asyncio.Lock()

    async def attach(self) -> "NodeStream":
        self.call = node_pb2_grpc.NodeStub(self.channel).Attach(metadata=self.metadata, wait_for_ready=True)
        self.reader = asyncio.create_task(self._read())
        self.sequences = itertools.count()
        await self.say(router_id=self.router_id)
        return self

    async def say(self, **words: Any) -> None:
        async with asyncio.timeout(WAIT_S), self.writing:  # gRPC takes one message of a stream at a time
            await self.call.write(node_pb2.RouterBatch(epoch=self.epoch, sequence=next(self.sequences), **words))

    async def start(self, generation: types_pb2.Generation, prefill: tuple[str, int] = ("", 0)) -> None:
        start = node_pb2.Start(generation=generation, prefill_node_id=prefill[0], prefill_epoch=prefill[1])
        await self.say(starts=[start])

    async def grant(self, generation: types_pb2.Generation, grant: transfer_pb2.Grant) -> None:
        await self.say(grants=[node_pb2.Granted(key=generation.key, attempt=generation.attempt, grant=grant)])

    async def cancel(self, generation: types_pb2.Generation) -> None:
        await self.say(cancelled_keys=[generation.key], cancelled_attempts=[generation.attempt])

    async def granted(self, generation: types_pb2.Generation) -> transfer_pb2.Grant:
        word: node_pb2.Granted = await self.word("granted", generation)
        return word.grant

    async def first_token(self, generation: types_pb2.Generation) -> types_pb2.FirstToken:
        word: types_pb2.FirstToken = await self.word("first_tokens", generation)
        return word

    async def word(self, kind: str, generation: types_pb2.Generation) -> Any:
        """The first one of that kind about a leg; raises LegFailed where that comes instead."""
        kinds = kind, "failed"
        await self.wait_for(lambda: any(self.said(each, generation) for each in kinds) or self.reader.done())
        if (word := self.said(kind, generation)) is None:
            raise LegFailed(self.said("failed", generation))
        return word

    def said(self, kind: str, generation: types_pb2.Generation) -> Any:
        return self._words.get((kind, generation.key, generation.attempt))

    def tokens(self, generation: types_pb2.Generation) -> dict[int, int]:
        return dict(self._tokens.get((generation.key, generation.attempt), {}))

    async def wait_for(self, done: Callable[[], Any]) -> Any:
        async with asyncio.timeout(WAIT_S):
            while not (found := done()):
                self.moved.clear()
                await self.moved.wait()
        return found

    async def lose(self) -> None:
        self.call.cancel()  # the call, not its reader: a reader cut off in mid-iteration is never closed
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait([self.reader])

    async def close(self) -> None:
        await self.lose()
        async with asyncio.timeout(WAIT_S):
            await self.channel.close()

    async def _read(self) -> None:
        try:
            with contextlib.suppress(aio.AioRpcError, asyncio.CancelledError):
                async for batch in self.call:
                    self._take(batch)
                    self.moved.set()
        finally:
            asyncio.get_running_loop().call_soon(self.moved.set)  # when it counts as done

    def _take(self, batch: node_pb2.StepBatch) -> None:
        self.batches.append(batch)
        for kind in WORDS:
            for word in getattr(batch, kind):
                self._words.setdefault((kind, word.key, word.attempt), word)
        for key, attempt, index, token_id in zip(
            batch.keys, batch.attempts, batch.indices, batch.token_ids, strict=True
        ):
            self._tokens.setdefault((key, attempt), {})[index] = token_id
