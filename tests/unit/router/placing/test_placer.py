"""Which requests are placed at once, queued or refused with a single prefill node; in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
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
from router.placing.placer import RECHECK_S, Placer
from router.running import Running
from tests.virtual_clock import Clock

PROMPT_MS = 100.0


class Fleet:
    """The fleet of one node, which takes every request that is not `too_large` while it has `room`."""

    def __init__(self, **limits: Any) -> None:
        self.ready = self.expects_prefill = self.has_room = True
        self.facts = None
        self.link: Any = SimpleNamespace(state=NodeState())
        self.link.state.cost.prefill_base_ms = PROMPT_MS
        self.placer = Placer(self, SimpleNamespace(), Limits(**limits))  # type: ignore[arg-type]
        self.placer._candidates = self  # type: ignore[assignment]
        self.placed: list[str] = []
        self.too_large: set[str] = set()

    def accepting(self, role: str) -> list[Any]:
        return [self.link]

    async def changed(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)

    async def place(self, running: Running, hashes: Any) -> Placement | None:
        if not self.has_room or running.job.request_id in self.too_large:
            return None
        about: dict[str, Any] = {"cost_ms": 0, "num_uncached_tokens": 1, "num_missing_blocks": 0, "decode": None}
        choice = policy.NodeChoice(prefill=0, queue_ms=self.link.state.queue_ms, prompt_ms=PROMPT_MS, **about)
        return Placement(self.link, None, choice, 10, self.placer.nodes_changed)

    def come(self, name: str, *, attempts: int = 0, tokens: int = 1, output: int = 0, **about: Any) -> Any:
        """Submit a request; return the task that places it."""
        sampling = SamplingParams(max_tokens=tokens)
        deadline_s = asyncio.get_running_loop().time() + 600
        job = Job(request_id=name, token_ids=[1], sampling=sampling, **{"deadline_s": deadline_s, **about})
        running = Running(job, None, 1)  # type: ignore[arg-type]
        running.usage.num_attempts, running.output = attempts, [7] * output
        return asyncio.create_task(self._come(running))

    async def _come(self, running: Running) -> Placement:
        placement = await self.placer.place(running)
        self.placed.append(running.job.request_id)
        return placement

    def has_now(self, *, room: bool) -> None:
        self.has_room = room
        self.placer.nodes_changed()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock.time)
    yield clock.run_until_complete
    clock.close()


async def later(seconds: float = 0.001) -> None:
    await asyncio.sleep(seconds)


def test_new_requests_queue_and_retried_ones_bypass_the_queue(run: Any) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.has_room = False
        fleet.come("first")
        await later()
        fleet.has_room = True  # which nobody has said yet
        fleet.come("second")
        fleet.come("begun before", attempts=1)
        await later()
        assert fleet.placed == ["begun before"]
        fleet.has_now(room=True)
        await later()
        assert fleet.placed == ["begun before", "first", "second"]

    run(main())


def test_a_small_request_does_not_overtake_a_large_one(run: Any) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.too_large = {"large"}
        large = fleet.come("large")
        await later()
        fleet.come("small")
        await later(4 * RECHECK_S)
        fleet.has_room = False
        large.cancel()
        await later(RECHECK_S)
        assert fleet.placed == []  # where it would have gone when it came is past
        fleet.has_now(room=True)
        await later()
        assert fleet.placed == ["small"]

    run(main())


def test_requests_of_a_tenant_are_ordered_by_deadline(run: Any) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.has_room = False
        for name, about in (("patient", {}), ("hurried", {"max_ttft_s": 100.0}), ("late", {"deadline_s": 50.0})):
            fleet.come(name, **about)
            await later()
        fleet.has_now(room=True)
        await later()
        assert fleet.placed == ["late", "hurried", "patient"]

    run(main())


def test_a_request_that_leaves_the_queue_wakes_the_next_one(run: Any) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.has_room = False
        first = fleet.come("first")
        await later()
        fleet.come("second")
        await later()
        fleet.has_room = True
        first.cancel()
        await later()
        assert (fleet.placed, len(fleet.placer._queue), fleet.placer._wakes) == (["second"], 0, {})

    run(main())


def test_nodes_that_have_enough_to_do_are_left_in_peace(run: Any) -> None:
    async def main() -> None:
        fleet, state = Fleet(), NodeState()
        fleet.link.state = state
        state.queue_ms = 1000 * policy.MAX_BACKLOG_S
        fleet.come("as much as it may have")
        await later()
        assert fleet.placed == ["as much as it may have"]
        state.queue_ms = 1000 * policy.MAX_BACKLOG_S + 1
        fleet.come("more")
        await later(3.0)
        assert len(fleet.placed) == 1
        state.queue_ms = 0.0
        await later(RECHECK_S)
        assert fleet.placed[1:] == ["more"]

    run(main())


@pytest.mark.parametrize("attempts", [0, 1])
def test_a_request_that_waits_too_long_for_full_nodes_is_refused(run: Any, attempts: int) -> None:
    """Not if nodes are missing, since they may come back, and not a request whose stream has begun."""

    async def main() -> None:
        fleet = Fleet(max_full_wait_s=2.0)
        fleet.has_room = False
        other = fleet.come("begun", attempts=1, output=1)
        fleet.ready = False
        waiting = fleet.come("waits", attempts=attempts)
        await later(60.0)
        assert not waiting.done()
        fleet.ready = True
        await later(2 * RECHECK_S)
        assert isinstance(waiting.exception(), Overloaded)
        started_s, again = asyncio.get_running_loop().time(), fleet.come("again", attempts=attempts)
        await asyncio.wait([again])
        assert 2.0 <= asyncio.get_running_loop().time() - started_s <= 2.0 + 2 * RECHECK_S
        assert isinstance(again.exception(), Overloaded)
        assert not other.done()
        other.cancel()

    run(main())


def test_a_request_with_too_late_a_predicted_first_token_is_refused_at_once(run: Any) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.link.state.queue_ms = 700.0
        for max_ttft_s, is_placed in ((0.5, False), (0.79, False), (0.9, True), (0.0, True)):
            coming = fleet.come("hurried", max_ttft_s=max_ttft_s)
            await later()
            assert coming.done()
            assert (coming.exception() is None) == is_placed
            fleet.link.state.queue_ms = 700.0

    run(main())


def test_what_an_overload_has_taught_is_forgotten(run: Any) -> None:
    async def main() -> None:
        fleet = Fleet()
        for _ in range(50):
            fleet.placer._predictor.began(0.1, 0.8, 0.0)  # seven times slower than it says
        for pause_s, is_placed in ((1.0, False), (20.0, True)):
            await later(pause_s)
            fleet.link.state.queue_ms = 200.0
            coming = fleet.come("hurried", max_ttft_s=0.9)
            await later()
            assert (coming.exception() is None) == is_placed

    run(main())


def test_a_request_placed_at_once_is_charged_to_its_tenant(run: Any) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.come("a's", tenant="a", tokens=500)
        await later()
        fleet.has_room = False
        for name, tokens in (("a's next", 1), ("b's", 900), ("b's next", 1)):
            fleet.come(name, tenant=name[0], tokens=tokens)
            await later()
        fleet.has_now(room=True)
        await later()
        assert fleet.placed == ["a's", "b's", "a's next", "b's next"]

    run(main())
