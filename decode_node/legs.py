"""A request's leg on a decode node: one owner task from its arrival until its blocks are released."""

import asyncio
import time

from baton.request import Generation
from baton.v1 import types_pb2
from engine.leg_service import OwnedLeg
from engine.request import Request
from kv_transfer.incoming import IncomingTransfer


class DecodeLeg(OwnedLeg):
    """A decode leg, whose KV is sent here or computed here."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        self.arrived_s = time.monotonic()  # the time of its commit, once its KV has been shipped
        self.incoming: IncomingTransfer | None = None
        self.is_accepted = False  # its router has been told that it is
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done after its last token
        self.has_started = False

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of all attempts so far."""
        return self.generation.num_output_tokens if self.request is None else self.request.num_output_tokens

    def reserved(self) -> Request:
        """The engine's request, which exists once its blocks have been reserved."""
        if self.request is None:
            raise RuntimeError("the leg's blocks have not been reserved yet")
        return self.request

    def begin_decoding(self) -> None:
        """Record that its KV has arrived. The prefill node reports token 0; this node reports those after it."""
        self.is_shipped = True
        self.arrived_s = time.monotonic()

    def started(self, request: Request) -> types_pb2.Started:
        """The message for the router when the request's first step here is over."""
        now_s = time.monotonic()
        began_s = request.first_scheduled_s or now_s  # never scheduled if the token sent with its KV was its last
        return types_pb2.Started(
            key=self.generation.key,
            attempt=self.generation.attempt,
            num_cached_tokens=request.num_cached_tokens,
            queue_s=max(0.0, began_s - self.arrived_s),
            prefill_s=0.0 if self.is_shipped else request.first_token_s - began_s,
            first_step_s=now_s - began_s,
        )
