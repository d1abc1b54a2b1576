"""A request's part on a decode node: one owner task from its arrival until its blocks are given back."""

import asyncio
import time

from baton.request import Generation
from baton.telemetry.timeline import Timeline
from baton.v1 import types_pb2
from engine.grammar.state import GrammarState
from engine.request import Request
from kv_transfer.incoming import IncomingTransfer


class DecodeLeg:
    """One attempt at one request. Whoever wants its end calls `cancel`; only its owner task touches its blocks."""

    owner: asyncio.Task[None]

    def __init__(self, generation: Generation) -> None:
        loop = asyncio.get_running_loop()
        self._generation = generation
        self.timeline = Timeline(generation.request_id, generation.attempt, generation.traceparent)
        self._loop = loop
        self.arrived_s = time.monotonic()  # of its commit, once its KV has been shipped
        self.grammar: GrammarState | None = None  # where one was asked for, once it is compiled
        self.request: Request | None = None  # set on the step thread
        self.incoming: IncomingTransfer | None = None
        self.is_accepted = False  # its router has been told so
        self.over: asyncio.Future[None] = loop.create_future()  # its last token is out
        self.last_block_hash = b""  # of the last full block of its tokens
        self.is_shipped = False  # nothing is written into its blocks any more, and all of it is there
        self.is_ending = False  # the owner cleans up: that must not be interrupted
        self.has_started = False

    @property
    def generation(self) -> Generation:
        """What the router asked for."""
        return self._generation

    @property
    def num_output_tokens(self) -> int:
        """Of all attempts so far."""
        return self._generation.num_output_tokens if self.request is None else self.request.num_output_tokens

    def cancel(self) -> None:
        """Have the owner end. Idempotent, returns at once."""
        self._loop.call_soon(self._cancel_owner)  # not before its first line has run: it could not clean up

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

    def _cancel_owner(self) -> None:
        if not self.is_ending:
            self.is_ending = True
            self.owner.cancel()
