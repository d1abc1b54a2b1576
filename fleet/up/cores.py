"""Assigns cores to the nodes of a local fleet, and says which processes yield to others.

Where cores are few, each pool gets half of them. A long prompt then takes no CPU time from the decode batch,
which is the purpose of two pools. Routers run on any core. Prefill nodes yield to them: otherwise routers would take
their CPU time from the decode batch, where every stream waits. Many cores are left to the operating system.
"""

import os
from dataclasses import dataclass

_FEW = 8
_PREFILL_NICENESS = 10


@dataclass(frozen=True)
class Share:
    """The cores to run on (empty: any), the number of compute threads, and the niceness (see nice(1))."""

    cores: frozenset[int]
    num_threads: int
    niceness: int = 0


def available() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def share(cores: list[int], role: str, num_nodes: int, *, colocated: bool, index: int = 0) -> Share:
    """Return the share of a pool's `index`-th of `num_nodes` nodes: separate cores if there are enough."""
    pool = _pool(cores, role, colocated)
    each = max(1, len(pool) // max(1, num_nodes))
    if num_nodes > 1:
        first = index % max(1, len(pool) // each) * each
        pool = pool[first : first + each]
    pinned = pool if len(cores) <= _FEW and hasattr(os, "sched_setaffinity") else []
    return Share(frozenset(pinned), each, _PREFILL_NICENESS if pinned and role == "prefill" else 0)


def _pool(cores: list[int], role: str, colocated: bool) -> list[int]:
    if colocated or len(cores) < 2:
        return cores
    half = len(cores) // 2
    return cores[:half] if role == "prefill" else cores[half:]
