import asyncio
import threading

import pytest

from baton.errors import InvalidRequest, NodeUnavailable
from baton.request import FinishReason
from engine.request import RequestState
from engine.step_loop import StepLoop
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Listener:
    """Collects outputs from the step thread and lets a test wait for the end of a request."""

    def __init__(self):
        self.outputs = []
        self.threads = set()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, output):
        self.threads.add(threading.current_thread().name)
        self.outputs += output.outputs
        self._loop.call_soon_threadsafe(self._changed.set)

    async def finished(self, request):
        async with asyncio.timeout(20):
            while not any(o.request is request and o.finish_reason for o in self.outputs):
                await self._changed.wait()
                self._changed.clear()


@pytest.fixture
async def started(make_engine):
    """(loop, listener, engine), running."""
    engine = make_engine(kv_memory=str(make_engine().layout.block_bytes * 64))
    listener = Listener()
    loop = StepLoop(engine, listener)
    loop.start()
    yield loop, listener, engine
    await loop.stop()


async def test_requests_run_on_the_step_thread(started, make_generation):
    loop, listener, _ = started
    requests = [await loop.call(lambda engine, i=i: engine.add(make_generation([i] * 9, max_tokens=4))) for i in (5, 6)]
    for request in requests:
        await listener.finished(request)
    assert listener.threads == {"step"}
    assert await loop.call(lambda engine: threading.current_thread().name) == "step"
    assert await loop.call(lambda engine: engine.current_load().num_free_blocks) == 64


async def test_the_error_of_a_call_is_raised_to_its_caller(started, make_generation, caplog):
    loop, listener, _ = started
    with pytest.raises(InvalidRequest):
        await loop.call(lambda engine: engine.add(make_generation([])))
    loop.submit(lambda engine: 1 / 0)
    request = await loop.call(lambda engine: engine.add(make_generation([1], max_tokens=2)))
    await listener.finished(request)
    assert "division by zero" in caplog.text


async def test_sleeps_when_nothing_can_run_and_wakes_when_blocks_are_freed(started, make_generation):
    loop, listener, engine = started
    held = await loop.call(lambda engine: engine.reserve(make_generation([1] * 500)))
    waiting = await loop.call(lambda engine: engine.add(make_generation([2] * 400, max_tokens=1)))
    steps, spun, step = [], threading.Event(), engine.step

    def counted():
        steps.append(1)
        if len(steps) > 20:
            spun.set()
        return step()

    engine.step = counted
    await loop.call(lambda engine: None)
    assert not await asyncio.to_thread(spun.wait, 0.3)
    assert waiting.state is RequestState.WAITING
    loop.submit(lambda engine: engine.release(held))
    await listener.finished(waiting)


async def test_steps_go_on_under_a_stream_of_calls(started, make_generation):
    loop, listener, _ = started
    request = await loop.call(lambda engine: engine.add(make_generation([1], max_tokens=5, ignore_eos=True)))
    for _ in range(10):
        await loop.call(lambda engine: None)
    await listener.finished(request)
    assert len(listener.outputs) == 5


async def test_evictions_between_requests_are_reported(make_engine, make_generation):
    engine = make_engine(kv_memory=str(make_engine().layout.block_bytes * 64), max_num_batched_tokens=512)
    events = asyncio.Queue()
    running = asyncio.get_running_loop()
    loop = StepLoop(engine, lambda output: running.call_soon_threadsafe(events.put_nowait, output))
    loop.start()
    try:
        await loop.call(lambda engine: engine.add(make_generation([1] * 400, max_tokens=1)))
        assert len((await asyncio.wait_for(events.get(), 20)).stored) == 50
        await loop.call(lambda engine: engine.reserve(make_generation([2] * 500)))
        assert len((await asyncio.wait_for(events.get(), 20)).evicted) == 49
    finally:
        await loop.stop()


async def test_a_call_cancelled_before_it_ran_is_not_made(started):
    loop, _, _ = started
    entered, go = threading.Event(), threading.Event()
    loop.submit(lambda engine: (entered.set(), go.wait(20)))
    assert await asyncio.to_thread(entered.wait, 20)
    ran = []
    call = asyncio.ensure_future(loop.call(ran.append))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go.set()
    await loop.call(lambda engine: None)
    assert ran == []


async def test_after_stop_calls_are_refused(make_engine):
    loop = StepLoop(make_engine(), lambda output: None)
    loop.start()
    await loop.stop()
    with pytest.raises(NodeUnavailable):
        await loop.call(lambda engine: None)


async def test_calls_that_still_wait_when_it_stops_are_refused(started):
    loop, _, _ = started
    entered, go = threading.Event(), threading.Event()
    loop.submit(lambda engine: (entered.set(), go.wait(20)))
    assert await asyncio.to_thread(entered.wait, 20)
    waiting = asyncio.ensure_future(loop.call(lambda engine: None))
    stopping = asyncio.ensure_future(loop.stop())
    await asyncio.sleep(0.01)
    assert not stopping.done()  # the step thread is still at work
    go.set()
    await stopping
    with pytest.raises(NodeUnavailable):
        await asyncio.wait_for(waiting, 5)


async def test_stop_without_start(make_engine):
    loop = StepLoop(make_engine(), lambda output: None)
    await loop.stop()


async def test_the_loop_survives_request_errors_and_reports_engine_errors(make_engine, make_generation):
    engine = make_engine()
    crashed = asyncio.get_running_loop().create_future()
    listener = Listener()
    running = asyncio.get_running_loop()
    loop = StepLoop(engine, listener, lambda error: running.call_soon_threadsafe(crashed.set_result, error))

    def broken(group, batch):
        raise RuntimeError("broken")

    engine.steps.on_layer_group = broken
    loop.start()
    request = await loop.call(lambda engine: engine.add(make_generation([1])))
    await listener.finished(request)
    assert request.finish_reason is FinishReason.ERROR

    def worse():
        raise MemoryError("gone")

    engine.step = worse
    await loop.call(lambda engine: engine.add(make_generation([1])))
    assert isinstance(await asyncio.wait_for(crashed, 20), MemoryError)
    with pytest.raises(NodeUnavailable):
        await loop.call(lambda engine: None)
    await loop.stop()


async def test_an_idle_node_detects_leaked_blocks(make_engine, make_generation, monkeypatch, caplog):
    from baton.node.load import BLOCK_LEAKS, LoadBoard
    from engine import step_loop
    from engine.owners import Owners

    monkeypatch.setattr(step_loop, "IDLE_S", 0.02)
    engine, audits = make_engine(), []
    owners, others = Owners(LoadBoard()), Owners(LoadBoard())

    def audit(engine):
        owners.audit(engine, others)
        audits.append(BLOCK_LEAKS._value.get())

    def hold(engine):
        held = engine.add(make_generation([1], max_tokens=1), prefill_only=True)
        others.expect(held, object())
        return held

    async def audited(num):
        async with asyncio.timeout(10):
            await until(lambda: len(audits) >= num)

    before = BLOCK_LEAKS._value.get()
    loop = StepLoop(engine, lambda step: None, on_idle=audit)
    loop.start()
    await audited(1)
    held = await loop.call(hold)
    await audited(2)
    assert held.state is RequestState.HELD
    await loop.call(lambda engine: engine.blocks._free.popleft())  # neither held nor free
    await audited(3)
    await asyncio.sleep(0.1)
    assert audits == [before, before, before + 1]  # once for each time that it got idle
    assert "do not add up" in caplog.text
    await loop.stop()
