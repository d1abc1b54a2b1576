"""The owners of requests, and the report of leased blocks that have no owner."""

from types import SimpleNamespace

import pytest

from baton.node.load import LoadBoard
from engine.outputs import StepOutput
from engine.owners import PUBLISH_S, Owners
from engine.request import RequestState


@pytest.fixture
def owners():
    return Owners(LoadBoard())


def test_blocks_leased_without_an_owner_are_logged(owners, make_engine, make_generation, caplog):
    engine, others = make_engine(), Owners(LoadBoard())
    leased = engine.reserve(make_generation([1] * 20))
    for known in (owners, others):
        known.expect(leased, SimpleNamespace(request=leased))
        owners.audit(engine, others)
        assert not caplog.records
        known.forget(leased)
    owners.audit(engine, others)
    assert "3 blocks are leased without an owner" in caplog.text


def test_release_frees_what_an_owner_holds(owners, make_engine, make_generation):
    engine = make_engine()
    request = engine.reserve(make_generation([1] * 20))
    owner = SimpleNamespace(request=request)
    owners.expect(request, owner)
    assert owners.of(request) is owner
    for _ in range(2):
        owners.release(engine, owner)
    assert (owners.of(request), request.state) == (None, RequestState.FINISHED)
    assert owners._board.load().num_free_blocks == engine.num_blocks
    owners.release(engine, SimpleNamespace(request=None))  # it had not come so far


@pytest.mark.parametrize("changed", ["begun", "ended"])
def test_while_the_same_requests_decode_the_load_is_published_now_and_then(make_engine, make_generation, changed):
    engine, board, now_s = make_engine(), LoadBoard(), [100.0]
    owners = Owners(board, clock=lambda: now_s[0])

    def published(*, after_s: float, step: StepOutput) -> bool:
        """Take one more block, and tell whether that is published."""
        now_s[0] += after_s
        engine.reserve(make_generation([1]))
        owners.publish_after(step, engine)
        return board.load().num_free_blocks == engine.blocks.num_free_blocks

    assert published(after_s=0, step=StepOutput())
    assert not published(after_s=PUBLISH_S / 2, step=StepOutput())
    assert published(after_s=PUBLISH_S * 0.51, step=StepOutput())
    assert not published(after_s=0, step=StepOutput())
    assert published(after_s=0, step=StepOutput(**{changed: [None]}))
    assert not published(after_s=PUBLISH_S / 2, step=StepOutput())
