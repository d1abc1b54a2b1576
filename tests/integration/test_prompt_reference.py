"""Log-probabilities and embeddings of prompts against transformers', in chunks and beside other work."""

import numpy as np
import pytest
import torch
import transformers

from baton.process.settings import EngineFlags
from baton.request import FinishReason, Generation, SamplingParams
from engine import prompt_logprobs, random_checkpoint
from engine.loading import load_engine
from engine.outputs import NO_TOKEN
from engine.request import PromptWork

LONG = [(7 * i * i + 3 * i) % 509 + 3 for i in range(300)]
SHORT = LONG[40:59]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return random_checkpoint.write(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def reference(model_dir):
    """(log-softmax [T, V], last hidden state after the final norm [H]) of a prompt."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    def compute(token_ids):
        with torch.no_grad():
            output = model(torch.tensor([token_ids]), output_hidden_states=True)
        return output.logits[0].log_softmax(-1), output.hidden_states[-1][0, -1]

    return compute


@pytest.fixture
def engine(model_dir):
    flags = EngineFlags(model=str(model_dir), device="cpu", kv_memory="4MiB", max_num_batched_tokens=64, num_threads=1)
    return load_engine(model_dir, flags)


def generation(token_ids, max_tokens=0, key=0):
    return Generation(
        request_id=f"r{key}",
        key=key,
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids),
        sampling=SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
        router_id="router",
    )


def run(engine):
    """All steps: ({id(request): scored parts}, outputs)."""
    scored, outputs = {}, []
    while engine.has_work:
        step = engine.step()
        for request, part in step.prompt_logprobs:
            scored.setdefault(id(request), []).append(part)
        outputs += step.outputs
        engine.check()
    return scored, outputs


def check_scores(parts, token_ids, expected, num_top):
    positions = [part.position + i for part in parts for i in range(len(part.logprobs))]
    assert positions == list(range(1, len(token_ids)))
    before, own = expected[:-1], torch.tensor(token_ids[1:])
    logprobs, ranks, ids, top = (np.concatenate([part[i] for part in parts]) for i in range(1, 5))
    wanted = before.gather(1, own[:, None])
    np.testing.assert_allclose(logprobs, wanted[:, 0], atol=1e-5)
    np.testing.assert_array_equal(ranks, (before > wanted).sum(1) + 1)
    assert ids.shape == top.shape == (len(token_ids) - 1, num_top)
    if num_top:
        values, places = before.topk(num_top)
        np.testing.assert_allclose(top, values, atol=1e-5)
        np.testing.assert_array_equal(ids, places)


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_scores_of_a_long_prompt_in_chunks_beside_decoding(engine, reference, num_top, monkeypatch):
    monkeypatch.setattr(prompt_logprobs, "MAX_ROWS", 24)  # several slices of each chunk
    decoding = engine.add(generation(SHORT, 30, key=1))
    engine.step()
    work = PromptWork(num_logprobs=num_top)
    long, short = (engine.add(generation(p, key=2), prefill_only=True, prompt_work=work) for p in (LONG, SHORT))
    scored, outputs = run(engine)
    for request, token_ids in ((long, LONG), (short, SHORT)):
        check_scores(scored[id(request)], token_ids, reference(token_ids)[0], num_top)
        [output] = [output for output in outputs if output.request is request]
        assert (output.token_id, output.finish_reason) == (NO_TOKEN, FinishReason.LENGTH)
        engine.release(request)
    assert decoding.num_output_tokens == 30
    assert engine.blocks.num_free_blocks == engine.num_blocks


def test_a_scored_prompt_is_computed_anew_shares_its_blocks_and_may_draw(engine, reference):
    engine.add(generation(LONG, 2))
    run(engine)
    request = engine.add(generation(LONG, 5), prefill_only=True, prompt_work=PromptWork(num_logprobs=1))
    scored, [output] = run(engine)
    check_scores(scored[id(request)], LONG, reference(LONG)[0], 1)
    assert (request.num_cached_tokens, output.index, output.finish_reason) == (0, 0, FinishReason.UNFINISHED)
    assert output.token_id == int(reference(LONG)[0][-1].argmax())
    engine.release(request)
    after = engine.add(generation(LONG, 1))
    run(engine)
    assert after.num_cached_tokens == len(LONG) // 16 * 16


def test_a_prompt_of_one_token_has_no_scores_but_an_end(engine):
    request = engine.add(generation([5]), prefill_only=True, prompt_work=PromptWork(num_logprobs=3))
    scored, [output] = run(engine)
    assert (scored, output.request, output.finish_reason) == ({}, request, FinishReason.LENGTH)


def test_embeddings_in_mixed_batches_with_and_without_a_cached_prefix(engine, reference):
    engine.add(generation(LONG[:200], 40, key=9))
    work = PromptWork(embeds=True)
    prompts = [LONG, SHORT, LONG[:160], [9]]
    for _ in range(2):
        requests = [
            engine.add(generation(p, key=i), prefill_only=True, prompt_work=work) for i, p in enumerate(prompts)
        ]
        run(engine)
        for request, prompt in zip(requests, prompts, strict=True):
            wanted = torch.nn.functional.normalize(reference(prompt)[1], dim=0)
            np.testing.assert_allclose(np.frombuffer(request.embedding, "<f4"), wanted, atol=1e-5)
            engine.release(request)
        engine.check()
    assert requests[0].num_cached_tokens > 0
    assert engine.blocks.num_free_blocks == engine.num_blocks


def test_a_prompt_as_long_as_the_model_is_scored_but_leaves_no_room_to_draw(engine):
    whole = (LONG * 2)[:512]
    engine.add(generation(whole), prefill_only=True, prompt_work=PromptWork(num_logprobs=0))
    scored, _ = run(engine)
    assert sum(len(part.logprobs) for part in next(iter(scored.values()))) == 511
    with pytest.raises(Exception, match="leave no room"):
        engine.add(generation(whole, 1), prefill_only=True)


@pytest.mark.parametrize("work", [PromptWork(num_logprobs=2), PromptWork(embeds=True)])
def test_numbers_that_are_none_end_that_request_and_nothing_is_published(engine, work, monkeypatch):
    hidden = engine.steps.readout.decoder.hidden

    def poisoned(batch, hook=None):
        """NaN in the second chunk of the long prompt: for scores in the middle, else in its last row."""
        rows = hidden(batch, hook).clone()
        for place, request in enumerate(batch.schedule.requests):
            if request is bad and request.num_computed_tokens >= 64:
                start, end = batch.wanted_start[place : place + 2]
                rows[(start + end - 1) // 2] = float("nan")
        return rows

    monkeypatch.setattr(engine.steps.readout.decoder, "hidden", poisoned)
    bad = engine.add(generation(LONG, key=1), prefill_only=True, prompt_work=work)
    good = engine.add(generation(SHORT, key=2), prefill_only=True, prompt_work=work)
    _, outputs = run(engine)
    errors = {output.request: output.error for output in outputs}
    assert errors[good] is None
    assert errors[bad].code == "numerical_error"
    assert bad.embedding == b""
    for request in (good, bad):
        engine.release(request)
    again = engine.add(generation(LONG, 1, key=3))
    run(engine)
    assert again.num_cached_tokens == 0
    assert again.finish_reason is FinishReason.LENGTH
