import time

from baton.telemetry import timeline, traceparent
from baton.telemetry.timeline import Event, Timeline, TimelineBook, from_proto
from baton.v1 import trace_pb2


def test_events_are_in_order_and_bounded() -> None:
    line = Timeline("r")
    for i in range(timeline.MAX_EVENTS + 5):
        line.mark(f"event {i}")
    line.more = lambda: [Event("earlier", 0.0, 1.0)]
    names = [event.name for event in line.events()]
    assert len(names) == timeline.MAX_EVENTS + 1
    assert names[:2] == ["earlier", "event 0"]


def test_events_of_other_recorders_are_added_once_at_the_end() -> None:
    line, asked = Timeline("r"), []
    line.more = lambda: asked.append(1) or [Event("step", 1.0, 2.0)]
    line.end("overloaded")
    line.end()
    assert (len(asked), line.more, line.error) == (1, None, "overloaded")
    assert [event.name for event in line.events()] == ["step"]


def test_times_in_protobuf_are_relative_to_the_arrival() -> None:
    line = Timeline("r", attempt=2)
    line.add("route", line.began_s + 0.25, num_blocks=7, peer="decode-0")
    line.reply()
    told = line.to_proto("prefill-0")
    assert (told.node_id, told.attempt, told.request_id) == ("prefill-0", 2, "r")
    assert abs(told.events[0].start_s - 0.25) < 1e-6
    assert 0 <= told.replied_s < 1
    back = from_proto(told.events[0], 100.0)
    assert abs(back.start_s - 100.25) < 1e-6
    assert back.attributes == {"num_blocks": 7, "peer": "decode-0"}


def test_attributes_from_another_process_are_in_alphabetical_order():
    names = ["p99_ms", "mean_batch", "num_steps", "max_ms", "p50_ms"]
    event = trace_pb2.TimelineEvent(name="decode steps", numbers=dict.fromkeys(names, 1.5), texts={"a": "x"})
    assert list(from_proto(event, 0.0).attributes) == sorted([*names, "a"])


def test_an_event_never_ends_before_it_begins() -> None:
    line = Timeline("r")
    line.add("in the future", time.monotonic() + 60)
    assert line.events()[0].end_s >= line.events()[0].start_s


def test_a_book_keeps_the_last_requests_with_their_attempts() -> None:
    ended: list[str] = []
    book = TimelineBook(2, on_end=lambda line: ended.append(line.request_id))
    first = book.add(Timeline("a"))
    book.add(Timeline("a", attempt=1))
    book.add(Timeline("b"))
    assert [line.attempt for line in book.find("a")] == [0, 1]
    book.add(Timeline("c"))
    assert not book.find("a")  # the one that was added to longest ago
    first.end()
    assert ended == ["a"]


def test_attempts_of_one_request_are_bounded() -> None:
    book = TimelineBook()
    for attempt in range(timeline.MAX_ATTEMPTS + 3):
        book.add(Timeline("a", attempt))
    assert [line.attempt for line in book.find("a")] == list(range(3, timeline.MAX_ATTEMPTS + 3))


def test_only_a_valid_traceparent_is_passed_on() -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    parsed = traceparent.parse(good)
    assert parsed is not None
    assert (parsed.trace_id, parsed.sampled) == (0x4BF92F3577B34DA6A3CE929D0E0E4736, True)
    for bad in (
        "",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        good.upper(),
        good + "x",
        "ff" + good[2:],
        good + "\r\n",
    ):
        assert traceparent.parse(bad) is None


def test_a_child_belongs_to_its_parents_trace() -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    child = traceparent.child(parent)
    assert child.startswith(parent[:36])
    assert child.endswith("-00")
    assert child != parent
    assert traceparent.is_sane(traceparent.child(""))
