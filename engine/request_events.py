"""Where a request's time went in the engine, as events of its timeline."""

from collections.abc import Iterator

from baton.telemetry.timeline import Event
from engine.request import Request
from engine.step_times import StepTimes


def events(request: Request, steps: StepTimes, *, is_shipped: bool = False) -> Iterator[Event]:
    """Yield its wait for the first step, each chunk of its prompt (or, if its KV was shipped, its first step), and a
    summary of its decode steps."""
    if not request.first_scheduled_s:
        return
    yield Event("admission" if is_shipped else "engine queue", request.arrival_s, request.first_scheduled_s)
    for chunk in list(request.chunks):
        name = "first step" if is_shipped and chunk.num_tokens == 1 else "prefill chunk"
        yield Event(name, chunk.start_s, chunk.end_s, {"num_tokens": chunk.num_tokens})
    if not request.prefill_only and request.chunks:
        last = steps.num_steps if request.last_step < 0 else request.last_step
        yield from steps.events(request.chunks[-1].step + 1, last)
    if request.num_preemptions:
        at_s = request.chunks[-1].start_s if request.chunks else request.first_scheduled_s
        yield Event("preempted", at_s, at_s, {"times": request.num_preemptions})
