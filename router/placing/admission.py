"""The queue of requests that wait for a node: their order, and the work ahead of each.

    1. class      high before normal before low
    2. tenant     within a class, the one that has had the fewest tokens so far (start-time fair queueing)
    3. deadline   within a tenant, the earliest

The queue is bounded per class. `ttft_predictor` predicts how long the work ahead takes. Nothing here reads a clock, so
a simulation can use the same rules.
"""

import heapq
import itertools

import msgspec

from baton.errors import Overloaded

CLASSES = ("high", "normal", "low")
MAX_RETRY_AFTER_S = 300.0
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
        return sum([queue.num_waiting for queue in self._classes])

    def push(self, entry: Waiting, retry_after_s: float = 1.0) -> None:
        """Add an entry. Raises Overloaded if the queue of its class is full."""
        queue = self._classes[entry.priority]
        if queue.num_waiting >= self._max_waiting:
            raise overloaded("too many requests are waiting at present", retry_after_s)
        queue.push(entry, next(self._order))

    def passed(self, tenant: str, priority: int, num_tokens: int) -> None:
        """Charge a tenant for a request that was placed at once, because the queue was empty."""
        self._classes[priority].passed(tenant, num_tokens)

    def remove(self, entry: Waiting, *, is_served: bool) -> None:
        """Remove an entry that has been placed (`is_served`) or has given up. Idempotent."""
        if not entry.is_gone:
            self._classes[entry.priority].remove(entry, is_served=is_served)

    def head(self) -> Waiting | None:
        """Return the entry whose turn it is, or None if the queue is empty."""
        for queue in self._classes:
            if queue.num_waiting:
                return queue.head()
        return None

    def ahead_ms(self, tenant: str, priority: int, work_ms: float) -> float:
        """Return the work, in milliseconds, that would be done before that of a new request."""
        higher = sum(queue.work_ms for queue in self._classes[:priority])
        return higher + self._classes[priority].ahead_ms(tenant, work_ms)


def overloaded(message: str, retry_after_s: float) -> Overloaded:
    """Return the error for a request that is refused, with a bounded retry time."""
    error = Overloaded(message)
    error.retry_after_s = min(max(retry_after_s, 1.0), MAX_RETRY_AFTER_S)
    return error
