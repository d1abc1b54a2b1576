"""Measures how long a node has been silent, in ticks of this process's event loop, so its own stalls hardly count."""

TICK_S = 0.125
SUSPECT_TICKS = 9  # 1.1 s: enough for TCP to retransmit two lost packets
LOST_TICKS = 16  # 2 s
HOPELESS_TICKS = 40  # 5 s
_UNUSUAL = 2.0  # a silence is unusual from this many times the longest recent one: on a busy host messages come late
_FORGETTING = 0.995  # decay of the longest recent silence, per message


class Silence:
    """The silence on a link, across its successive streams."""

    def __init__(self) -> None:
        self._ticks = 0
        self._usual_ticks = 0.0

    @property
    def is_short(self) -> bool:
        """Whether a message came recently."""
        return self._ticks < SUSPECT_TICKS

    @property
    def is_unusual(self) -> bool:
        """Whether it is too long for this node: then it is suspected."""
        return self._ticks >= max(SUSPECT_TICKS, _UNUSUAL * self._usual_ticks)

    @property
    def is_final(self) -> bool:
        """Whether the node counts as lost, if most of its pool is not silent."""
        return self._ticks >= LOST_TICKS

    @property
    def is_hopeless(self) -> bool:
        """Whether the node counts as lost in any case."""
        return self._ticks >= HOPELESS_TICKS

    def begin(self) -> None:
        """Start anew, for a new stream."""
        self._ticks = 0

    def tick(self) -> None:
        """Count one TICK_S of silence."""
        self._ticks += 1

    def end(self) -> None:
        """End the silence: a message has come."""
        self._usual_ticks = max(float(self._ticks), self._usual_ticks * _FORGETTING)
        self._ticks = 0
