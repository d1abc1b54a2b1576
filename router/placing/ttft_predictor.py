"""Predicts when a request that waits in the queue gets its first token, so that a hopeless one is refused at once.

A request that would wait longer than it may is refused with a time after which to retry, instead of after having
waited. Nothing here reads a clock, so a simulation can use the same rules.
"""

from router.placing.admission import overloaded

TTFT_MARGIN = 1.1  # initial factor on predicted TTFTs: half of all waits are longer than predicted
_MAX_MARGIN = 4.0
_RISE, _FALL = 0.2, 0.001  # step size of the margin, after a first token later or earlier than it allows
# slowness: its upper bound, its learning rate, and the least time to first token that it is learned from
_MAX_SLOWNESS, _LEARNING, _TELLING_S = 8.0, 0.05, 0.1
_CUT_OFF = 1.5  # for a request that gave up: its assumed TTFT, as a multiple of the time that it waited
_FADING_S = 10.0  # after which what was learned no longer counts


class TtftPredictor:
    """Learns how fast the queue moves, and how far predictions can be trusted.

    The speed is the work placed per time while the head of the queue is held back; other times do not show it.
    Predictions fall short because nodes slow down under load, and a prompt ends with its whole batch. A first token
    that is too late wastes the work on it, so the margin rises fast and falls slowly.
    """

    def __init__(self) -> None:
        self.margin = TTFT_MARGIN  # factor on a predicted TTFT
        self.slowness = 1.0  # actual over predicted time of a node's queue
        self._began_s = self._came_s = 0.0  # when slowness and margin were last updated
        self._work_ms = self._time_ms = 0.0
        self._noted_s = 0.0
        self._is_held = False

    def held_back(self, now_s: float) -> None:
        """Note that no node has room for the head of the queue. What was learned before is discounted by its age."""
        if not self._is_held:
            keep = max(1.0 - (now_s - self._noted_s) / _FADING_S, 0.0)
            self._work_ms, self._time_ms, self._noted_s = self._work_ms * keep, self._time_ms * keep, now_s
        self._is_held = True

    def emptied(self) -> None:
        """Note that the queue is empty."""
        self._is_held = False

    def placed(self, work_ms: float, now_s: float) -> None:
        """Note that a request from the queue was placed."""
        if self._is_held:
            elapsed_s = max(now_s - self._noted_s, 0.0)
            keep = max(1.0 - elapsed_s / _FADING_S, 0.0)
            self._work_ms = self._work_ms * keep + work_ms
            self._time_ms = self._time_ms * keep + 1000 * elapsed_s
            self._noted_s = now_s

    def began(self, predicted_s: float, elapsed_s: float, now_s: float) -> None:
        """Learn `slowness` from the time between placing a request and its first token.

        A node's prediction covers its steps, but not other delays: other processes on its cores, or requests that are
        not in a batch yet.
        """
        if elapsed_s > _TELLING_S:
            off = min(elapsed_s / max(predicted_s, 1e-3), _MAX_SLOWNESS) - self.slowness
            self.slowness += _LEARNING * off
            self._began_s = now_s

    def came(self, predicted_s: float, ttft_s: float, now_s: float) -> None:
        """Learn `margin` from the TTFT of a request that had waited."""
        if predicted_s > 0:
            off = min(ttft_s / predicted_s, _MAX_MARGIN) - self.margin
            self.margin = max(self.margin + (_RISE if off > 0 else _FALL) * off, 1.0)
            self._came_s = now_s

    def forget(self, now_s: float) -> None:
        """Reset what was learned during an overload once it is over: after _FADING_S without an update."""
        if now_s - self._began_s > _FADING_S:
            self.slowness = 1.0
        if now_s - self._came_s > _FADING_S:
            self.margin = TTFT_MARGIN

    def gave_up(self, predicted_s: float, waited_s: float, now_s: float) -> None:
        """Learn from a request that was refused after waiting: its first token would have come even later."""
        self.came(predicted_s, _CUT_OFF * waited_s, now_s)

    def check_ttft(self, predicted_s: float, limit_s: float) -> None:
        """Raise Overloaded if the predicted TTFT, with the margin, exceeds the limit. Retry after the excess."""
        late_s = self.margin * predicted_s - limit_s
        if late_s > 0:
            raise overloaded("the first token would come later than the limit allows", late_s)

    def wait_ms(self, ahead_ms: float, num_nodes: int) -> float:
        """Predict the time until the work ahead is placed. Without observations, each node is assumed to be busy."""
        assumed_ms = 1000.0  # weight of this assumption against what was observed
        rate = (self._work_ms + assumed_ms * max(num_nodes, 1)) / (self._time_ms + assumed_ms)
        return ahead_ms / rate
