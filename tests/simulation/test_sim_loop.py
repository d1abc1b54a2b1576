"""The simulator itself: order, time, death, frost and partitions are what they claim to be."""

import asyncio
import random

import pytest

from tests.simulation.loop import Process, SimLoop, Violation
from tests.simulation.network import Network


@pytest.fixture
def loop():
    loop = SimLoop(random.Random(0))
    yield loop
    loop.close()


def run(loop: SimLoop, coroutine):
    return loop.run_until_complete(loop.world.context.run(loop.create_task, coroutine))


def process(loop: SimLoop, name: str) -> Process:
    made = Process(name)
    loop.add_strands(made)
    return made


def test_time_passes_at_once_and_in_order(loop):
    async def main() -> list[float]:
        start_s, woken = loop.time(), []

        async def sleep(delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            woken.append(loop.time() - start_s)

        await asyncio.gather(sleep(3600), sleep(1), sleep(60))
        return woken

    assert run(loop, main()) == pytest.approx([1, 60, 3600])


def test_callbacks_of_a_process_keep_their_order_and_processes_do_not(loop):
    seen: list[tuple[str, int]] = []

    async def main() -> None:
        processes = [process(loop, name) for name in "ab"]
        for number in range(20):
            for each in processes:
                loop.call_soon(lambda name=each.name, number=number: seen.append((name, number)), context=each.context)
        await asyncio.sleep(1)

    run(loop, main())
    assert [number for name, number in seen if name == "a"] == list(range(20))
    assert [name for name, _ in seen] != ["a", "b"] * 20


def test_a_frozen_process_goes_on_when_it_thaws_and_a_dead_one_never_does(loop):
    ticks = {"frozen": 0, "dead": 0}

    async def tick(name: str) -> None:
        while True:
            await asyncio.sleep(1)
            ticks[name] += 1

    async def main() -> list[dict[str, int]]:
        processes = {name: process(loop, name) for name in ticks}
        for name, each in processes.items():
            each.context.run(loop.create_task, tick(name))
        processes["frozen"].frozen = True
        processes["dead"].alive = False
        await asyncio.sleep(5.5)
        before = dict(ticks)
        processes["frozen"].frozen = False
        await asyncio.sleep(2)
        return [before, dict(ticks)]

    assert run(loop, main()) == [{"frozen": 0, "dead": 0}, {"frozen": 2, "dead": 0}]


def test_a_deadlock_is_an_error(loop):
    async def main() -> None:
        await loop.create_future()

    with pytest.raises(Violation, match="deadlock"):
        run(loop, main())


def test_spinning_is_an_error(loop):
    async def main() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(Violation, match="spins"):
        run(loop, main())


def test_a_partition_holds_segments_back_and_keeps_their_order(loop):
    network = Network(loop, random.Random(1), lambda *event: None)
    network.loss = 0.5

    async def main() -> list[int]:
        a, b = process(loop, "a"), process(loop, "b")
        ends, got = [], []
        port = network.listen(b, ends.append)
        end = await network.connect(a, port)
        await asyncio.sleep(1)
        ends[0].on_data = got.append
        network.block("a", "b")
        for number in range(20):
            end.send(number)
        await asyncio.sleep(60)
        assert got == []
        network.unblock("a", "b")
        await asyncio.sleep(60)
        return got

    assert run(loop, main()) == list(range(20))
