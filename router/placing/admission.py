"""Requests that wait for a node: whose turn it is, how long a newcomer would wait, and whom to send away at once.

    1. class      high before normal before low
    2. tenant     within a class the one that has had the fewest tokens so far (start-time fair queueing)
    3. deadline   within a tenant the earliest

Bounded per class. Whoever would wait longer than it wants to is told so when it comes, and when to come again, instead
of after having waited. Pure: the clock is given, so a simulation admits by the same rules.
"""

import heapq
import itertools

import msgspec

from baton.errors import Overloaded

CLASSES = ("high", "normal", "low")
MAX_RETRY_AFTER_S = 300.0
TTFT_MARGIN = 1.1  # half of all waits are longer than predicted
_MAX_MARGIN = 4.0
_RISE, _FALL = 0.2, 0.001  # of the margin, with a first token later or earlier than it allows
_MAX_SLOWNESS, _LEARNING, _TELLING_S = 8.0, 0.05, 0.1
_CUT_OFF = 1.5  # what somebody who gave up is taken to have waited for, over what it did wait
_FADING_S = 10.0
_MAX_IDLE_TENANTS = 4096


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a router takes on, and for how long it lets that wait."""

    max_in_flight: int = 4096
    max_waiting: int = 1024  # of each class
    max_full_wait_s: float = 30.0  # with nodes alive but full, before a request is told to come again
    max_ttft_s: float = 0.0  # predicted; who would wait longer is told at once. 0: no limit


class Waiting(msgspec.Struct, kw_only=True, eq=False):
    """One request in line."""

    tenant: str = ""
    priority: int = 1  # index into CLASSES
    deadline_s: float
    num_tokens: int
    work_ms: float  # of computing its prompt, as predicted
    ttft_s: float = 0.0  # predicted when it came
    is_gone: bool = False


class _Tenant(msgspec.Struct, eq=False):
    started: float  # virtual time: tokens served, as it were
    waiting: list[tuple[float, int, Waiting]]  # a heap by deadline
    work_ms: float = 0.0


class _Class:
    """The line of one class."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.work_ms = 0.0
        self.tenants: dict[str, _Tenant] = {}
        self._virtual = 0.0
        self._idle: dict[str, float] = {}  # tenants that nobody waits for and that have had more than others

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
        """Count a request that was placed at once, as nobody waited."""
        self._virtual = max(self._virtual, self._idle.pop(tenant, 0.0))
        self._rest(tenant, self._virtual + num_tokens)

    def head(self) -> Waiting | None:
        tenants = self.tenants.values()
        return min(tenants, key=lambda t: (t.started, t.waiting[0][:2])).waiting[0][2] if tenants else None

    def ahead_ms(self, tenant_name: str, work_ms: float) -> float:
        """Work done before a newcomer's, of so much work: of each other tenant no more than it would get meanwhile."""
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
    """The line of one model."""

    def __init__(self, max_waiting: int = 1024) -> None:
        """`max_waiting` of each class."""
        self._max_waiting = max_waiting
        self._classes = [_Class() for _ in CLASSES]
        self._order = itertools.count()

    def __len__(self) -> int:
        return sum([line.num_waiting for line in self._classes])

    def push(self, entry: Waiting, retry_after_s: float = 1.0) -> None:
        """Get in line. Raises Overloaded where the line of that class is full."""
        line = self._classes[entry.priority]
        if line.num_waiting >= self._max_waiting:
            raise overloaded("too many requests wait at present", retry_after_s)
        line.push(entry, next(self._order))

    def passed(self, tenant: str, priority: int, num_tokens: int) -> None:
        """A newcomer was placed at once, as nobody waited: it counts for its tenant all the same."""
        self._classes[priority].passed(tenant, num_tokens)

    def remove(self, entry: Waiting, *, is_served: bool) -> None:
        """Take an entry out that has been placed (`is_served`), or has given up. Idempotent."""
        if not entry.is_gone:
            self._classes[entry.priority].remove(entry, is_served=is_served)

    def head(self) -> Waiting | None:
        """The entry whose turn it is; None where nobody waits."""
        for line in self._classes:
            if line.num_waiting:
                return line.head()
        return None

    def ahead_ms(self, tenant: str, priority: int, work_ms: float) -> float:
        """Work that would be done before that of a newcomer."""
        higher = sum(line.work_ms for line in self._classes[:priority])
        return higher + self._classes[priority].ahead_ms(tenant, work_ms)


class Drain:
    """How fast the line moves while its head is held back: work placed per time, lately. Other times say nothing.

    And how far predictions can be trusted: nodes slow down under load, a prompt ends with the batch that it is in. A
    first token that comes too late has cost as much as one in time, so the margin rises fast and falls slowly.
    """

    def __init__(self) -> None:
        self.margin = TTFT_MARGIN  # on a predicted TTFT
        self.slowness = 1.0  # time that a node's queue takes over what it is said to take
        self._began_s = self._came_s = 0.0  # when either was last learnt
        self._work_ms = self._time_ms = 0.0
        self._noted_s = 0.0
        self._is_held = False

    def held_back(self, now_s: float) -> None:
        """No node has room for the head of the line. What was known gets old meanwhile."""
        if not self._is_held:
            keep = max(1.0 - (now_s - self._noted_s) / _FADING_S, 0.0)
            self._work_ms, self._time_ms, self._noted_s = self._work_ms * keep, self._time_ms * keep, now_s
        self._is_held = True

    def emptied(self) -> None:
        """Nobody waits any more."""
        self._is_held = False

    def placed(self, work_ms: float, now_s: float) -> None:
        """Somebody who was in line was placed."""
        if self._is_held:
            elapsed_s = max(now_s - self._noted_s, 0.0)
            keep = max(1.0 - elapsed_s / _FADING_S, 0.0)
            self._work_ms = self._work_ms * keep + work_ms
            self._time_ms = self._time_ms * keep + 1000 * elapsed_s
            self._noted_s = now_s

    def began(self, predicted_s: float, elapsed_s: float, now_s: float) -> None:
        """A first token is here, so long after its request was placed. Nodes know what a step takes, and not what else
        keeps them: other processes on their cores, requests that have no place in a batch yet."""
        if elapsed_s > _TELLING_S:
            off = min(elapsed_s / max(predicted_s, 1e-3), _MAX_SLOWNESS) - self.slowness
            self.slowness += _LEARNING * off
            self._began_s = now_s

    def came(self, predicted_s: float, ttft_s: float, now_s: float) -> None:
        """The first token of somebody who had waited is here."""
        if predicted_s > 0:
            off = min(ttft_s / predicted_s, _MAX_MARGIN) - self.margin
            self.margin = max(self.margin + (_RISE if off > 0 else _FALL) * off, 1.0)
            self._came_s = now_s

    def forget(self, now_s: float) -> None:
        """What an overload has taught is not held against those that come when it is over, and nobody waits."""
        if now_s - self._began_s > _FADING_S:
            self.slowness = 1.0
        if now_s - self._came_s > _FADING_S:
            self.margin = TTFT_MARGIN

    def gave_up(self, predicted_s: float, waited_s: float, now_s: float) -> None:
        """Somebody was told that it had waited long enough: its first token would have come later still."""
        self.came(predicted_s, _CUT_OFF * waited_s, now_s)

    def check_ttft(self, predicted_s: float, limit_s: float) -> None:
        """Raise Overloaded, with a time after which there is less to wait for, where a first token would be late."""
        late_s = self.margin * predicted_s - limit_s
        if late_s > 0:
            raise overloaded("the first token would come later than it is wanted", late_s)

    def wait_ms(self, ahead_ms: float, num_nodes: int) -> float:
        """Until so much work ahead is placed. Before anything was seen every node is taken to work all the time."""
        assumed_ms = 1000.0  # of such work, mixed with what was seen
        rate = (self._work_ms + assumed_ms * max(num_nodes, 1)) / (self._time_ms + assumed_ms)
        return ahead_ms / rate


def overloaded(message: str, retry_after_s: float) -> Overloaded:
    """The error for a request that is sent away, with a sane time to come again."""
    error = Overloaded(message)
    error.retry_after_s = min(max(retry_after_s, 1.0), MAX_RETRY_AFTER_S)
    return error
