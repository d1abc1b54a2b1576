"""How long a node has said nothing, in ticks of this process's own loop: so a stall of the process suspects nobody."""

TICK_S = 0.125
SUSPECT_TICKS = 9  # two lost packets are resent by then
LOST_TICKS = 16
HOPELESS_TICKS = 40
_UNUSUAL = 2.0  # times the longest silence of late: on a busy host words come late
_FORGETTING = 0.995  # of that, a message


class Silence:
    """The silence on a link; the same object serves each of its streams in turn."""

    def __init__(self) -> None:
        self._ticks = 0
        self._usual_ticks = 0.0

    @property
    def is_short(self) -> bool:
        """Whether the node has been heard just now."""
        return self._ticks < SUSPECT_TICKS

    @property
    def is_unusual(self) -> bool:
        """Whether it is longer than this node's silences are."""
        return self._ticks >= max(SUSPECT_TICKS, _UNUSUAL * self._usual_ticks)

    @property
    def is_final(self) -> bool:
        """Whether requests give the node up that can go elsewhere."""
        return self._ticks >= LOST_TICKS

    @property
    def is_hopeless(self) -> bool:
        """Whether all requests give the node up."""
        return self._ticks >= HOPELESS_TICKS

    def begin(self) -> None:
        """A new stream."""
        self._ticks = 0

    def tick(self) -> None:
        """TICK_S have passed."""
        self._ticks += 1

    def end(self) -> None:
        """A message has come."""
        self._usual_ticks = max(float(self._ticks), self._usual_ticks * _FORGETTING)
        self._ticks = 0
