"""Which cores a node of a local fleet computes on, and what yields to what there.

Where cores are few, prefill and decode nodes get a half each: a long prompt then takes no time from the decode batch,
which is the point of having two pools. Routers run on any core. Prefill yields to them, since they would otherwise take
their time from the decode batch, where every stream waits for it. Many cores are left to the operating system.
"""

import os
from dataclasses import dataclass

_FEW = 8
_PREFILL_NICENESS = 10


@dataclass(frozen=True)
class Share:
    """Cores to run on (empty: any), compute threads to use, and the niceness to run with, see nice(1)."""

    cores: frozenset[int]
    num_threads: int
    niceness: int = 0


def available() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def share(cores: list[int], role: str, num_nodes: int, *, colocated: bool, index: int = 0) -> Share:
    """What the `index`-th of `num_nodes` nodes of a pool gets: cores of its own where they go round."""
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
