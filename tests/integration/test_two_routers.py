"""Two routers that race for one decode node's blocks: the node owns them, and never promises one twice."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from baton.request import SamplingParams
from engine import random_checkpoint
from router.job import Job
from router.placing.admission import Limits
from router.serving.dispatch import Dispatcher
from tests.metrics_page import samples
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(110)]

BLOCK = 16


class Sink:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def on_tokens(self, tokens: list[int], logprobs: Any) -> None:
        self.tokens += tokens

    def on_finish(self, reason: Any, usage: Any) -> None:
        self.ended.set_result(self.tokens)

    def on_error(self, error: Any) -> None:
        self.ended.set_exception(error)


def start(role: str, model: Path, redis_url: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", f"{role}_node", "--model", str(model), "--redis-url", redis_url]
    command += ["--num-threads", "1", "--block-size", str(BLOCK), "--kv-memory", "256KiB", "--transport", "tcp"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def ready(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready "):
            return dict(json.loads(line.removeprefix("ready ")))
    raise AssertionError(f"exit code {process.wait()}")


@pytest.fixture
def decode_metrics(tmp_path: Path, redis_server: Any) -> Iterator[str]:
    """URL of the decode node's metrics; a prefill node is there as well."""
    model = random_checkpoint.write(tmp_path / "tiny")
    nodes = [start(role, model, redis_server.url) for role in ("prefill", "decode")]
    facts = [ready(node) for node in nodes]
    yield facts[1]["metrics_url"]
    for node in nodes:
        node.kill()
        node.wait()
        assert node.stdout is not None
        node.stdout.close()


def blocks(metrics_url: str) -> dict[str, float]:
    return samples(metrics_url, "baton_kv_blocks", "state")


def submit(router: Dispatcher, prompt: list[int]) -> Sink:
    sink = Sink()
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    router.submit(
        Job(request_id="r", token_ids=prompt, sampling=sampling, deadline_s=time.monotonic() + 80),
        sink,  # type: ignore[arg-type]
    )
    return sink


async def test_racing_routers_never_reserve_a_block_twice(redis_server: Any, decode_metrics: str) -> None:
    routers = [
        Dispatcher(redis_server.url, endpoint=f"127.0.0.1:{i}", limits=Limits(max_full_wait_s=80)) for i in (1, 2)
    ]
    for router in routers:
        await router.start()
    await until(lambda: all(router.ready for router in routers), 20)
    num_blocks = sum(blocks(decode_metrics).values())
    assert num_blocks > 0
    prompt_blocks = max(int(num_blocks) // 5, 1)  # room for four at a time
    prompts = [[3 + (i * 7 + k) % 500 for k in range(BLOCK * prompt_blocks)] for i in range(12)]
    alone = [await asyncio.wait_for(submit(routers[0], prompt).ended, 30) for prompt in prompts[:3]]
    sinks = [submit(router, prompt) for prompt in prompts for router in routers]  # 24 at once, each router blind
    seen, ended = [], asyncio.gather(*(sink.ended for sink in sinks))
    while not ended.done():
        seen.append(await asyncio.to_thread(blocks, decode_metrics))
        await asyncio.sleep(0.02)
    tokens = await ended
    is_whole = [sum(held.values()) == num_blocks and min(held.values()) >= 0 for held in seen]
    assert all(map(any, pairwise(is_whole)))  # a page may be written while its numbers change, but not twice in a row
    assert max(held["running"] + held["leased"] for held in seen) > num_blocks / 5  # there was a race
    assert tokens[0:6:2] == tokens[1:6:2] == alone  # a block written twice would show
    assert all(len(found) == 12 for found in tokens)
    for router in routers:
        await router.stop()
