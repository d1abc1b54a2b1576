"""An error in a step ends the requests in it, once, and no others."""

import dataclasses

import pytest
import torch

from baton.request import FinishReason
from engine.engine import Engine
from engine.outputs import NO_TOKEN

LONG = {"max_tokens": 12, "ignore_eos": True}


@pytest.fixture(params=[False, True], ids=["waits", "runs ahead"])
def engine(request, make_engine):
    made = make_engine(max_num_seqs=2)
    config = dataclasses.replace(made.config, runs_ahead=request.param)
    return Engine(config, made.model_config, made.steps.readout.decoder, made._cache)


def test_a_step_whose_results_cannot_be_read_ends_its_requests_only(engine, make_generation, monkeypatch):
    first, gone, third = (engine.add(make_generation(range(i, 20 + i), key=i, **LONG)) for i in range(3))
    finish, told = engine.steps.readout.finish, []

    def broken(reading, batch):
        engine.release(gone)  # while the step is under way
        monkeypatch.setattr(engine.steps.readout, "finish", finish)
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(engine.steps.readout, "finish", broken)
    while engine.has_work:
        told += engine.step().outputs
        engine.check()
    [failed] = [output for output in told if output.request is first]
    assert (failed.token_id, failed.finish_reason) == (NO_TOKEN, FinishReason.ERROR)
    assert failed.error.code == "internal_error"
    assert (gone.finish_reason, gone.error) == (FinishReason.ABORT, None)
    assert gone not in [output.request for output in told]
    assert (third.finish_reason, third.num_output_tokens) == (FinishReason.LENGTH, 12)
    assert engine.blocks.num_free_blocks == engine.num_blocks


def test_a_prompt_without_output_that_gives_nan_fails(engine, make_generation, monkeypatch):
    decoder = engine.steps.readout.decoder
    hidden = decoder.hidden
    monkeypatch.setattr(decoder, "hidden", lambda batch, hook=None: hidden(batch, hook) * torch.nan)
    request = engine.add(make_generation(range(20), max_tokens=0), prefill_only=True)
    told = []
    while engine.has_work:
        told += engine.step().outputs
    [failed] = told
    assert (failed.finish_reason, failed.error.code) == (FinishReason.ERROR, "numerical_error")
    engine.release(request)
    assert engine.blocks.num_free_blocks == engine.num_blocks
