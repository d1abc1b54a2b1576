"""Network faults for `baton chaos`. Each node has a network namespace, as if it were on a host of its own.

Firewall rules inside a namespace cut a node off from one peer, from all, or in one direction; packets are lost; a link
becomes slow; a node's UCX process dies or freezes by itself. This needs root, `ip`, `iptables` and `tc`, and affects
nothing else on the host.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals

import psutil

from baton.errors import BatonError
from fleet.chaos.acts import Act, Done
from fleet.chaos.faults import Fault
from fleet.chaos.fleet import PrivateFleet
from fleet.chaos.hosts import BRIDGE_HOST, REDIS_HOST, NetworkFleet

_TOOLS = ("ip", "iptables", "tc")
_HOLD_S = 8.0
_Rules = list[tuple[str, ...]]
_SLOW = ("root", "tbf", "rate", "4mbit", "burst", "16kb", "latency", "400ms")


def unavailable() -> str:
    """Return why namespaces cannot be created here, or an empty string."""
    if os.geteuid() != 0:
        return "creating network namespaces needs root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} is not installed"
    probe = f"baton-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], check=False, capture_output=True, timeout=10).returncode:
        return "this container may not create network namespaces"
    subprocess.run(["ip", "netns", "del", probe], check=False, capture_output=True, timeout=10)
    return ""


def _during(do: Callable[[NetworkFleet, int], _Rules]) -> Act:
    """Return an act that applies rules in namespaces for a while: (node, tool, arguments of the action)."""

    async def act(fleet: PrivateFleet, turn: int) -> Done:
        if not isinstance(fleet, NetworkFleet):
            raise TypeError("network faults need a fleet with network namespaces")
        rules = do(fleet, turn)
        for node, *rule in rules:
            fleet.within(node, *_begun(rule))
        try:
            await asyncio.sleep(_HOLD_S)
        finally:
            for node, *rule in rules:
                fleet.within(node, *_over(rule))
        return Done()

    return act


def _ucx_process(role: str, number: Signals) -> Act:
    """Signal the process in which a node runs UCX. A frozen one is resumed afterwards if its node has not killed it."""

    async def act(fleet: PrivateFleet, turn: int) -> Done:
        services = fleet.services(role)
        pid = services[turn % len(services)].pid
        children = psutil.Process(pid).children()
        process = next((child for child in children if "kv_transfer.ucx_child" in child.cmdline()), None)
        if process is None:
            raise BatonError(f"a {role} node has no UCX process")
        process.send_signal(number)
        await asyncio.sleep(_HOLD_S)
        if number is SIGSTOP:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(SIGCONT)
        return Done()

    return act


def _begun(rule: list[str]) -> list[str]:
    return ["iptables", "-A", *rule[1:]] if rule[0] == "drop" else ["tc", "qdisc", "add", "dev", "eth0", *rule[1:]]


def _over(rule: list[str]) -> list[str]:
    return ["iptables", "-D", *rule[1:]] if rule[0] == "drop" else ["tc", "qdisc", "del", "dev", "eth0", "root"]


def _apart(one: str, other: str, fleet: NetworkFleet, turn: int, *, to: bool = True, back: bool = True) -> _Rules:
    """Drop what node `one` sends to `other` (`to`), and what it receives from it (`back`)."""
    host = fleet.host(other, turn)
    rules: _Rules = []
    if to:
        rules.append((fleet.name(one, turn), "drop", "OUTPUT", "-d", host, "-j", "DROP"))
    if back:
        rules.append((fleet.name(one, turn), "drop", "INPUT", "-s", host, "-j", "DROP"))
    return rules


def _all(rule: tuple[str, ...], fleet: NetworkFleet, turn: int) -> _Rules:
    return [(node, *rule) for node in fleet.nodes]


def _one(role: str, rule: tuple[str, ...], fleet: NetworkFleet, turn: int) -> _Rules:
    return [(fleet.name(role, turn), *rule)]


_ROUTER, _REDIS = BRIDGE_HOST, REDIS_HOST
_LOSS = ("drop", "INPUT", "-m", "statistic", "--mode", "random", "--probability", "0.01", "-j", "DROP")
_SILENCE = ("drop", "OUTPUT", "-j", "DROP")
_CUTS: dict[str, Callable[[NetworkFleet, int], _Rules]] = {
    "a pair of nodes apart": partial(_apart, "prefill", "decode"),
    "prefill to decode lost": partial(_apart, "prefill", "decode", back=False),
    "decode to prefill lost": partial(_apart, "prefill", "decode", to=False),
    "router and decode apart": partial(_apart, "decode", _ROUTER),
    "router to decode lost": partial(_apart, "decode", _ROUTER, to=False),
    "decode to router lost": partial(_apart, "decode", _ROUTER, back=False),
    "router and prefill apart": partial(_apart, "prefill", _ROUTER),
    "router to prefill lost": partial(_apart, "prefill", _ROUTER, to=False),
    "decode and redis apart": partial(_apart, "decode", _REDIS),
    "a decode node mute to all": partial(_one, "decode", _SILENCE),
    "a slow link": partial(_one, "prefill", ("slow", *_SLOW)),
}
FAULTS = (
    *(Fault(f"network: {name}", _during(cut)) for name, cut in _CUTS.items()),
    Fault("network: 1 % of packets lost", _during(partial(_all, _LOSS)), max_failovers=0),
)
UCX_FAULTS = tuple(
    Fault(f"network: UCX of a {role} node {what}", _ucx_process(role, number))
    for role in ("prefill", "decode")
    for what, number in (("killed", SIGKILL), ("frozen", SIGSTOP))
)
