"""UCX may crash under a node, and costs a transfer."""

import asyncio
import os
import signal
import time
from functools import partial

import psutil
import pytest

from baton.v1 import types_pb2
from tests.integration.nodes.routing import NodeProcess, Router, prompt_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def ucx_of(node: NodeProcess) -> psutil.Process:
    (found,) = [c for c in psutil.Process(node.process.pid).children() if "kv_transfer.ucx_child" in c.cmdline()]
    return found


class Stream:
    """Requests on the decode node, one after the other; every token is looked at."""

    def __init__(self, router: Router, expected: list[int], prompt: list[int]) -> None:
        self.num_tokens, self.longest_gap_s, self._over = 0, 0.0, False
        self.task = asyncio.create_task(self._run(router, expected, prompt))

    async def _run(self, router: Router, expected: list[int], prompt: list[int]) -> None:
        while not self._over:
            generation = router.generation(prompt, len(expected))
            await router.generate(generation)
            tokens: dict[int, int] = {}
            while len(tokens) < len(expected):
                since_s = time.monotonic()
                more = await router.wait_for(partial(self._more, router, generation, len(tokens)))
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - since_s)
                self.num_tokens += len(more) - len(tokens)
                tokens = more
            assert [tokens[index] for index in range(len(expected))] == expected

    def _more(self, router: Router, generation: types_pb2.Generation, num_seen: int) -> dict[int, int] | None:
        tokens = router.tokens(generation)
        return tokens if len(tokens) > num_seen else None

    async def end(self) -> None:
        self._over = True
        await self.task


@pytest.mark.parametrize("end", [signal.SIGSEGV, signal.SIGSTOP])
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_crash_within_ucx_costs_a_transfer_and_no_token(router: Router, role: str, end: signal.Signals) -> None:
    """Of the interrupted request there is another attempt; what the decode node runs meanwhile notices nothing."""
    if router.decode_node.transport != "ucx":
        pytest.skip("this pair has no UCX process")
    node = router.decode_node if role == "decode" else router.prefill_node
    await router.run_apart(router.generation(prompt_of(40, seed=40), 3))  # both are connected
    victim, restarts = ucx_of(node), node.metric("baton_kv_transport_restarts_total")
    beside, prompt = prompt_of(30, seed=41), prompt_of(300, seed=42 + int(end))
    undisturbed = await router.run_together(router.generation(beside, 200))
    stream = Stream(router, undisturbed, beside)
    os.kill(victim.pid, signal.SIGSTOP)  # so that the transfer is under way when it dies
    generation = router.generation(prompt, 8)
    await router.begin_apart(generation)
    if end is not signal.SIGSTOP:
        os.kill(victim.pid, end)
        os.kill(victim.pid, signal.SIGCONT)
    ways = (
        "transferred",
        "failed",
    )  # well where nothing was under way yet: the transfer has waited for the new process
    await router.prefill.wait_for(lambda: any(router.prefill.said(way, generation) for way in ways))
    failed = router.prefill.said("failed", generation)
    assert failed is None or failed.code in ("transfer_failed", "node_unavailable")
    await router.cancel(generation)
    num_tokens = stream.num_tokens
    again = (router.generation(prompt, 8, key=generation.key + 10_000 * i, attempt=i) for i in range(1, 100))
    assert await router.run_apart_at_last(again) == await router.run_together(router.generation(prompt, 8))
    await router.wait_for(lambda: stream.num_tokens > num_tokens)
    await stream.end()
    assert stream.longest_gap_s < 2
    assert node.metric("baton_kv_transport_restarts_total") > restarts
    assert (node.process.poll(), ucx_of(node).pid != victim.pid) == (None, True)
