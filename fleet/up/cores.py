"""Which cores a node of a local fleet computes on.

Where cores are few, prefill and decode nodes get a half each: a long prompt then takes no time from the decode batch,
which is the point of having two pools. Many cores are left to the operating system.
"""

import os
from dataclasses import dataclass

_FEW = 8


@dataclass(frozen=True)
class Share:
    """Cores to run on (empty: any) and compute threads to use."""

    cores: frozenset[int]
    num_threads: int


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
    return Share(frozenset(pinned), each)


def _pool(cores: list[int], role: str, colocated: bool) -> list[int]:
    if colocated or len(cores) < 2:
        return cores
    half = len(cores) // 2
    return cores[:half] if role == "prefill" else cores[half:]
