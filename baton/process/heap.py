"""Keeps the garbage collector away from what a process loads once and keeps.

Import this first: it turns the collector off. Call `settle` when everything is loaded. Torch alone creates 200,000
permanent objects. Traversing them again and again while they are created takes a quarter of a node's start-up time, and
later each full collection would take a tenth of a second, during which no other thread of the process runs.
"""

import gc

gc.disable()


def settle() -> None:
    """Exclude all present objects from collection, and collect new ones as usual."""
    gc.freeze()
    gc.enable()
