"""Of 1,000 blocks with one flipped bit each, none is accepted; the next 1,000, undamaged, all are."""

import asyncio
import random

import pytest
from kv_nodes import LAYOUT, Pair, all_ready, commit, new_pool, pair, run

from baton.errors import TransferError
from kv_transfer.faults import FAULTS
from kv_transfer.sender import KVSender

NUM_FLIPS = 1000
AT_ONCE = 25


async def refused(p: Pair, sender: KVSender, block_id: int) -> bool:
    incoming = p.grant([block_id])
    outgoing = sender.open(incoming.grant, [block_id])
    all_ready(outgoing, 1)
    with pytest.raises(TransferError, match="not those that were sent"):
        await commit(outgoing)
    with pytest.raises(TransferError, match="not those that were sent"):
        await incoming.committed()
    await asyncio.gather(outgoing.abort(), incoming.cancel())
    return True


@pytest.mark.parametrize("name", ["tcp", "shm"])
def test_a_thousand_of_a_thousand_flipped_bits_are_caught(name: str):
    async def main():
        source, num_refused = new_pool(1), 0
        async with pair(name) as p:
            sender = p.sender(source)
            FAULTS.arm("corrupt_message", NUM_FLIPS)
            for first in range(0, NUM_FLIPS, AT_ONCE):
                tries = (refused(p, sender, (first + at) % 400) for at in range(AT_ONCE))
                num_refused += sum(await asyncio.gather(*tries))
            assert num_refused == NUM_FLIPS
            assert not FAULTS.fires("corrupt_message")
            incoming = p.grant([1, 2, 3])
            outgoing = sender.open(incoming.grant, [4, 5, 6])
            all_ready(outgoing, 3)
            await commit(outgoing)
            assert p.filled([1, 2, 3], source, [4, 5, 6])

    run(main())


def test_a_flip_is_of_one_bit_and_of_any():
    random.seed(5)
    data = bytes(LAYOUT.block_group_bytes)
    places = set()
    for _ in range(200):
        (damaged,) = FAULTS.flip([memoryview(data)])
        number = int.from_bytes(damaged, "little")
        assert number.bit_count() == 1
        places.add(number.bit_length())
    assert len(places) > 190
    assert max(places) > 8 * len(data) * 3 // 4
