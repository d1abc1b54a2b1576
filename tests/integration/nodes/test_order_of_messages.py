"""A decode node's own parts in this process, so that the step thread can be ahead of the event loop."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from baton.node.load import LoadBoard
from baton.node.sessions import Sessions
from baton.process.settings import EngineFlags
from baton.request import Generation, SamplingParams
from baton.telemetry.timeline import TimelineBook
from baton.v1 import types_pb2
from decode_node.service import DecodeService
from engine.loading import load_engine
from engine.outputs import StepOutput
from engine.step_loop import StepLoop
from kv_transfer.pools import pool_of
from kv_transfer.receiver import KVReceiver

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_a_request_is_accepted_before_it_ends_however_late_the_event_loop_is(model: Path) -> None:
    """On a busy host the step thread can be done with a short request before the event loop hears that it is added."""
    engine = load_engine(model, EngineFlags(model=str(model), device="cpu", kv_memory="1MiB", num_threads=1))
    loop, over = asyncio.get_running_loop(), threading.Event()

    def on_output(step: StepOutput) -> None:
        loop.call_soon_threadsafe(service.deliver, step)
        if step.ended:
            over.set()

    step_loop, sessions = StepLoop(engine, on_output), Sessions(7, types_pb2.Load)
    receiver = KVReceiver(pool_of(engine.pool, engine.layout, engine.num_blocks), "decode", 7, "127.0.0.1", "tcp")
    shell: Any = SimpleNamespace(sessions=sessions, board=LoadBoard(), timelines=TimelineBook())
    service = DecodeService(engine, step_loop, shell, receiver)
    session, _ = sessions.attach("router")
    generation = Generation(
        request_id="r", key=1, token_ids=[5, 6, 7], num_prompt_tokens=3, router_id="router",
        sampling=SamplingParams(temperature=0, max_tokens=2, ignore_eos=True),
    )  # fmt: skip
    step_loop.start()
    service.begin(generation, "", 0)
    await asyncio.sleep(0)  # its owner has called the step thread, and waits for the answer
    assert over.wait(30)  # the event loop stands still
    [leg] = service._legs
    await asyncio.wait_for(leg.owner, 30)
    batch = session.take()
    assert [word.key for word in batch.granted] == [1]
    assert [word.num_output_tokens for word in batch.finished] == [2]
    await step_loop.call(lambda engine: None)  # after what its owner has left behind
    assert service.outputs.of(leg.reserved()) is None
    await step_loop.stop()
    await receiver.close()
