"""A request's leg on a prefill node, which connects the engine's progress with the transfer.

Progress comes from the step thread, one layer group of one step at a time; the grant comes from the router, before,
during or after that. Once both the grant and the blocks are known, the transfer is opened and is told of all progress
so far.
"""

import asyncio
from collections.abc import Callable

from baton.errors import BatonError
from baton.request import Generation
from baton.v1 import transfer_pb2
from engine.leg_service import OwnedLeg
from engine.outputs import Output
from kv_transfer.outgoing import OutgoingTransfer


class PrefillLeg(OwnedLeg):
    """A prefill leg. All methods must be called on the event loop."""

    def __init__(
        self,
        generation: Generation,
        num_layer_groups: int,
        open_transfer: Callable[[transfer_pb2.Grant, list[int]], OutgoingTransfer],
    ) -> None:
        """`open_transfer` is called with the grant and the block ids; it may raise TransferError."""
        super().__init__(generation)
        self._loop = asyncio.get_running_loop()
        self._num_ready_blocks = [0] * num_layer_groups
        self._open_transfer = open_transfer
        self._grant: transfer_pb2.Grant | None = None
        self._block_ids: list[int] = []  # all of the request's, in order, once it is scheduled
        self.output: asyncio.Future[Output] = self._loop.create_future()
        self.transfer: OutgoingTransfer | None = None
        self.granted = asyncio.Event()
        self.opened: asyncio.Future[None] = self._loop.create_future()  # done when the transfer is open, or failed to
        self.was_set_aside = False  # then its tokens are already counted

    def advance(self, layer_group: int, num_blocks: int, block_ids: list[int]) -> None:
        """Record that blocks [0, num_blocks) of a layer group are computed and will not change."""
        self._num_ready_blocks[layer_group] = num_blocks
        if self.transfer is not None:
            self.transfer.ready(layer_group, num_blocks)
        elif not self._block_ids:
            self._block_ids = block_ids
            self._open_if_ready()

    def take_grant(self, grant: transfer_pb2.Grant) -> None:
        """Take the decode node's grant, which the router forwards. Only the first one counts."""
        if self._grant is None and not self.is_ending:
            self.timeline.mark("grant", num_blocks=grant.num_missing_blocks)
            self._grant = grant
            self.granted.set()
            self._open_if_ready()

    def set_aside(self) -> bool:
        """Forget the blocks, which the owner task then releases. False if the transfer was opened, or failed to."""
        if self.opened.done():
            return False
        self._block_ids, self._num_ready_blocks = [], [0] * len(self._num_ready_blocks)
        self.was_set_aside = True
        self.output = self._loop.create_future()
        return True

    def _open_if_ready(self) -> None:
        if self._grant is None or not self._block_ids or self.is_ending or self.opened.done():
            return
        try:
            transfer = self.transfer = self._open_transfer(self._grant, self._block_ids)
        except BatonError as error:
            self.opened.set_exception(error)
            self.opened.exception()  # marked as retrieved, since nobody may wait for it
            return
        for layer_group, num_blocks in enumerate(self._num_ready_blocks):
            if num_blocks:
                transfer.ready(layer_group, num_blocks)
        self.opened.set_result(None)
