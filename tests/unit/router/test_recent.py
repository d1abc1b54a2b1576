import random

import msgspec
import pytest

from router import recent
from router.recent import NUM_SLOTS, SLOT_S, Recent, Slot, from_json, merged, percentiles_ms, to_json


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_slots_follow_the_clock_and_are_bounded():
    clock = Clock()
    seen = Recent(clock)
    seen.request(200, 10, 5, 4)
    clock.now += SLOT_S
    seen.request(429, 0, 0, 0)
    seen.request(503, 0, 0, 0)
    seen.request(500, 0, 0, 0)
    slots = seen.slots()
    assert [(s.requests, s.errors, s.refused) for s in slots] == [(3, 1, 2), (1, 0, 0)]
    assert (slots[1].prompt_tokens, slots[1].output_tokens, slots[1].cached_tokens) == (10, 5, 4)
    clock.now += 3 * SLOT_S
    assert [s.requests for s in seen.slots()] == [0, 0, 0, 3, 1]
    clock.now += 1e6
    assert len(seen.slots()) == NUM_SLOTS
    assert merged(seen.slots()) == Slot()


def test_percentiles_are_right_to_five_percent():
    rng = random.Random(1)
    times = sorted(rng.lognormvariate(-3, 1) for _ in range(5000))
    seen = Recent(Clock())
    for seconds in times:
        seen.ttft(seconds)
    found = percentiles_ms(seen.slots()[0].ttft)
    for share, value in zip((0.5, 0.95, 0.99), found, strict=True):
        assert value == pytest.approx(1000 * times[int(share * 5000) - 1], rel=0.055)
    assert percentiles_ms({}) == [None, None, None]
    seen.tpot(0.0)  # shorter than the smallest bucket
    assert percentiles_ms(seen.slots()[0].tpot)[0] == pytest.approx(0.1, rel=0.06)


def test_routers_add_up_what_they_tell_one_another():
    first, second = Recent(Clock()), Recent(Clock())
    first.ttft(0.1)
    second.ttft(0.1)
    second.ttft(0.5)
    first.transfer("p0", "d0", 100)
    second.transfer("p0", "d0", 50)
    second.transfer("p0", "d1", 7)
    told = from_json(msgspec.json.decode(msgspec.json.encode(to_json(second.slots()))))
    total = merged([*first.slots(), *told])
    assert sorted(total.ttft.values()) == [1, 2]
    assert total.flows == {"p0>d0": (150, 2), "p0>d1": (7, 1)}
    assert first.slots()[0].flows == {"p0>d0": (100, 1)}


@pytest.mark.parametrize("value", [None, 3, [{"requests": "many"}], [{"ttft": {"x": 1}}]])
def test_what_is_no_list_of_slots_is_refused(value):
    with pytest.raises(msgspec.ValidationError):
        from_json(value)


def test_a_long_answer_is_cut():
    assert len(from_json([{}] * (recent.NUM_SLOTS + 9))) == recent.NUM_SLOTS
