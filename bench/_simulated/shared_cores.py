"""What the pools take from each other where they share cores or memory: while one works, the other is slower."""

from collections.abc import Sequence

from bench._simulated.decode_node import DecodeNode
from bench._simulated.hardware import Hardware
from bench._simulated.prefill_node import PrefillNode

_STEP = 0.1  # of a pool; smaller changes are not passed on


class SharedCores:
    """`share` after whatever happened. Pools that take nothing from each other cost nothing."""

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
        """Every node gets the speed that the other pool leaves it."""
        for pair in self._pairs:
            pair.share()


class _Pair:
    def __init__(
        self,
        busy: Sequence[PrefillNode] | Sequence[DecodeNode],
        slowed: Sequence[PrefillNode] | Sequence[DecodeNode],
        beside: float,
    ) -> None:
        self._busy, self._slowed, self._beside = busy, slowed, beside
        self._told = 0.0

    def share(self) -> None:
        working = sum(node.is_busy for node in self._busy) / len(self._busy)
        if abs(working - self._told) < _STEP:
            return
        self._told = working
        for node in self._slowed:
            node.slow_down(1 + (self._beside - 1) * working)
