"""The queue of requests that wait for a node: their order, the predicted wait, and early refusal.

    1. class      high before normal before low
    2. tenant     within a class, the one that has had the fewest tokens so far (start-time fair queueing)
    3. deadline   within a tenant, the earliest

The queue is bounded per class. A request that would wait longer than it may is refused at once, with a time after which
to retry, instead of after having waited. Nothing here reads a clock, so a simulation can use the same rules.
"""

import heapq
import itertools

import msgspec

from baton.errors import Overloaded

CLASSES = ("high", "normal", "low")
MAX_RETRY_AFTER_S = 300.0
TTFT_MARGIN = 1.1  # initial factor on predicted TTFTs: half of all waits are longer than predicted
_MAX_MARGIN = 4.0
_RISE, _FALL = 0.2, 0.001  # step size of the margin, after a first token later or earlier than it allows
# slowness: its upper bound, its learning rate, and the least time to first token that it is learned from
_MAX_SLOWNESS, _LEARNING, _TELLING_S = 8.0, 0.05, 0.1
_CUT_OFF = 1.5  # for a request that gave up: its assumed TTFT, as a multiple of the time that it waited
_FADING_S = 10.0  # after which what was learned no longer counts
_MAX_IDLE_TENANTS = 4096


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests a router accepts, and how long it lets them wait."""

    max_in_flight: int = 4096
    max_waiting: int = 1024  # per class
    max_full_wait_s: float = 30.0  # while nodes are alive but full; then a request is refused
    max_ttft_s: float = 0.0  # requests predicted to take longer are refused at once; 0: no limit


class Waiting(msgspec.Struct, kw_only=True, eq=False):
    """One request in the queue."""

    tenant: str = ""
    priority: int = 1  # index into CLASSES
    deadline_s: float
    num_tokens: int
    work_ms: float  # predicted time to compute its prompt
    ttft_s: float = 0.0  # predicted when it arrived
    is_gone: bool = False


class _Tenant(msgspec.Struct, eq=False):
    started: float  # virtual start time of its next request, in tokens served
    waiting: list[tuple[float, int, Waiting]]  # a heap by deadline
    work_ms: float = 0.0


class _Class:
    """The queue of one class."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.work_ms = 0.0
        self.tenants: dict[str, _Tenant] = {}
        self._virtual = 0.0
        self._idle: dict[str, float] = {}  # tenants without waiting requests that have had more tokens than others

    def push(self, entry: Waiting, order: int) -> None:
        tenant = self.tenants.get(entry.tenant)
        if tenant is None:
            started = max(self._virtual, self._idle.pop(entry.tenant, 0.0))
            tenant = self.tenants[entry.tenant] = _Tenant(started, [])
        heapq.heappush(tenant.waiting, (entry.deadline_s, order, entry))
        tenant.work_ms += entry.work_ms
        self.work_ms += entry.work_ms
        self.num_waiting += 1

    def remove(self, entry: Waiting, *, is_served: bool) -> None:
        tenant = self.tenants[entry.tenant]
        entry.is_gone = True
        tenant.work_ms -= entry.work_ms
        self.work_ms -= entry.work_ms
        self.num_waiting -= 1
        if is_served:
            self._virtual = max(self._virtual, tenant.started)
            tenant.started += entry.num_tokens
        while tenant.waiting and tenant.waiting[0][2].is_gone:
            heapq.heappop(tenant.waiting)
        if not tenant.waiting:
            del self.tenants[entry.tenant]
            self._rest(entry.tenant, tenant.started)

    def passed(self, tenant: str, num_tokens: int) -> None:
        """Count a request that was placed at once, because the queue was empty."""
        self._virtual = max(self._virtual, self._idle.pop(tenant, 0.0))
        self._rest(tenant, self._virtual + num_tokens)

    def head(self) -> Waiting | None:
        tenants = self.tenants.values()
        return min(tenants, key=lambda t: (t.started, t.waiting[0][:2])).waiting[0][2] if tenants else None

    def ahead_ms(self, tenant_name: str, work_ms: float) -> float:
        """Return the work ahead of a new request: its tenant's, and what of others would be served meanwhile."""
        mine = self.tenants.get(tenant_name)
        own_ms = mine.work_ms if mine else 0.0
        others = (min(t.work_ms, own_ms + work_ms) for name, t in self.tenants.items() if name != tenant_name)
        return own_ms + sum(others)

    def _rest(self, name: str, started: float) -> None:
        if started > self._virtual:
            self._idle[name] = started
        if len(self._idle) > _MAX_IDLE_TENANTS:
            self._idle = {name: at for name, at in self._idle.items() if at > self._virtual}
            while len(self._idle) > _MAX_IDLE_TENANTS:
                del self._idle[next(iter(self._idle))]


class AdmissionQueue:
    """The queue of one router: one per class."""

    def __init__(self, max_waiting: int = 1024) -> None:
        """`max_waiting`: bound on the requests of each class."""
        self._max_waiting = max_waiting
        self._classes = [_Class() for _ in CLASSES]
        self._order = itertools.count()

    def __len__(self) -> int:
        return sum([line.num_waiting for line in self._classes])

    def push(self, entry: Waiting, retry_after_s: float = 1.0) -> None:
        """Add an entry. Raises Overloaded if the queue of its class is full."""
        line = self._classes[entry.priority]
        if line.num_waiting >= self._max_waiting:
            raise overloaded("too many requests are waiting at present", retry_after_s)
        line.push(entry, next(self._order))

    def passed(self, tenant: str, priority: int, num_tokens: int) -> None:
        """Charge a tenant for a request that was placed at once, because the queue was empty."""
        self._classes[priority].passed(tenant, num_tokens)

    def remove(self, entry: Waiting, *, is_served: bool) -> None:
        """Remove an entry that has been placed (`is_served`) or has given up. Idempotent."""
        if not entry.is_gone:
            self._classes[entry.priority].remove(entry, is_served=is_served)

    def head(self) -> Waiting | None:
        """Return the entry whose turn it is, or None if the queue is empty."""
        for line in self._classes:
            if line.num_waiting:
                return line.head()
        return None

    def ahead_ms(self, tenant: str, priority: int, work_ms: float) -> float:
        """Return the work, in milliseconds, that would be done before that of a new request."""
        higher = sum(line.work_ms for line in self._classes[:priority])
        return higher + self._classes[priority].ahead_ms(tenant, work_ms)


class Drain:
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


def overloaded(message: str, retry_after_s: float) -> Overloaded:
    """Return the error for a request that is refused, with a bounded retry time."""
    error = Overloaded(message)
    error.retry_after_s = min(max(retry_after_s, 1.0), MAX_RETRY_AFTER_S)
    return error
