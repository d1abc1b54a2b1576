"""RoPE that depends on a request's length against transformers, at every length around the one where it changes."""

import msgspec
import pytest
import torch

from engine.request import Request
from engine.sampling.sampler import Logprobs
from tests.integration.engine_runs import (
    CLOSE,
    MAX_TOKENS,
    ahead,
    assert_same,
    engine_of,
    generation,
    hand_over,
    outputs,
    prompts,
    run,
)


def assert_same_step_by_step(model, request: Request, logprobs: list[Logprobs]) -> None:
    """The same, each step as transformers takes it: over no more tokens than there are then."""
    first = request.num_tokens - len(logprobs)
    for end, found in enumerate(logprobs, first):
        with torch.inference_mode():
            row = model(torch.tensor([request.token_ids[:end]])).logits[0, -1].log_softmax(-1)
        values, ids = row.topk(5)
        assert request.token_ids[end] == ids[0]
        assert found.top_token_ids == ids.tolist()
        assert torch.allclose(torch.tensor(found.top_logprobs), values, rtol=0, atol=CLOSE)


def test_dynamic_rope_beyond_the_trained_length(tmp_path, save_family):
    """One base serves all longer requests: that of max_model_len, at which transformers comes to the same."""
    model = save_family(tmp_path, "llama-dynamic")
    engine = engine_of(tmp_path, max_model_len=200)
    [prompt, short] = prompts(199, 100)
    request = engine.add(generation(prompt, max_tokens=1))
    plain = engine.add(generation(short, 1))
    logprobs = run(engine)
    assert_same(model, plain, logprobs["r1"])
    inputs = torch.tensor([[*prompt, 0]])  # 200 positions: the base that the engine uses throughout
    with torch.inference_mode():
        wanted = model(inputs).logits[0, -2].argmax().item()
    assert outputs(request) == [wanted]


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_longrope_stretches_each_request_that_grows_long(tmp_path, save_family, runs_ahead):
    """Its factors follow from a request's own length, now: 96 tokens are short, and one more computes all anew."""
    model = save_family(tmp_path, "phi3-longrope")
    engine = engine_of(tmp_path)
    engine = ahead(engine) if runs_ahead else engine
    [text] = prompts(112)
    lengths = (40, 90, 96, 97, 112)
    requests = [engine.add(generation(text[:length], key)) for key, length in enumerate(lengths)]
    logprobs = run(engine)
    assert [request.num_preemptions for request in requests] == [0, 1, 1, 0, 0]
    for request in requests:
        assert_same_step_by_step(model, request, logprobs[request.request_id])
    again = engine.add(generation(text, 9))  # finds the stretched blocks, and not the others
    assert run(engine)["r9"] == logprobs["r4"]
    assert again.num_cached_tokens == 104


@pytest.mark.parametrize("length", [50, 92, 96, 97])
def test_longrope_of_shipped_requests(tmp_path, save_family, length):
    """Also where the first token, drawn elsewhere, is one too many for the KV that came."""
    model = save_family(tmp_path, "phi3-longrope")
    prefill, decode = engine_of(tmp_path), engine_of(tmp_path)
    [text] = prompts(length)
    decode.add(generation(text[:40], 1, max_tokens=2))
    run(decode)
    target = hand_over(prefill, decode, text, MAX_TOKENS)
    assert target.num_present_blocks == (5 if length <= 96 else 0)
    assert_same_step_by_step(model, target, run(decode)["r0"])
    resumed = msgspec.structs.replace(generation(text, 2), token_ids=target.token_ids[:-3])
    again = engine_of(tmp_path).add(resumed)
    assert again.is_stretched == (length + MAX_TOKENS - 3 > 96)
