"""A node's side of one UCX connection, whichever node opened it: copies messages between its memory and the staging's.

UCX may continue with a message after the node has given it up. It only touches staging memory, and the message's area
is freed when UCX is done with it. So once a connection is lost, the node's own memory is safe as soon as its own copies
have ended.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from baton.errors import TransferError
from kv_transfer.staging import Area
from kv_transfer.ucx.process import OnEnd, UcxProcess
from kv_transfer.ucx_child import frames

_LOST = "the UCX connection was lost"
_T = TypeVar("_T")


class UcxLink:
    """One connection. Once lost, it stays lost."""

    def __init__(self, process: UcxProcess, number: int) -> None:
        self.process = process
        self.number = number
        self.is_lost = False  # nothing travels over it any more
        self._staging = process.staging
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[Any]] = set()  # for an area, or for UCX to end a message
        self._num_busy = 0  # messages that may still read or write the node's memory
        self._idle = asyncio.Event()
        self._idle.set()

    def lose(self) -> None:
        """Fail every `send` and `receive`, and tell UCX to close the connection. Idempotent."""
        if self.is_lost:
            return
        self.is_lost = True
        for future in self._waiting:
            if not future.done():
                future.set_exception(TransferError(_LOST))
        self.process.close_link(self.number)

    async def quiet(self) -> None:
        """After `lose`: wait until no message reads or writes the node's memory any more."""
        await self._idle.wait()

    async def send(self, tag: int, views: Sequence[memoryview]) -> int:
        """Send the views as one message; returns its digest when UCX is done with it.

        The views are no longer read when it returns or raises TransferError.
        """
        self._begin()
        try:
            area = await self._take(views)
            digest = await self._staging.fill(area, views)
            await self._until_ended(area, lambda on_end: self.process.start_send(self.number, tag, area, on_end))
            self._staging.give_back(area)
        finally:
            self._end()
        return digest

    async def receive(self, message: int, views: Sequence[memoryview]) -> int:
        """Receive the waiting message `message` into the views and return its digest.

        Raises TransferError if it will never be there completely.
        """
        self._begin()
        try:
            try:
                area = await self._take(views)
            except TransferError:
                self.process.put(frames.Drop(message))
                raise
            await self._until_ended(area, lambda on_end: self.process.start_receive(message, self.number, area, on_end))
            digest = await self._staging.empty(area, views)
            self._staging.give_back(area)
        finally:
            self._end()
        return digest

    def _begin(self) -> None:
        self._num_busy += 1
        self._idle.clear()

    def _end(self) -> None:
        self._num_busy -= 1
        if not self._num_busy:
            self._idle.set()

    async def _take(self, views: Sequence[memoryview]) -> Area:
        area = await self._unless_lost(self._staging.take(sum(view.nbytes for view in views)))
        if self.is_lost:
            self._staging.give_back(area)
            raise TransferError(_LOST)
        return area

    async def _until_ended(self, area: Area, start: Callable[[OnEnd], None]) -> None:
        """Start UCX on the area, and wait for the end. Raises TransferError if UCX fails or the link is lost first.

        The area is freed after an error, but never before UCX is done with it.
        """
        if self.is_lost:  # it was lost while the area was filled
            self._staging.give_back(area)
            raise TransferError(_LOST)
        ended: asyncio.Future[None] = self._loop.create_future()

        def on_end(error: TransferError | None) -> None:
            if error or ended.done():  # in the second case the caller has already raised
                self._staging.give_back(area)
            if not ended.done():
                ended.set_exception(error) if error else ended.set_result(None)

        start(on_end)
        await self._unless_lost(ended)

    async def _unless_lost(self, future: asyncio.Future[_T]) -> _T:
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)
