"""A fleet of nodes that compute nothing (`nodes`), behind the real dispatcher."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from baton.errors import BatonError
from baton.net import redis_client
from baton.request import FinishReason, SamplingParams
from router.job import Job
from router.placing.admission import Limits
from router.serving.dispatch import Dispatcher
from tests.integration.dispatch.model import next_token
from tests.integration.dispatch.nodes import Node
from tests.waiting import until


def output_of(prompt: list[int], num_tokens: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(next_token(token_ids))
    return token_ids[len(prompt) :]


class Recorder:
    """A sink that records its calls."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.num_ends = 0
        self.prompts: list[Any] = []

    def on_prompt(self, result: Any) -> None:
        assert not self.tokens
        self.prompts.append(result)

    def on_tokens(self, tokens: list[int], logprobs: Any) -> None:
        assert not self.num_ends
        self.tokens += tokens
        self.logprobs += [row.logprob for row in logprobs or ()]

    def on_finish(self, reason: FinishReason, usage: Any) -> None:
        self._end((reason, usage))

    def on_error(self, error: BatonError) -> None:
        self._end(error)

    def _end(self, outcome: Any) -> None:
        self.num_ends += 1
        self.ended.set_result(outcome)

    async def outcome(self, timeout_s: float = 15.0) -> Any:
        return await asyncio.wait_for(asyncio.shield(self.ended), timeout_s)

    async def finished(self) -> Any:
        outcome = await self.outcome()
        assert not isinstance(outcome, BatonError), repr(outcome)
        return outcome[1]


class Fleet:
    def __init__(self, redis_url: str) -> None:
        self.url = redis_url
        self.redis = redis_client.connect(redis_url, timeout_s=2.0)
        self.nodes: dict[str, Node] = {}
        self.dispatcher: Dispatcher = None  # type: ignore[assignment]
        self.token = ""
        self._epochs = itertools.count(1)

    async def add(self, role: str, node_id: str = "", port: int = 0, **load: Any) -> Node:
        node_id = node_id or f"{role}-{len(self.nodes)}"
        node = Node(self, role, node_id, next(self._epochs), self.token)
        for name, value in load.items():
            setattr(node.load, name, value)
        self.nodes[node_id] = node
        await node.start(port)
        return node

    async def start(self, *, num_alive: int | None = None, **config: Any) -> Dispatcher:
        self.dispatcher = Dispatcher(
            self.url, endpoint="127.0.0.1:1", service_token=self.token, limits=Limits(**config)
        )
        await self.dispatcher.start()
        await self.alive(len(self.nodes) if num_alive is None else num_alive)
        return self.dispatcher

    async def alive(self, num_nodes: int) -> None:
        await until(lambda: sum(link.health == "ready" for link in self.dispatcher.links) == num_nodes)

    def submit(
        self, prompt: list[int], max_tokens: int = 12, *, timeout_s: float = 20.0, work: Any = None, **sampling: Any
    ) -> Any:
        """Submit a request; return (handle, sink)."""
        sink = Recorder()
        job = Job(
            request_id="request",
            token_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, **sampling),
            prompt_work=work,
            deadline_s=time.monotonic() + timeout_s,
        )
        return self.dispatcher.submit(job, sink), sink

    async def close(self) -> None:
        async with asyncio.timeout(10):
            if self.dispatcher is not None:
                await self.dispatcher.stop()
            for node in self.nodes.values():
                await node.stop()
            await self.redis.aclose()


@pytest.fixture(name="until")
def _until() -> Any:
    return until


@pytest.fixture(name="output_of")
def _output_of() -> Any:
    return output_of


@pytest.fixture
async def fleet(redis_url: str) -> AsyncIterator[Fleet]:
    fleet = Fleet(redis_url)
    yield fleet
    await fleet.close()


@pytest.fixture
async def fragile_fleet(redis_server: Any) -> AsyncIterator[Fleet]:
    """A fleet whose Redis the test may kill."""
    fleet = Fleet(redis_server.url)
    yield fleet
    await fleet.close()
