"""Replayed decode steps draw the same tokens, and write the same KV, as steps that are not replayed."""

import pytest
import torch

from engine.model.recorded import MAX_ROWS, RecordedDecoder
from kernels.cpu.kernels import CPUKernels

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 7, "num_logprobs": 2}


@pytest.fixture
def engines(make_engine):
    """An engine that replays decode steps, and one that does not."""

    def make(**flags):
        replaying, plain = (make_engine(kernels=CPUKernels(torch.float32), max_num_seqs=40, **flags) for _ in range(2))
        plain.steps.readout.decoder = plain.steps.readout.decoder._decoder
        return replaying, plain

    return make


def replays(engine):
    decoder = engine.steps.readout.decoder
    assert isinstance(decoder, RecordedDecoder)
    return sorted(decoder._replays)


@pytest.mark.parametrize("sampling", [{"num_logprobs": 2}, SAMPLED])
def test_tokens_and_kv_are_those_of_plain_steps(engines, make_generation, run, sampling):
    """Batches grow, and shrink as requests end; prompts are computed in between."""
    seen = []
    for engine in engines():
        requests = [
            engine.add(make_generation(range(i, 3 * i + 20), key=i, max_tokens=2 + 3 * i, ignore_eos=True, **sampling))
            for i in range(7)
        ]
        outputs = run(engine)
        seen.append(([request.token_ids for request in requests], [output.logprobs for output in outputs]))
        seen[-1] += (engine.pool.clone(),)
    assert seen[0][:2] == seen[1][:2]
    assert torch.equal(seen[0][2], seen[1][2])


def test_each_number_of_rows_is_recorded_once_up_to_a_largest(engines, make_generation, run):
    engine, _ = engines(kv_memory="8MiB")
    for i in range(MAX_ROWS + 2):
        engine.add(make_generation([i, 1, 2], key=i, max_tokens=2 + i, ignore_eos=True))
    run(engine)
    assert replays(engine) == list(range(1, MAX_ROWS + 1))
    recorded = dict(engine.steps.readout.decoder._replays)
    engine.add(make_generation([5, 1, 2], max_tokens=9, ignore_eos=True))
    run(engine)
    assert engine.steps.readout.decoder._replays == recorded


def test_the_next_step_may_overwrite_hidden_states(engines, make_generation):
    """Tokens and log-probabilities are read from them before."""
    engine, _ = engines()
    request = engine.add(make_generation([1, 2, 3], max_tokens=20, ignore_eos=True))
    while not request.is_finished:
        engine.step()
    again = engine.add(make_generation([1, 2, 3], key=1, max_tokens=20, ignore_eos=True))
    while not again.is_finished:
        engine.step()
    assert again.token_ids == request.token_ids


def test_a_model_that_needs_more_than_compiled_kernels_is_not_recorded(engines, make_generation, run, monkeypatch):
    replaying, plain = engines()
    for engine in (replaying, plain):
        weights = engine.steps.readout.decoder
        decoder = getattr(weights, "_decoder", weights)
        monkeypatch.setattr(decoder, "_attend", lambda *args, attend=decoder._attend, **kw: attend(*args, **kw) * 1.0)
    seen = []
    for engine in (replaying, plain):
        requests = [engine.add(make_generation(range(i, i + 9), key=i, max_tokens=6)) for i in range(3)]
        run(engine)
        seen.append([request.token_ids for request in requests])
    assert seen[0] == seen[1]
    assert replays(replaying) == []


def test_steps_with_a_hook_between_layers_are_not_replayed(engines, make_generation, run):
    engine, _ = engines()
    engine.add(make_generation(range(20), max_tokens=4, ignore_eos=True))
    run(engine)
    assert replays(engine) == [1]
    groups = []
    engine.steps.on_layer_group = lambda group, batch: groups.append(group)
    engine.add(make_generation(range(50, 70), max_tokens=4, ignore_eos=True))
    run(engine)
    assert len(groups) == 4 * engine.layout.num_layer_groups
