"""The garbage collector of a process that loads much and keeps it: import this first, call `settle` when all is loaded.

Torch alone makes 200,000 objects that stay. To look through them again and again while they come takes a quarter of the
time that a node takes to start, and later a tenth of a second each time, in which no other thread of it runs.
"""

import gc

gc.disable()


def settle() -> None:
    """What is there stays, and is not looked at any more; what comes from now on is collected as usual."""
    gc.freeze()
    gc.enable()
