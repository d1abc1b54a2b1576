"""A router's stream to a node over real gRPC, and legs that do nothing."""

import asyncio
import contextlib
from typing import Any

import grpc
from grpc import aio

from baton.errors import BatonError
from baton.node.session import Leg
from baton.node.sessions import Sessions
from baton.request import Generation, SamplingParams
from baton.v1 import node_pb2, transfer_pb2

EPOCH = 7


class HeldLeg:
    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class HoldingLegs:
    """Accepts every leg and does nothing with it."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.begun: list[HeldLeg] = []
        self.grants: list[tuple[int, int, int]] = []
        self.stale: list[Generation] = []

    def begin(self, generation: Generation, prefill_node_id: str, prefill_epoch: int) -> None:
        leg = HeldLeg(generation)
        try:
            self.sessions.open(leg)
        except BatonError:
            self.stale.append(generation)
        else:
            self.begun.append(leg)

    def take_grant(self, leg: Leg, grant: transfer_pb2.Grant) -> None:
        self.grants.append((leg.generation.key, leg.generation.attempt, grant.grant_id))

    @property
    def keys(self) -> list[tuple[int, int]]:
        return [(leg.generation.key, leg.generation.attempt) for leg in self.begun]


class Stream:
    """The router's end of a stream."""

    def __init__(self, node: Any, router_id: str = "router") -> None:
        self.call = node.Attach()
        self.router_id = router_id
        self.sequence = 0

    async def say(self, **fields: Any) -> None:
        values = {"epoch": EPOCH, "sequence": self.sequence} | fields
        self.sequence = values["sequence"] + 1
        await self.call.write(node_pb2.RouterBatch(**values))

    async def open(self) -> node_pb2.StepBatch:
        await self.say(router_id=self.router_id)
        return await self.read()

    async def read(self) -> Any:
        return await asyncio.wait_for(self.call.read(), 2)

    async def end(self) -> tuple[grpc.StatusCode, str]:
        with contextlib.suppress(aio.AioRpcError):
            while await self.read() is not aio.EOF:
                pass
        return await self.call.code(), await self.call.details()


def start(key: int, attempt: int = 0, token_ids: list[int] | None = None) -> node_pb2.Start:
    generation = Generation(
        request_id=f"r{key}", key=key, attempt=attempt, token_ids=token_ids or [5], num_prompt_tokens=1,
        sampling=SamplingParams(), router_id="",
    )  # fmt: skip
    return node_pb2.Start(generation=generation.to_proto())
