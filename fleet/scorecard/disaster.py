"""Destructive items of the scorecard: only with --destructive, and only on a local fleet."""

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import Callable

from bench._load import workload
from bench._load.driver import Driver
from fleet import state
from fleet.home import Home
from fleet.scorecard.item import SMALLEST_VOCABULARY, Context, Item, Result, failed, unknown, when

_BACK_S = 60.0
_TIMEOUT_S = 60.0
_NUM_REQUESTS, _AT_A_TIME = 16, 4
_HARM_AFTER_S = 0.3


def a_dead_node_costs_nothing(context: Context) -> Result:
    """Check that no request fails when a decode node is killed under load, and that the node comes back."""
    return _harm(context, "decode", signal.SIGKILL)


def a_node_drains(context: Context) -> Result:
    """Check that no request fails when a prefill node gets SIGTERM under load, and that the node comes back."""
    return _harm(context, "prefill", signal.SIGTERM)


def _harm(context: Context, role: str, number: signal.Signals) -> Result:
    nodes = [p for p in context.local.processes if p.role == role and p.state == "ready"] if context.local else []
    if not context.destructive or not nodes:
        return unknown(f"needs --destructive and a local fleet: sends {number.name} to a {role} node under load")
    pid = nodes[0].pid
    if pid is None:
        return failed(f"{nodes[0].id} is not running")
    driver = asyncio.run(_load_and(context, lambda: os.killpg(pid, number)))
    bad = [stream for stream in driver.streams if not stream.ok]
    began_s = time.monotonic()
    is_back = _until_back(role, pid, len(nodes))
    effect = f"{number.name} to {nodes[0].id}: {len(bad)} of {len(driver.streams)} requests failed"
    if bad:
        return failed(f"{effect}, the first with {bad[0].status} {bad[0].error}")
    return when(
        is_back, f"{effect}; back after {time.monotonic() - began_s:.1f} s", f"{effect}; the node did not come back"
    )


async def _load_and(context: Context, harm: Callable[[], None]) -> Driver:
    shape = workload.Shape.fixed(context.model, 64, 96, SMALLEST_VOCABULARY)
    asked = list(itertools.islice(workload.conversations(shape, random.Random()), _NUM_REQUESTS))  # noqa: S311
    driver = Driver(context.client.target, _TIMEOUT_S)
    loading = asyncio.create_task(driver.closed(asked, _AT_A_TIME))
    await asyncio.sleep(_HARM_AFTER_S)
    harm()
    await loading
    return driver


def _until_back(role: str, without: int, number: int) -> bool:
    """Wait until `number` nodes are ready, not counting the harmed process; return whether they are."""
    deadline_s = time.monotonic() + _BACK_S
    while time.monotonic() < deadline_s:
        now = [p for p in state.running(Home.from_env()).processes if p.role == role and p.state == "ready"]
        if len(now) >= number and without not in {process.pid for process in now}:
            return True
        time.sleep(0.2)
    return False


ITEMS = (Item("failover", True, a_dead_node_costs_nothing), Item("drain", True, a_node_drains))
