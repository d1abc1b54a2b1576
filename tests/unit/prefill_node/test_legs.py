import asyncio
from typing import Any, cast

import pytest

from baton.errors import TransferError
from baton.request import Generation, SamplingParams
from baton.v1 import transfer_pb2
from prefill_node.legs import PrefillLeg

pytestmark = pytest.mark.anyio


class Transfer:
    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def ready(self, layer_group: int, num_blocks: int) -> None:
        self.calls.append((layer_group, num_blocks))


def make_leg(open_transfer: Any = None) -> PrefillLeg:
    generation = Generation(
        request_id="r", key=1, token_ids=[1], num_prompt_tokens=1, sampling=SamplingParams(), router_id="router"
    )
    return PrefillLeg(generation, 3, open_transfer or (lambda grant, block_ids: Transfer()))


BLOCKS = [7, 8, 9, 3, 5]
GRANT = transfer_pb2.Grant(grant_id=4)


async def test_progress_before_the_grant_is_passed_on_when_it_comes() -> None:
    leg = make_leg()
    leg.advance(0, 4, BLOCKS)
    leg.advance(1, 4, BLOCKS)
    leg.advance(0, 5, BLOCKS)
    assert not leg.opened.done()
    leg.take_grant(GRANT)
    assert leg.opened.done()
    transfer = cast(Transfer, leg.transfer)
    assert transfer.calls == [(0, 5), (1, 4)]
    leg.advance(2, 4, BLOCKS)
    assert transfer.calls[2:] == [(2, 4)]


async def test_a_grant_that_comes_first_waits_for_the_blocks() -> None:
    opened = []

    def open_transfer(grant: transfer_pb2.Grant, block_ids: list[int]) -> Transfer:
        opened.append((grant.grant_id, block_ids))
        return Transfer()

    leg = make_leg(open_transfer)
    leg.take_grant(GRANT)
    leg.take_grant(transfer_pb2.Grant(grant_id=5))  # a second one counts for nothing
    assert opened == []
    leg.advance(0, 4, BLOCKS)
    leg.advance(1, 4, BLOCKS)
    assert opened == [(4, BLOCKS)]
    assert cast(Transfer, leg.transfer).calls == [(0, 4), (1, 4)]


async def test_an_invalid_grant_fails_the_wait_for_the_transfer() -> None:
    def refuse(grant: transfer_pb2.Grant, block_ids: list[int]) -> Transfer:
        raise TransferError("too few blocks")

    leg = make_leg(refuse)
    leg.advance(0, 4, BLOCKS)
    leg.take_grant(GRANT)
    with pytest.raises(TransferError, match="too few"):
        await leg.opened


async def test_a_leg_set_aside_is_computed_into_other_blocks() -> None:
    opened = []

    def open_transfer(grant: transfer_pb2.Grant, block_ids: list[int]) -> Transfer:
        opened.append(block_ids)
        return Transfer()

    leg = make_leg(open_transfer)
    leg.advance(0, 4, BLOCKS)
    output = leg.output
    assert leg.set_aside()
    assert leg.output is not output
    leg.take_grant(GRANT)
    assert (opened, leg.granted.is_set()) == ([], True)
    leg.advance(1, 2, [11, 12])
    assert opened == [[11, 12]]
    assert cast(Transfer, leg.transfer).calls == [(1, 2)]
    assert not leg.set_aside()


async def test_an_ending_leg_opens_no_transfer() -> None:
    leg = make_leg()
    leg.advance(0, 4, BLOCKS)
    leg.is_ending = True
    leg.take_grant(GRANT)
    assert leg.transfer is None


async def test_a_cancellation_reaches_an_owner_that_has_not_started() -> None:
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


async def test_a_cancellation_does_not_interrupt_cleanup() -> None:
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
