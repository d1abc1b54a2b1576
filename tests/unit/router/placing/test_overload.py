"""What a line does before a node that gets three times as many requests as it can serve, in virtual time.

The node takes another time for a prompt than it says, as one does whose cores others use too.
"""

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from baton.errors import Overloaded
from baton.request import SamplingParams
from router.job import Job
from router.nodes.state import NodeState
from router.placing import policy
from router.placing.admission import Limits
from router.placing.placement import Placement
from router.placing.placer import Placer
from router.running import Running
from tests.virtual_clock import Clock

LIMIT_S, CAPACITY, RATE = 2.0, 100, 300  # requests/s
SECONDS = 12.0


class Node:
    """One prefill node, which computes one prompt at a time and holds as many requests as `room` allows."""

    def __init__(self, said_ms: float, room: int) -> None:
        self.said_ms, self.room, self.num_placed = said_ms, room, 0
        self.state = NodeState(num_blocks=1000, num_free_blocks=1000)
        self.state.cost.prefill_base_ms = said_ms
        self.queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        link: Any = SimpleNamespace(state=self.state)
        fleet: Any = SimpleNamespace(ready=True, expects_prefill=True, facts=None, accepting=lambda role: [link])
        self.placer = Placer(fleet, SimpleNamespace(expect=lambda *_: None), Limits(max_ttft_s=LIMIT_S))  # type: ignore[arg-type]
        self.placer._candidates = self  # type: ignore[assignment]
        self.placer._begin = lambda placement, hashes: placement.begin()  # type: ignore[method-assign]
        self._link = link

    async def place(self, running: Any, hashes: Any) -> Placement | None:
        if self.num_placed >= self.room:
            return None
        about: dict[str, Any] = {"cost_ms": 0, "num_uncached_tokens": 1, "num_missing_blocks": 0, "decode": None}
        choice = policy.NodeChoice(prefill=0, queue_ms=self.state.queue_ms, prompt_ms=self.said_ms, **about)
        return Placement(self._link, None, choice, 10, self.placer.nodes_changed)

    async def compute(self, rng: random.Random) -> None:
        while True:
            done = await self.queue.get()
            await asyncio.sleep(rng.expovariate(CAPACITY))
            done.set_result(None)

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.state.queue_ms = self.queue.qsize() * self.said_ms
            self.placer.nodes_changed()


async def overload(node: Node) -> tuple[list[float], list[float]]:
    """Run an overload; return how long each request took until its first token, or until it was refused."""
    rng, loop, tokens, refusals = random.Random(1), asyncio.get_running_loop(), [], []
    beside = [asyncio.create_task(node.compute(rng)), asyncio.create_task(node.beat())]

    async def request() -> None:
        job = Job(request_id="x", token_ids=[1], sampling=SamplingParams(), deadline_s=loop.time() + 600)
        began_s = loop.time()
        try:
            placement = await node.placer.place(Running(job, None, 1))  # type: ignore[arg-type]
        except Overloaded:
            refusals.append(loop.time() - began_s)
            return
        node.num_placed += 1
        done = loop.create_future()
        node.queue.put_nowait(done)
        await done
        placement.computed()
        tokens.append(loop.time() - began_s)
        node.num_placed -= 1
        placement.end()

    requests = []
    for _ in range(int(RATE * SECONDS)):
        requests.append(asyncio.create_task(request()))
        await asyncio.sleep(rng.expovariate(RATE))
    await asyncio.wait(requests, timeout=LIMIT_S)
    for task in beside:
        task.cancel()
    return tokens, refusals


@pytest.mark.parametrize(("said_ms", "room"), [(10, 1000), (3, 1000), (30, 1000), (10, 64), (3, 64)])
def test_refusals_come_at_once_and_first_tokens_in_time(
    said_ms: float, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Clock()
    monkeypatch.setattr("time.monotonic", loop.time)
    try:
        tokens, refusals = loop.run_until_complete(overload(Node(said_ms, room)))
    finally:
        monkeypatch.undo()
        loop.close()
    assert sum(ttft_s <= LIMIT_S for ttft_s in tokens) > 0.85 * CAPACITY * SECONDS, "it is kept busy, and in time"
    assert sum(ttft_s > LIMIT_S for ttft_s in tokens) < 0.1 * len(tokens)
    assert sum(wait_s > 0.05 for wait_s in refusals) < 0.05 * len(refusals)
