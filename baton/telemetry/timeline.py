"""Timelines: where a request's time went in one process, as a short list of events on its monotonic clock.

There are no events for single tokens: what happens in every step is summed up when a timeline is read, or when the
request ends. A `TimelineBook` keeps the most recent timelines.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from baton.v1 import trace_pb2

MAX_EVENTS = 256  # per timeline
MAX_REQUESTS = 2048  # per process
MAX_ATTEMPTS = 8  # per request
MAX_PARTS = 128  # per timeline

Value = str | int | float
_NO_VALUES: Mapping[str, Value] = {}


class Event(msgspec.Struct, frozen=True):
    """Something that took time, or happened at one moment (then both times are equal)."""

    name: str
    start_s: float
    end_s: float
    attributes: dict[str, Value] = {}


class Timeline:
    """One request, or one attempt at it, in one process."""

    def __init__(self, request_id: str, attempt: int = 0, traceparent: str = "") -> None:
        self.request_id = request_id
        self.attempt = attempt
        self.traceparent = traceparent  # of the span that it belongs to; empty if the request is not traced
        self.parent = ""  # `traceparent` of the span above, if the one in `traceparent` is the timeline's own
        self.name = ""  # name of its span, if `traceparent` is its own
        self.began_s = time.monotonic()
        self.replied_s = 0.0
        self.ended_s = 0.0
        self.error = ""  # error code
        self.attributes: Mapping[str, Value] = _NO_VALUES
        self.parts: Sequence[str] = ()  # request ids of the timelines that this one is made of
        self.more: Callable[[], Iterable[Event]] | None = None  # returns events kept elsewhere until the request ends
        self.on_end: Callable[[Timeline], None] | None = None
        self._events: list[Event] = []

    def add(self, name: str, start_s: float, **attributes: Value) -> None:
        """Add an event that began at `start_s`, on the monotonic clock, and ends now."""
        if len(self._events) < MAX_EVENTS:
            self._events.append(Event(name, start_s, max(start_s, time.monotonic()), attributes))

    def mark(self, name: str, **attributes: Value) -> None:
        """Add an event that happens now."""
        if len(self._events) < MAX_EVENTS:
            now_s = time.monotonic()
            self._events.append(Event(name, now_s, now_s, attributes))

    def reply(self) -> None:
        """Note that the first reply is sent now. Later calls have no effect."""
        self.replied_s = self.replied_s or time.monotonic()

    def end(self, error: str = "") -> None:
        """End the timeline, and copy the events from `more`, so that their source may be freed. Idempotent."""
        if self.ended_s:
            return
        self.ended_s, self.error = time.monotonic(), error
        if self.more is not None:
            self._events += list(self.more())[: MAX_EVENTS - len(self._events)]
            self.more = None
        if self.on_end is not None:
            self.on_end(self)

    def events(self) -> list[Event]:
        """Return all events, ordered by start."""
        more = self.more() if self.more is not None else ()
        return sorted([*self._events, *more], key=lambda event: event.start_s)

    def to_proto(self, node_id: str) -> trace_pb2.Timeline:
        """Convert to the message that routers get, with times in seconds since the timeline's start."""
        return trace_pb2.Timeline(
            request_id=self.request_id,
            attempt=self.attempt,
            node_id=node_id,
            events=[_event(event, self.began_s) for event in self.events()],
            replied_s=max(0.0, self.replied_s - self.began_s) if self.replied_s else 0.0,
            ended_s=self.ended_s - self.began_s if self.ended_s else 0.0,
        )


class TimelineBook:
    """The timelines of a process's last `max_requests` requests."""

    def __init__(self, max_requests: int = MAX_REQUESTS, on_end: Callable[[Timeline], None] | None = None) -> None:
        """`on_end` is called with every timeline that has ended."""
        self.on_end = on_end
        self._max_requests = max_requests
        self._requests: OrderedDict[str, dict[int, Timeline]] = OrderedDict()

    def add(self, timeline: Timeline) -> Timeline:
        """Add a timeline and return it. It replaces an earlier one of the same request and attempt."""
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
        """Return the timelines of all attempts at a request that are still kept, oldest first."""
        return list(self._requests.get(request_id, {}).values())


def from_proto(event: trace_pb2.TimelineEvent, offset_s: float) -> Event:
    """Convert an event of another process; `offset_s` shifts it to this process's clock."""
    numbers = {name: int(value) if value.is_integer() else value for name, value in event.numbers.items()}
    attributes: dict[str, Value] = dict(sorted({**numbers, **event.texts}.items()))  # a map of protobuf has no order
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
