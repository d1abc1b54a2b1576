"""A node's view of one UCX connection, whichever side opened it: messages between its own memory and the staging's.

UCX may go on with a message when nobody waits for it any more. It touches staging memory alone, and the message's area
is given back when UCX has let go of it; so on the node's side a lost connection ends everything at once.
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
    """Lost once, and for good."""

    def __init__(self, process: UcxProcess, number: int) -> None:
        self.process = process
        self.number = number
        self.is_lost = False  # nothing travels over it any more
        self._staging = process.staging
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[Any]] = set()  # for an area, or for UCX
        self._num_busy = 0  # messages that may yet touch the node's memory
        self._idle = asyncio.Event()
        self._idle.set()

    def lose(self) -> None:
        """End every `send` and `receive`; idempotent. UCX is told to close, if it has not itself."""
        if self.is_lost:
            return
        self.is_lost = True
        for future in self._waiting:
            if not future.done():
                future.set_exception(TransferError(_LOST))
        self.process.close_link(self.number)

    async def quiet(self) -> None:
        """Of a lost link: returns when the node's memory is neither read nor written."""
        await self._idle.wait()

    async def send(self, tag: int, views: Sequence[memoryview]) -> int:
        """The message's digest, when UCX is done with it. Then, or at a TransferError, the views are not read."""
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
        """The digest of the waiting message, once it is in the views. TransferError: it never will be there whole."""
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
        """Raises TransferError when UCX does, or the link is lost before; then the area is given back in time."""
        if self.is_lost:  # while the area was filled
            self._staging.give_back(area)
            raise TransferError(_LOST)
        ended: asyncio.Future[None] = self._loop.create_future()

        def on_end(error: TransferError | None) -> None:
            if error or ended.done():  # nobody goes on with it
                self._staging.give_back(area)
            if not ended.done():
                ended.set_exception(error) if error else ended.set_result(None)

        start(on_end)
        await self._unless_lost(ended)

    async def _unless_lost(self, future: asyncio.Future[_T]) -> _T:
        if future.done():
            return future.result()
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)
