"""A node's view of one UCX connection, whichever side opened it: messages between its own memory and the staging's.

UCX may go on with a message when nobody waits for it any more. It touches staging memory alone, and the message's area
is given back when UCX has let go of it; so on the node's side a lost connection ends everything at once.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from baton.errors import TransferError
from kv_transfer.staging import Area
from kv_transfer.ucx.process import UcxProcess
from kv_transfer.ucx_child import frames


class UcxLink:
    """Lost once, and for good."""

    def __init__(self, process: UcxProcess, number: int) -> None:
        self.process = process
        self.number = number
        self._staging = process.staging
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._busy: set[asyncio.Future[None]] = set()  # one for each message that may yet touch the node's memory

    @property
    def is_lost(self) -> bool:
        """Whether nothing travels over it any more."""
        return self._lost.done()

    def lose(self) -> None:
        """End every `send` and `receive`; idempotent. UCX is told to close, if it has not itself."""
        if not self.is_lost:
            self._lost.set_result(None)
            self.process.close_link(self.number)

    async def quiet(self) -> None:
        """Of a lost link: returns when the node's memory is neither read nor written."""
        while self._busy:
            await asyncio.wait(self._busy)

    async def send(self, tag: int, views: Sequence[memoryview]) -> int:
        """The message's digest, when UCX is done with it. Then, or at a TransferError, the views are not read."""
        with self._message():
            area = await self._take(sum(view.nbytes for view in views))
            digest = await self._staging.fill(area, views)
            await self._until_ended(self.process.start_send(self.number, tag, area.start, area.num_bytes), area)
            self._staging.give_back(area)
        return digest

    async def receive(self, message: int, views: Sequence[memoryview]) -> int:
        """The digest of the waiting message, once it is in the views. TransferError: it never will be there whole."""
        with self._message():
            try:
                area = await self._take(sum(view.nbytes for view in views))
            except TransferError:
                self.process.put(frames.Drop(message))
                raise
            ended = self.process.start_receive(message, self.number, area.start, area.num_bytes)
            await self._until_ended(ended, area)
            digest = await self._staging.empty(area, views)
            self._staging.give_back(area)
        return digest

    @contextmanager
    def _message(self) -> Iterator[None]:
        busy: asyncio.Future[None] = self._loop.create_future()
        self._busy.add(busy)
        try:
            yield
        finally:
            self._busy.discard(busy)
            if not busy.done():  # else by a loop that ends
                busy.set_result(None)

    async def _take(self, num_bytes: int) -> Area:
        taken = self._staging.take(num_bytes)
        await self._first(taken)
        if not taken.done():
            taken.cancel()
            raise TransferError("the UCX connection was lost")
        return taken.result()

    async def _first(self, future: asyncio.Future[Any]) -> None:
        """Returns when it is done, or the link is lost."""
        await asyncio.wait([future, self._lost], return_when=asyncio.FIRST_COMPLETED)

    async def _until_ended(self, ended: asyncio.Future[None], area: Area) -> None:
        """Raises TransferError when UCX does, or the link is lost before; then the area is given back in time."""
        await self._first(ended)
        if ended.done() and ended.exception() is None:
            return
        ended.add_done_callback(lambda _: self._staging.give_back(area))
        if ended.done():
            ended.result()
        raise TransferError("the UCX connection was lost")
