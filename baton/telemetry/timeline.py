"""Where a request's time went, as far as one process saw it: a short list of events, on that process's monotonic clock.

Events are of requests, never of tokens: what happens in every step is summed up when somebody asks, or when the request
ends. A book keeps the last timelines, in order of their beginning, and drops the oldest.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from baton.v1 import trace_pb2

MAX_EVENTS = 256  # of one timeline
MAX_REQUESTS = 2048  # of one process
MAX_ATTEMPTS = 8  # of one request
MAX_PARTS = 128  # of one timeline

Value = str | int | float
_NO_VALUES: Mapping[str, Value] = {}


class Event(msgspec.Struct, frozen=True):
    """Something that took time, or happened at once (then both times are equal). Seconds."""

    name: str
    start_s: float
    end_s: float
    attributes: dict[str, Value] = {}


class Timeline:
    """One request, or one attempt at it, in one process."""

    def __init__(self, request_id: str, attempt: int = 0, traceparent: str = "") -> None:
        self.request_id = request_id
        self.attempt = attempt
        self.traceparent = traceparent  # of the span that it belongs to; empty where nobody traces
        self.parent = ""  # of the span above, where `traceparent` is its own
        self.name = ""
        self.began_s = time.monotonic()
        self.replied_s = 0.0
        self.ended_s = 0.0
        self.error = ""  # code
        self.attributes: Mapping[str, Value] = _NO_VALUES
        self.parts: Sequence[str] = ()  # ids of the timelines that this one is made of
        self.more: Callable[[], Iterable[Event]] | None = None  # what others know, while the request goes on
        self.on_end: Callable[[Timeline], None] | None = None
        self._events: list[Event] = []

    def add(self, name: str, start_s: float, **attributes: Value) -> None:
        """Something that began at `start_s`, on the monotonic clock, and is over now."""
        if len(self._events) < MAX_EVENTS:
            self._events.append(Event(name, start_s, max(start_s, time.monotonic()), attributes))

    def mark(self, name: str, **attributes: Value) -> None:
        """Something that happens now."""
        if len(self._events) < MAX_EVENTS:
            now_s = time.monotonic()
            self._events.append(Event(name, now_s, now_s, attributes))

    def reply(self) -> None:
        """The first answer goes out now."""
        self.replied_s = self.replied_s or time.monotonic()

    def end(self, error: str = "") -> None:
        """Nothing more will happen; what others know is taken over, so that they may be forgotten. Idempotent."""
        if self.ended_s:
            return
        self.ended_s, self.error = time.monotonic(), error
        if self.more is not None:
            self._events += list(self.more())[: MAX_EVENTS - len(self._events)]
            self.more = None
        if self.on_end is not None:
            self.on_end(self)

    def events(self) -> list[Event]:
        """All events, in the order of their beginning."""
        more = self.more() if self.more is not None else ()
        return sorted([*self._events, *more], key=lambda event: event.start_s)

    def to_proto(self, node_id: str) -> trace_pb2.Timeline:
        """The timeline as a router gets it: in seconds since its beginning."""
        return trace_pb2.Timeline(
            request_id=self.request_id,
            attempt=self.attempt,
            node_id=node_id,
            events=[_event(event, self.began_s) for event in self.events()],
            replied_s=max(0.0, self.replied_s - self.began_s) if self.replied_s else 0.0,
            ended_s=self.ended_s - self.began_s if self.ended_s else 0.0,
        )


class TimelineBook:
    """The last timelines of a process, by request. Bounded."""

    def __init__(self, max_requests: int = MAX_REQUESTS, on_end: Callable[[Timeline], None] | None = None) -> None:
        """`on_end` hears of every timeline that has ended."""
        self.on_end = on_end
        self._max_requests = max_requests
        self._requests: OrderedDict[str, dict[int, Timeline]] = OrderedDict()

    def add(self, timeline: Timeline) -> Timeline:
        """Keep it; of several with one id and attempt the latest is found."""
        if self.on_end is not None:
            timeline.on_end = self.on_end
        attempts = self._requests.pop(timeline.request_id, {})
        attempts[timeline.attempt] = timeline
        if len(attempts) > MAX_ATTEMPTS:
            del attempts[next(iter(attempts))]
        self._requests[timeline.request_id] = attempts
        if len(self._requests) > self._max_requests:
            self._requests.popitem(last=False)
        return timeline

    def find(self, request_id: str) -> list[Timeline]:
        """All attempts that are still known, in the order in which they began."""
        return list(self._requests.get(request_id, {}).values())


def from_proto(event: trace_pb2.TimelineEvent, offset_s: float) -> Event:
    """An event of another process, shifted onto this one's clock."""
    numbers = {name: int(value) if value.is_integer() else value for name, value in event.numbers.items()}
    attributes: dict[str, Value] = {**numbers, **event.texts}
    return Event(event.name, offset_s + event.start_s, offset_s + event.end_s, attributes)


def _event(event: Event, origin_s: float) -> trace_pb2.TimelineEvent:
    values = event.attributes.items()
    return trace_pb2.TimelineEvent(
        name=event.name,
        start_s=event.start_s - origin_s,
        end_s=event.end_s - origin_s,
        numbers={name: value for name, value in values if not isinstance(value, str)},
        texts={name: value for name, value in values if isinstance(value, str)},
    )
