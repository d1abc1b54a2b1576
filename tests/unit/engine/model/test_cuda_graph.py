"""Decode steps from fixed buffers, as graphs replay them, with a stand-in for the capture.

The stand-in overwrites its results at each call, as a graph does.
"""

import pytest
import torch

from baton.request import FinishReason
from engine.model.cuda_graph import GraphedDecoder, batch_sizes

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 7, "max_tokens": 12, "ignore_eos": True}


class Recorder:
    """A capture that needs no device; `replayed` are the sizes of batches in the order of calls."""

    def __init__(self):
        self.replayed = []

    def __call__(self, compute):
        kept = compute()
        size = kept[0].shape[0]

        def replay():
            self.replayed.append(size)
            for buffer, result in zip(kept, compute(), strict=True):
                buffer.copy_(result)
            return kept

        return replay


@pytest.fixture
def make_graphed(make_engine):
    def make(**flags):
        engine, recorder = make_engine(**flags), Recorder()
        engine.steps.readout.decoder = GraphedDecoder(engine.steps.readout.decoder, engine.config, recorder)
        return engine, recorder

    return make


def test_sizes_waste_a_third_at_most_where_rows_cost():
    assert batch_sizes(1) == [1]
    assert batch_sizes(5) == [1, 2, 4, 8]
    assert batch_sizes(256) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert batch_sizes(200)[-1] == 256


@pytest.mark.parametrize("num_requests", [1, 3, 7])
@pytest.mark.parametrize("sampling", [{"max_tokens": 12, "ignore_eos": True, "num_logprobs": 2}, SAMPLED])
def test_tokens_are_those_of_plain_steps(make_engine, make_graphed, make_generation, run, num_requests, sampling):
    plain, (graphed, recorder) = make_engine(max_num_seqs=8), make_graphed(max_num_seqs=8)
    results = []
    for engine in (plain, graphed):
        requests = [engine.add(make_generation(range(i, 3 * i + 20), key=i, **sampling)) for i in range(num_requests)]
        run(engine)
        results.append([request.token_ids for request in requests])
    assert results[0] == results[1]
    assert max(recorder.replayed) == next(size for size in (1, 2, 4, 8) if size >= num_requests)


def test_padding_rows_keep_nothing_of_earlier_batches(make_engine, make_graphed, make_generation, run):
    """A row that is padding now was a request's a step ago, and its blocks may belong to another request since."""
    lengths = [3, 30, 9, 5, 24]
    results = []
    for engine in (make_engine(max_num_seqs=8), make_graphed(max_num_seqs=8)[0]):
        requests = [
            engine.add(make_generation(range(i, i + 25), key=i, max_tokens=n, ignore_eos=True))
            for i, n in enumerate(lengths)
        ]
        run(engine)
        pool = engine.pool.clone()
        results.append(([request.token_ids for request in requests], pool))
    assert results[0][0] == results[1][0]
    kv = [pool.view(torch.float32) for _, pool in results]
    torch.testing.assert_close(kv[0], kv[1], atol=1e-5, rtol=1e-5)


def test_prefill_and_hooks_between_layers_are_not_replayed(make_graphed, make_generation, run):
    engine, recorder = make_graphed(max_num_seqs=4)
    groups = []
    engine.steps.on_layer_group = lambda group, batch: groups.append(group)
    engine.add(make_generation(range(20), max_tokens=4, ignore_eos=True))
    run(engine)
    assert len(groups) == 4 * engine.layout.num_layer_groups
    assert recorder.replayed == []
    engine.steps.on_layer_group = None
    engine.add(make_generation(range(50, 70), max_tokens=4, ignore_eos=True))
    run(engine)
    assert recorder.replayed == [1, 1, 1]


def test_hidden_and_logits_are_those_of_the_decoder(make_graphed, make_generation, monkeypatch):
    engine, _ = make_graphed(max_num_seqs=4)
    decoder, compared = engine.steps.readout.decoder, []
    hidden = decoder.hidden

    def compare(batch, hook=None):
        got = hidden(batch, hook)
        expected = decoder._decoder.hidden(batch)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        for rows in (got, got[:1]):  # of the whole step they are at hand, of a part they are computed
            wanted, logits = decoder._decoder.logits(expected), decoder.logits(rows)
            torch.testing.assert_close(logits.values, wanted.values[: len(rows)], atol=1e-4, rtol=1e-4)
            assert torch.equal(logits.is_finite, wanted.is_finite[: len(rows)])
        compared.append(batch.num_tokens)
        return got

    monkeypatch.setattr(decoder, "hidden", compare)
    for i in range(3):
        engine.add(make_generation(range(i, 20 + i), key=i, max_tokens=3, ignore_eos=True))
    while engine.has_work:
        engine.step()
    assert compared.count(3) == 2


def test_a_step_larger_than_every_graph_is_not_replayed(make_engine, make_generation, run):
    engine, recorder = make_engine(max_num_seqs=8), Recorder()
    small = GraphedDecoder(engine.steps.readout.decoder, engine.config, recorder)
    small._sizes = [1, 2]
    engine.steps.readout.decoder = small
    requests = [engine.add(make_generation(range(i, 20 + i), key=i, max_tokens=4, ignore_eos=True)) for i in range(3)]
    run(engine)
    assert recorder.replayed == []
    assert {request.finish_reason for request in requests} == {FinishReason.LENGTH}
