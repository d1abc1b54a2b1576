"""Steps that run ahead have the same results as steps that do not, whatever requests arrive, end and abort meanwhile.

On a CPU a launch returns when the step is complete, so running ahead gains nothing there; but the code is the same as
on a GPU.
"""

import dataclasses
import random

import pytest
import torch

from baton.request import FinishReason
from engine.engine import Engine
from engine.model.cuda_graph import GraphedDecoder
from engine.request import RequestState
from engine.rows import UNKNOWN
from tests.unit.engine.mixed_load import LONG, Load, assert_same


@pytest.fixture
def make_ahead(make_engine):
    def make(**flags):
        engine = make_engine(**flags)
        config = dataclasses.replace(engine.config, runs_ahead=True)
        return Engine(
            config, engine.model_config, engine.steps.readout.decoder, engine._cache, grammars=engine._grammars
        )

    return make


@pytest.fixture
def both(make_engine, make_ahead):
    """Two engines, of which the first does not run ahead."""

    def make(**flags):
        return make_engine(**flags), make_ahead(**flags)

    return make


@pytest.mark.parametrize("seed", range(4))
def test_all_kinds_of_requests(both, make_generation, seed):
    load = Load(make_generation, seed)
    limits = random.Random(seed).choice([{"max_num_seqs": 3}, {"max_num_seqs": 8}, {"max_num_seqs": 16}])
    waiting, ahead = both(**limits)
    (expected, num_ahead_of_none), (found, num_ahead) = load.run(waiting), load.run(ahead)
    assert num_ahead_of_none == 0
    assert num_ahead > 20
    assert_same(found, expected)


def test_blocks_that_run_out(both, make_generation, run):
    """Preemption waits for the step under way, so that all tokens of the preempted request are known."""
    results = []
    for engine in both(kv_memory="128KiB", max_model_len=128):
        preempt, under_way = engine._scheduler._preempt, []

        def noted(request, engine=engine, preempt=preempt, under_way=under_way):
            under_way.append(engine.steps.is_under_way)
            preempt(request)

        engine._scheduler._preempt = noted
        sampling = {"max_tokens": 50, "ignore_eos": True}
        requests = [engine.add(make_generation(range(i, 20 + i), key=i, **sampling)) for i in range(4)]
        run(engine)
        assert under_way
        assert not any(under_way)
        results.append([request.token_ids for request in requests])
    assert results[0] == results[1]


def test_a_stop_is_noticed_a_step_late_and_the_surplus_token_is_dropped(both, make_generation, run):
    waiting, ahead = both()
    probe = waiting.add(make_generation(range(40), **LONG))
    run(waiting)
    drawn = probe.token_ids[40:]
    num_drawn = next(n for n in range(2, 12) if drawn[n - 1] not in drawn[: n - 1])
    stop = drawn[num_drawn - 1]
    request = ahead.add(make_generation(range(40), **(LONG | {"stop_token_ids": [stop]})))
    ended = []
    while not ended:
        ended = ahead.step().ended
        ahead.check()
    assert (request.state, request.finish_reason) == (RequestState.FINISHED, FinishReason.STOP)
    assert request.token_ids == probe.token_ids[: 40 + num_drawn]
    assert ahead.steps.is_under_way  # with a surplus token
    num_held = ahead.num_blocks - ahead.blocks.num_free_blocks
    assert num_held > 0  # that step still writes to them
    surplus = ahead.step()
    ahead.check()
    assert (surplus.requests, surplus.ended) == ([], [])
    assert request.token_ids == probe.token_ids[: 40 + num_drawn]
    assert ahead.blocks.num_free_blocks == ahead.num_blocks
    assert not ahead.has_work or ahead.blocks.has_events


def test_a_request_that_reaches_its_length_limit_is_in_no_further_step(make_ahead, make_generation):
    engine, scheduled = make_ahead(), []
    engine.add(make_generation(range(20), max_tokens=5, ignore_eos=True))
    while engine.has_work:
        step = engine.step()
        scheduled.append(step.num_scheduled_tokens)
    assert scheduled == [20, 1, 1, 1, 1, 1]  # the last one tells of the step before


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_abort_while_a_step_is_under_way(make_ahead, make_generation, num_steps):
    engine = make_ahead(max_num_seqs=2)
    gone, stays = (engine.add(make_generation(range(i, 30 + i), key=i, **LONG)) for i in range(2))
    for _ in range(num_steps):
        engine.step()
    engine.release(gone)
    assert (gone.state, gone.finish_reason) == (RequestState.FINISHED, FinishReason.ABORT)
    assert gone.block_ids  # the step under way writes to them
    engine.check()
    newcomer = engine.add(make_generation(range(60, 90), key=2, **LONG))  # takes the row as soon as it is free
    told = []
    while engine.has_work:
        told += [output.request for output in engine.step().outputs]
        engine.check()
    assert gone not in told
    assert len(gone.token_ids) == 30 + num_steps - 1
    assert (stays.num_output_tokens, newcomer.num_output_tokens) == (12, 12)
    assert engine.blocks.num_free_blocks == engine.num_blocks


@pytest.mark.parametrize("lands_before", [False, True])
def test_release_of_a_failed_prefill_while_a_chunk_of_it_is_under_way(
    make_ahead, make_generation, monkeypatch, lands_before
):
    engine = make_ahead(max_num_batched_tokens=16)
    decoder, calls = engine.steps.readout.decoder, []
    hidden = decoder.hidden

    def first_is_bad(batch, hook=None):
        calls.append(batch)
        result = hidden(batch, hook)
        return result * float("nan") if len(calls) == 1 else result

    monkeypatch.setattr(decoder, "hidden", first_is_bad)
    request = engine.add(make_generation(range(60), **LONG), prefill_only=True)
    assert engine.step().ended == []
    assert engine.step().ended == [request]
    assert (request.state, request.error.code) == (RequestState.HELD, "numerical_error")
    engine.check()
    if lands_before:
        engine.step()
        assert request.block_ids  # a transfer may be reading them
    engine.release(request)
    assert lands_before or request.block_ids
    engine.check()
    while engine.has_work:
        engine.step()
    engine.check()
    assert engine.blocks.num_free_blocks == engine.num_blocks


def test_a_launch_that_raises_does_not_affect_the_previous_step(make_ahead, make_generation, monkeypatch):
    engine = make_ahead(max_num_seqs=4)
    first = engine.add(make_generation(range(30), key=1, **LONG))
    engine.step()
    second = engine.add(make_generation(range(40), key=2, **LONG))
    decoder = engine.steps.readout.decoder
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "hidden", lambda batch, hook=None: 1 / 0)
        step = engine.step()
    assert step.ended == [first, second]
    assert {request.error.code for request in (first, second)} == {"internal_error"}
    assert first.num_output_tokens == 0  # ended before its first token was known
    while engine.has_work:
        engine.step()
    engine.check()
    assert engine.blocks.num_free_blocks == engine.num_blocks


def test_results_may_be_overwritten_by_the_next_step(both, make_generation):
    """As a graph's results are, before the host has read them."""

    def capture(compute):
        kept = compute()

        def replay():
            for buffer, result in zip(kept, compute(), strict=True):
                buffer.copy_(result)
            return kept

        return replay

    load = Load(make_generation, 1)
    waiting, ahead = both(max_num_seqs=8)
    readout = ahead.steps.readout
    readout.decoder = GraphedDecoder(readout.decoder, ahead.config, capture)
    expected, found = load.run(waiting)[0], load.run(ahead)[0]
    assert_same(found, expected)


def test_tokens_are_unknown_while_their_step_is_under_way(make_ahead, make_generation):
    engine = make_ahead()
    request = engine.add(make_generation(range(20), **LONG))
    for _ in range(3):
        engine.step()
    assert engine._rows.last_token[request.row] == UNKNOWN
    assert engine._rows.num_tokens[request.row] == request.num_tokens + 1
    assert torch.equal(engine.steps.readout.tokens_of_rows[request.row] >= 0, torch.tensor(True))


def test_a_hook_between_layers_is_called_for_each_chunk(make_ahead, make_generation):
    """With a hook no step runs ahead, since the hook waits for the device anyway."""
    engine, told = make_ahead(max_num_batched_tokens=16), []
    engine.steps.on_layer_group = lambda group, batch: told.append([p[1:] for p in batch.progress()])
    engine.add(make_generation(range(40), max_tokens=1, ignore_eos=True), prefill_only=True)
    while engine.steps.is_under_way or len(told) < 3 * engine.layout.num_layer_groups:
        engine.step()
        assert not engine.steps.is_under_way
    groups = engine.layout.num_layer_groups
    assert told[::groups] == [[(16, 2)], [(32, 4)], [(40, 5)]]
