"""What a decode leg knows of its request: how many tokens there are, and where the time to its first step went."""

import pytest

from baton.kv.prefix_hash import root_hash
from baton.request import Generation, SamplingParams
from decode_node import legs
from decode_node.legs import DecodeLeg
from engine.request import Request

pytestmark = pytest.mark.anyio


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(legs, "time", clock)
    return clock


def make() -> tuple[DecodeLeg, Request]:
    generation = Generation(
        request_id="r",
        key=1,
        token_ids=[1, 2, 3, 4],
        num_prompt_tokens=3,
        sampling=SamplingParams(),
        router_id="router",
    )
    return DecodeLeg(generation), Request(generation, root_hash("model", b""), 4, 0.0)


@pytest.mark.parametrize(
    ("is_shipped", "first_scheduled_s", "expected_s"),
    [
        (False, 103.0, (3.0, 1.0, 3.0)),
        (True, 105.5, (0.5, 0.0, 0.5)),
        (True, 0.0, (1.0, 0.0, 0.0)),  # the token that came with its KV was its last
    ],
)
async def test_the_time_to_its_first_step(
    clock: Clock, is_shipped: bool, first_scheduled_s: float, expected_s: tuple[float, float, float]
) -> None:
    leg, request = make()
    if is_shipped:
        clock.now_s = 105.0
        leg.begin_decoding()
    clock.now_s = 106.0
    request.first_scheduled_s, request.first_token_s, request.num_cached_tokens = first_scheduled_s, 104.0, 2
    started = leg.started(request)
    assert (started.queue_s, started.prefill_s, started.first_step_s) == expected_s
    assert (started.key, started.attempt, started.num_cached_tokens) == (1, 0, 2)


async def test_tokens_of_earlier_attempts_count() -> None:
    leg, request = make()
    assert leg.num_output_tokens == 1
    with pytest.raises(RuntimeError, match="reserved"):
        leg.reserved()
    request.append(5)
    leg.request = request
    assert leg.num_output_tokens == 2
    assert leg.reserved() is request
