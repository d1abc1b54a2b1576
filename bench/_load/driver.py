"""Sends conversations in a closed loop (a fixed number at a time) or an open loop (each one when it is due).

Latencies of an open loop start when a request was due, not when the client sent it. Otherwise a client that falls
behind would hide the time that its users wait.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from baton.net.failure import reason
from bench._load.sse_client import Stream, StreamClient
from bench._load.target import Target
from bench._load.workload import Conversation

MAX_OPEN = 8192  # requests in flight, in an open loop


class Driver:
    """Runs one load. `streams` are the finished requests, in order of their end; `on_done` is called for each."""

    def __init__(self, target: Target, timeout_s: float, on_done: Callable[[Stream], None] = lambda _: None) -> None:
        self.streams: list[Stream] = []
        self.hung_up: list[Stream] = []  # requests cut off at the end of an open loop
        self.late_s = 0.0  # the greatest delay in sending an open-loop request
        self._target, self._timeout_s, self._on_done = target, timeout_s, on_done
        self._idle: list[StreamClient] = []

    async def closed(self, conversations: Iterable[Conversation], concurrency: int, stop_at_s: float = 1e18) -> None:
        """Run `concurrency` conversations at a time. None is begun after `stop_at_s`."""
        waiting = iter(conversations)

        async def work() -> None:
            while time.monotonic() < stop_at_s and (conversation := next(waiting, None)) is not None:
                await self._converse(conversation, None)

        try:
            await asyncio.gather(*(work() for _ in range(concurrency)))
        finally:
            self._hang_up()

    async def open(self, arrivals: Iterator[tuple[float, Conversation]], *, finish: bool = True) -> None:
        """Start conversations at the times in `arrivals`. Without `finish`, cut off the unanswered ones at the end."""
        tasks: set[asyncio.Task[None]] = set()
        start_s = time.monotonic()
        try:
            for at_s, conversation in arrivals:
                await asyncio.sleep(max(start_s + at_s - time.monotonic(), 0.0))
                self.late_s = max(self.late_s, time.monotonic() - start_s - at_s)
                while len(tasks) >= MAX_OPEN:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._converse(conversation, start_s + at_s))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if finish and tasks:
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._hang_up()

    async def _converse(self, conversation: Conversation, due_s: float | None) -> None:
        for body in conversation.turns:
            stream = await self._ask(conversation.path, body, due_s)
            due_s = None  # further turns are due when the previous answer is complete
            self.streams.append(stream)
            self._on_done(stream)
            if not stream.ok:
                return

    async def _ask(self, path: str, body: dict[str, object], due_s: float | None) -> Stream:
        began_s = time.monotonic() if due_s is None else due_s
        try:
            stream, client = await self._send(path, body)
        except (OSError, TimeoutError) as error:
            return Stream(began_s, ended=time.monotonic(), error=f"no connection: {reason(error)}")
        stream.began = began_s
        if stream.ok and client.is_open:
            self._idle.append(client)
        else:
            client.close()
        return stream

    async def _send(self, path: str, body: dict[str, object]) -> tuple[Stream, StreamClient]:
        """Send on an idle connection if there is one; if the server has closed it meanwhile, on another."""
        target = self._target
        while self._idle:
            client = self._idle.pop()
            stream = await self._post(client, path, body)
            if stream.status or stream.timed_out:
                return stream, client
            client.close()
        async with asyncio.timeout(self._timeout_s):
            client = await StreamClient.connect(target.host, target.port, target.tls)
        return await self._post(client, path, body), client

    async def _post(self, client: StreamClient, path: str, body: dict[str, object]) -> Stream:
        try:
            return await client.post(self._target.base_path + path, body, self._target.api_key, self._timeout_s)
        except asyncio.CancelledError:
            self.hung_up.append(client.stream)
            client.close()
            raise

    def _hang_up(self) -> None:
        while self._idle:
            self._idle.pop().close()
