"""What the legs of a prefill node are told of the engine's steps, and what is counted."""

import asyncio
from types import SimpleNamespace

import pytest

from baton.errors import NumericalError
from baton.kv.prefix_hash import root_hash
from baton.node.load import CACHED_TOKENS, OUTPUT_TOKENS, PROMPT_TOKENS, LoadBoard
from baton.request import FinishReason, Generation, SamplingParams
from engine.outputs import NO_TOKEN, StepOutput
from engine.request import Request
from prefill_node.legs import PrefillLeg
from prefill_node.outputs import Outputs

pytestmark = pytest.mark.anyio


def make(outputs: Outputs) -> tuple[Request, PrefillLeg]:
    generation = Generation(
        request_id="r", key=1, token_ids=[1, 2, 3], num_prompt_tokens=3, sampling=SamplingParams(), router_id="router"
    )
    request = Request(generation, root_hash("model", b""), 4, 0.0, prefill_only=True)
    request.num_cached_tokens = 2
    leg = PrefillLeg(generation, 2, lambda grant, block_ids: SimpleNamespace())  # type: ignore[arg-type, return-value]
    outputs.expect(request, leg)
    return request, leg


def counted() -> tuple[int, int, int]:
    return PROMPT_TOKENS.value, CACHED_TOKENS.value, OUTPUT_TOKENS.value


@pytest.mark.parametrize(
    ("was_set_aside", "error", "counts"),
    [(False, None, (3, 2, 1)), (False, NumericalError("NaN"), (3, 2, 0)), (True, None, (0, 0, 0))],
)
async def test_a_leg_is_told_once_and_its_tokens_are_counted_once(
    was_set_aside: bool, error: NumericalError | None, counts: tuple[int, int, int]
) -> None:
    outputs = Outputs(LoadBoard())
    request, leg = make(outputs)
    stranger, _ = make(outputs)
    outputs.forget(stranger)
    if was_set_aside:
        leg.set_aside()
    step = StepOutput(requests=[stranger, request], token_ids=[5, 7], indices=[0, 0])
    if error is not None:
        request.finish_reason, request.error = FinishReason.ERROR, error
        step = StepOutput(ended=[request])
    before = counted()
    for _ in range(2):
        outputs.deliver(step)
    output = leg.output.result()
    assert (output.token_id, output.error) == (7 if error is None else NO_TOKEN, error)
    assert tuple(after - was for after, was in zip(counted(), before, strict=True)) == counts


async def test_progress_is_passed_on_in_the_event_loop_to_legs_alone() -> None:
    outputs = Outputs(LoadBoard())
    request, leg = make(outputs)
    stranger, other = make(outputs)
    outputs.forget(stranger)
    request.block_ids = stranger.block_ids = [4, 5]
    told: list[tuple[int, int, list[int]]] = []
    leg.advance = other.advance = lambda *progress: told.append(progress)  # type: ignore[method-assign]
    progress = [SimpleNamespace(request=each, num_final_blocks=1) for each in (stranger, request)]
    await asyncio.to_thread(outputs.on_layer_group, 1, SimpleNamespace(progress=lambda: progress))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert told == [(1, 1, [4, 5])]
