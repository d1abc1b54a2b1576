"""Node processes, and what a router does with a pair of them."""

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baton.request import Generation, SamplingParams
from baton.v1 import node_pb2, prompt_pb2_grpc, transfer_pb2, types_pb2
from tests.metrics_page import samples
from tests.node_stream import WAIT_S, LegFailed, NodeStream

CHUNK = 64
TOKEN = "of this fleet"
BLOCK = 16
READY_S = 60.0  # for a node to start in, on a busy machine
PAUSE_S = 0.2  # between attempts: a UCX process that has died several times is back after 5 s
_keys = itertools.count(1)


class NodeProcess:
    """A node that runs until the fixture ends it, or the test."""

    def __init__(self, role: str, model: Path, redis_url: str, *flags: str, **env: str) -> None:
        command = [sys.executable, "-m", f"{role}_node", "--model", str(model), "--redis-url", redis_url]
        command += ["--num-threads", "1", "--max-num-batched-tokens", str(CHUNK), "--block-size", str(BLOCK), *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | env
        )
        self.transport = flags[flags.index("--transport") + 1]
        self.token = env.get("BATON_SERVICE_TOKEN", "")
        self.said: list[str] = []
        self.facts: dict[str, Any] = {}

    def wait_ready(self) -> "NodeProcess":
        assert self.process.stdout is not None
        late = threading.Timer(READY_S, self.process.kill)
        late.start()
        try:
            for line in self.process.stdout:
                self.said.append(line)
                if line.startswith("ready "):
                    self.facts = json.loads(line.removeprefix("ready "))
                    return self
        finally:
            late.cancel()
        raise AssertionError(f"exit code {self.process.wait()}, after {self.said}")

    @property
    def id(self) -> str:
        return str(self.facts["node_id"])

    @property
    def epoch(self) -> int:
        return int(self.facts["epoch"])

    @property
    def address(self) -> str:
        return str(self.facts["address"])

    def metric(self, name: str, **labels: str) -> float:
        ((label, value),) = labels.items() or (("role", self.facts["role"]),)
        return samples(self.facts["metrics_url"], name, label)[value]

    def held(self) -> tuple[float, float]:
        """(running, leased) blocks"""
        return tuple(self.metric("baton_kv_blocks", state=state) for state in ("running", "leased"))  # type: ignore[return-value]

    def end(self) -> int:
        self.process.kill()
        return self.process.wait()


class Router:
    """What a router does, for one pair of nodes. Cancels go to the decode node, unless it is said otherwise."""

    def __init__(self, prefill: NodeProcess, decode: NodeProcess, router_id: str = "") -> None:
        self.id = router_id or f"router-{next(_keys)}"
        self.prefill_node, self.decode_node = prefill, decode
        self.prefill, self.decode = (NodeStream(n.address, n.epoch, self.id, n.token) for n in (prefill, decode))
        self.metadata = self.decode.metadata
        self.prompts = [prompt_pb2_grpc.PromptStub(stream.channel) for stream in (self.prefill, self.decode)]
        self.wait_for, self.cancel = self.decode.wait_for, self.decode.cancel

    @property
    def batches(self) -> list[node_pb2.StepBatch]:
        return self.decode.batches

    async def attach(self) -> "Router":
        """Both nodes have heard of it: what was asked for before that is given up with the stream before."""
        for stream in (self.prefill, self.decode):
            await stream.attach()
            await stream.wait_for(lambda stream=stream: stream.batches)
        return self

    async def close(self) -> None:
        await self.prefill.close()
        await self.decode.close()

    def generation(self, prompt: list[int], num_tokens: int, **fields: Any) -> types_pb2.Generation:
        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        key = fields.setdefault("key", next(_keys))
        values: dict[str, Any] = {"num_prompt_tokens": len(prompt), "timeout_ms": 30_000} | fields
        return Generation(
            request_id=f"r{key}", token_ids=prompt, sampling=sampling, router_id=self.id, **values
        ).to_proto()

    async def generate(self, generation: types_pb2.Generation) -> None:
        await self.decode.start(generation)
        await self.decode.granted(generation)

    async def reserve(self, generation: types_pb2.Generation) -> transfer_pb2.Grant:
        await self.decode.start(generation, (self.prefill_node.id, self.prefill_node.epoch))
        return await self.decode.granted(generation)

    async def begin_apart(self, generation: types_pb2.Generation) -> None:
        """Both legs are begun, and the prefill node has the grant."""
        await self.prefill.start(generation)
        await self.prefill.grant(generation, await self.reserve(generation))

    def tokens(self, generation: types_pb2.Generation) -> dict[int, int]:
        return self.decode.tokens(generation)

    def finished(self, generation: types_pb2.Generation) -> types_pb2.Finished | None:
        word: types_pb2.Finished | None = self.decode.said("finished", generation)
        return word

    def started(self, generation: types_pb2.Generation) -> types_pb2.Started | None:
        word: types_pb2.Started | None = self.decode.said("started", generation)
        return word

    async def run_apart(self, generation: types_pb2.Generation, *, late_grant: bool = False) -> list[int]:
        """Prefill there, decode here: all output tokens."""
        await self.prefill.start(generation)
        if late_grant:
            await self.prefill.first_token(generation)
        await self.prefill.grant(generation, await self.reserve(generation))
        first = await self.prefill.first_token(generation)
        await self.prefill.word("transferred", generation)
        finished = await self.wait_for(lambda: self.finished(generation))
        assert finished.reason == types_pb2.FINISH_REASON_LENGTH, finished
        tokens = self.tokens(generation) | {first.index: first.token_id}
        return [tokens[index] for index in sorted(tokens)]

    async def run_apart_at_last(self, generations: Iterator[types_pb2.Generation]) -> list[int]:
        """As a router would: attempt after attempt, while the pair cannot exchange blocks, and not all at once."""
        async with asyncio.timeout(WAIT_S):
            for generation in generations:
                try:
                    return await self.run_apart(generation)
                except LegFailed:
                    await self.cancel(generation)
                    await asyncio.sleep(PAUSE_S)
        raise AssertionError("no attempt is left")

    async def run_together(self, generation: types_pb2.Generation) -> list[int]:
        await self.generate(generation)
        await self.wait_for(lambda: self.finished(generation))
        tokens = self.tokens(generation)
        return [tokens[index] for index in sorted(tokens)]


def prompt_of(num_tokens: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 512), k=num_tokens)


async def idle(*nodes: NodeProcess) -> None:
    """No block of these nodes is held by anybody; it must come true within 2 s."""
    deadline = time.monotonic() + 2
    while (held := [await asyncio.to_thread(node.held) for node in nodes]) != [(0, 0)] * len(nodes):
        assert time.monotonic() < deadline, held
        await asyncio.sleep(0.02)
