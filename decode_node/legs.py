"""A request's part on a decode node: one owner task from its arrival until its blocks are given back."""

import asyncio
import time

from baton.node.legs import OwnedLeg
from baton.request import Generation
from baton.v1 import types_pb2
from engine.grammar.state import GrammarState
from engine.request import Request
from kv_transfer.incoming import IncomingTransfer


class DecodeLeg(OwnedLeg):
    """Its KV is shipped here, or computed here."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        self.arrived_s = time.monotonic()  # of its commit, once its KV has been shipped
        self.grammar: GrammarState | None = None  # where one was asked for, once it is compiled
        self.request: Request | None = None  # set on the step thread
        self.incoming: IncomingTransfer | None = None
        self.is_accepted = False  # its router has been told so
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # its last token is out
        self.last_block_hash = b""  # of the tokens that it begins with
        self.is_shipped = False  # nothing is written into its blocks any more, and all of it is there
        self.has_started = False

    @property
    def num_output_tokens(self) -> int:
        """Of all attempts so far."""
        return self.generation.num_output_tokens if self.request is None else self.request.num_output_tokens

    def reserved(self) -> Request:
        """The engine's request, which is there once its blocks are."""
        if self.request is None:
            raise RuntimeError("no request yet")
        return self.request

    def begin_decoding(self) -> None:
        """Its KV has been shipped, and token 0 was told by the prefill node: tokens from the next one on are ours."""
        self.is_shipped = True
        self.arrived_s = time.monotonic()

    def started(self, request: Request) -> types_pb2.Started:
        """For the router, once the request's first step here is over."""
        now_s = time.monotonic()
        began_s = request.first_scheduled_s or now_s  # never scheduled where the token that came along was the last
        return types_pb2.Started(
            key=self.generation.key,
            attempt=self.generation.attempt,
            num_cached_tokens=request.num_cached_tokens,
            queue_s=max(0.0, began_s - self.arrived_s),
            prefill_s=0.0 if self.is_shipped else request.first_token_s - began_s,
            first_step_s=now_s - began_s,
        )
