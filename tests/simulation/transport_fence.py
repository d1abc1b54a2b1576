"""Whether memory of a pool belongs to the transfer that touches it."""

import numpy as np

from tests.simulation.loop import Process, Violation


class Fence:
    """Knows which block a piece of pool memory is, and who may touch it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def check_write(self, view: memoryview) -> None:
        """Only blocks reserved for exactly one request, that were not in its prefix cache."""
        for block in self._blocks(view):
            engine = self._process.parts["engine"]
            owners = [
                request
                for request in engine._scheduler.requests()
                if block in request.block_ids or block in request.chain
            ]
            reserved = [
                r for r in owners if r.state.name == "RESERVED" and block in r.block_ids[r.num_present_blocks :]
            ]
            if len(owners) != 1 or not reserved:
                raise Violation(f"{self._process}: block {block} is written by a transfer, and not leased")

    def check_read(self, view: memoryview) -> None:
        """Only blocks that somebody holds."""
        for block in self._blocks(view):
            if not self._process.parts["engine"].blocks._ref_counts[block]:
                raise Violation(f"{self._process}: block {block} is read by a transfer, and free")

    def _blocks(self, view: memoryview) -> range:
        engine = self._process.parts["engine"]
        at = np.frombuffer(view, np.uint8).ctypes.data - engine.pool.data_ptr()
        size, num_blocks = engine.layout.block_group_bytes, engine.num_blocks
        if not 0 <= at < engine.layout.pool_bytes(num_blocks):
            return range(0)  # not of the pool: a copy that a fault has damaged
        first, last = at // size, (at + view.nbytes - 1) // size
        return range(first % num_blocks, last % num_blocks + 1)
