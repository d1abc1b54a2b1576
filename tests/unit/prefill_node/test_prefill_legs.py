import asyncio
from typing import cast

import pytest

from baton.request import Generation, SamplingParams
from kv_transfer.outgoing import OutgoingTransfer
from prefill_node.legs import PrefillLeg

pytestmark = pytest.mark.anyio


class Transfer:
    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def ready(self, layer_group: int, num_blocks: int) -> None:
        self.calls.append((layer_group, num_blocks))


def make_leg() -> PrefillLeg:
    generation = Generation(
        request_id="r", key=1, token_ids=[1], num_prompt_tokens=1, sampling=SamplingParams(), router_id="router"
    )
    return PrefillLeg(generation, num_layer_groups=3)


async def test_what_was_computed_before_the_grant_is_told_when_it_comes() -> None:
    leg, transfer = make_leg(), Transfer()
    leg.advance(0, 4, [7, 8, 9, 3, 5])
    leg.advance(1, 4, [7, 8, 9, 3, 5])
    leg.advance(0, 5, [7, 8, 9, 3, 5])
    leg.attach(cast(OutgoingTransfer, transfer))
    assert transfer.calls == [(0, 5), (1, 4)]
    assert leg.scheduled.result() == [7, 8, 9, 3, 5]
    leg.advance(2, 4, [7, 8, 9, 3, 5])
    assert transfer.calls[2:] == [(2, 4)]


async def test_a_cancel_reaches_an_owner_that_has_not_begun_yet() -> None:
    leg, cleaned = make_leg(), asyncio.Event()

    async def own() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    leg.owner = asyncio.create_task(own())
    leg.cancel()
    leg.cancel()
    await asyncio.wait([leg.owner])
    assert cleaned.is_set()


async def test_a_cancel_does_not_interrupt_cleaning_up() -> None:
    leg, go_on = make_leg(), asyncio.Event()

    async def own() -> str:
        leg.is_ending = True
        await go_on.wait()
        return "cleaned"

    leg.owner = cast("asyncio.Task[None]", asyncio.create_task(own()))
    await asyncio.sleep(0)
    leg.cancel()
    await asyncio.sleep(0)
    go_on.set()
    assert await leg.owner == "cleaned"
