import numpy as np
import pytest

from engine.step_times import NUM_OUTLIERS, StepTimes


def filled(durations_s, capacity=64):
    times, now_s = StepTimes(capacity), 100.0
    for duration_s in durations_s:
        times.note(now_s, duration_s, 4)
        now_s += duration_s
    return times


def test_steps_are_summed_up_and_slow_ones_named():
    durations_s = [0.01] * 20
    durations_s[7] = 0.2
    whole, slow = filled(durations_s).events(2, 20)
    assert whole.attributes["num_steps"] == 18
    assert whole.attributes["p50_ms"] == pytest.approx(10)
    assert whole.attributes["max_ms"] == pytest.approx(200)
    assert whole.attributes["mean_batch"] == 4
    assert whole.start_s == pytest.approx(100.02)
    assert whole.end_s == pytest.approx(100 + sum(durations_s))
    assert slow.attributes == {"step": 5}  # the sixth of these
    assert slow.end_s - slow.start_s == pytest.approx(0.2)


def test_only_the_slowest_steps_are_named():
    durations_s = [0.01] * 40 + [0.1 + 0.01 * i for i in range(9)]
    events = list(filled(durations_s).events(0, len(durations_s)))
    assert len(events) == 1 + NUM_OUTLIERS
    lengths = [event.end_s - event.start_s for event in events[1:]]
    assert lengths == pytest.approx(durations_s[-NUM_OUTLIERS:])


def test_a_full_ring_still_reports_the_number_of_steps():
    times = filled(np.full(100, 0.01), capacity=16)
    (whole,) = times.events(0, 100)
    assert whole.attributes["num_steps"] == 100
    assert whole.end_s - whole.start_s == pytest.approx(0.16)
    assert list(times.events(0, 10)) == []
    assert list(times.events(100, 200)) == []
