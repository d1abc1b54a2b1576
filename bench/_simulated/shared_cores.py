"""The slowdown of pools that share cores or memory: while one works, the other is slower."""

from collections.abc import Sequence

from bench._simulated.decode_node import DecodeNode
from bench._simulated.hardware import Hardware
from bench._simulated.prefill_node import PrefillNode

_Nodes = Sequence[PrefillNode] | Sequence[DecodeNode]
_STEP = 0.1  # of a pool's utilization; smaller changes are ignored


class SharedCores:
    """Call `share` after every event. This costs nothing for pools that do not slow each other."""

    def __init__(self, hardware: Hardware, prefills: Sequence[PrefillNode], decodes: Sequence[DecodeNode]) -> None:
        self._pairs = [
            _Pair(busy, slowed, beside)
            for busy, slowed, beside in (
                (decodes, prefills, hardware.prefill_beside),
                (prefills, decodes, hardware.decode_beside),
            )
            if beside != 1.0 and busy
        ]

    def share(self) -> None:
        """Set the speed of each node by the activity of the other pool."""
        for pair in self._pairs:
            pair.share()


class _Pair:
    def __init__(self, busy: _Nodes, slowed: _Nodes, beside: float) -> None:
        self._busy, self._slowed, self._beside = busy, slowed, beside
        self._told = 0.0

    def share(self) -> None:
        working = sum(node.is_busy for node in self._busy) / len(self._busy)
        if abs(working - self._told) < _STEP:
            return
        self._told = working
        for node in self._slowed:
            node.slow_down(1 + (self._beside - 1) * working)
