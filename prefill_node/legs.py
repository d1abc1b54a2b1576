"""A request's part on a prefill node: what the engine and the transfer say of it, brought together.

Progress comes from the step thread, one layer group of one step at a time; the grant comes from the router, before,
during or after that. `attach` replays to the transfer what was computed before it was there.
"""

import asyncio

from baton.request import Generation
from baton.timeline import Timeline
from engine.grammar.state import GrammarState
from engine.outputs import Output
from engine.request import Request
from kv_transfer.outgoing import OutgoingTransfer


class PrefillLeg:
    """One attempt at one request. All methods belong to the event loop; only its owner task touches its blocks."""

    owner: asyncio.Task[None]

    def __init__(self, generation: Generation, num_layer_groups: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._generation = generation
        self.timeline = Timeline(generation.request_id, generation.attempt, generation.traceparent)
        self._num_ready_blocks = [0] * num_layer_groups
        self.grammar: GrammarState | None = None  # where one was asked for, once it is compiled
        self.request: Request | None = None  # set on the step thread
        self.scheduled: asyncio.Future[list[int]] = self._loop.create_future()  # its block ids, in order, all of them
        self.output: asyncio.Future[Output] = self._loop.create_future()
        self.transfer: OutgoingTransfer | None = None
        self.last_block_hash = b""  # of the last full block of its tokens
        self.is_ending = False  # the owner cleans up: that must not be interrupted

    @property
    def generation(self) -> Generation:
        """What the router asked for."""
        return self._generation

    def cancel(self) -> None:
        """Have the owner end. Idempotent, returns at once."""
        self._loop.call_soon(self._cancel_owner)  # not before its first line has run: it could not clean up

    def advance(self, layer_group: int, num_blocks: int, block_ids: list[int]) -> None:
        """Blocks [0, num_blocks) of a layer group are computed and will not change."""
        if not self.scheduled.done():
            self.scheduled.set_result(block_ids)
        self._num_ready_blocks[layer_group] = num_blocks
        if self.transfer is not None:
            self.transfer.ready(layer_group, num_blocks)

    def attach(self, transfer: OutgoingTransfer) -> None:
        """The grant has come, and the transfer is open."""
        self.transfer = transfer
        for layer_group, num_blocks in enumerate(self._num_ready_blocks):
            if num_blocks:
                transfer.ready(layer_group, num_blocks)

    def _cancel_owner(self) -> None:
        if not self.is_ending:
            self.is_ending = True
            self.owner.cancel()
