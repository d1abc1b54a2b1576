import dataclasses

import pytest
import torch

from baton.errors import ContextLengthExceeded, InvalidRequest
from baton.kv.prefix_hash import block_hashes, root_hash
from baton.request import FinishReason
from engine.outputs import NO_TOKEN
from engine.request import RequestState

PROMPT = list(range(30, 50))
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 42, "frequency_penalty": 0.3, "max_tokens": 20}


def output_tokens(request):
    return request.token_ids[request.num_prompt_tokens :]


def test_outputs_carry_indices_and_end(make_engine, make_generation, run):
    engine = make_engine()
    request = engine.add(make_generation(PROMPT, ignore_eos=True, max_tokens=5, num_logprobs=2))
    outputs = run(engine)
    assert [output.index for output in outputs] == [0, 1, 2, 3, 4]
    assert [output.token_id for output in outputs] == output_tokens(request)
    assert [output.finish_reason for output in outputs] == [FinishReason.UNFINISHED] * 4 + [FinishReason.LENGTH]
    assert all(len(output.logprobs.top_token_ids) == 2 for output in outputs)
    assert request.arrival_s <= request.first_scheduled_s <= request.first_token_s
    assert engine.blocks.num_free_blocks == engine.num_blocks


def test_stop_tokens_eos_and_lengths(make_engine, make_generation, run):
    engine = make_engine()
    plain = engine.add(make_generation(PROMPT, ignore_eos=True, max_tokens=12))
    run(engine)
    tokens = output_tokens(plain)
    stop = tokens[6]
    first = tokens.index(stop)

    def finish(**sampling):
        request = engine.add(make_generation(PROMPT, max_tokens=12, **sampling))
        run(engine)
        return output_tokens(request), request.finish_reason

    assert finish(ignore_eos=True, stop_token_ids=(stop,)) == (tokens[: first + 1], FinishReason.STOP)
    late, _ = finish(ignore_eos=True, stop_token_ids=(stop,), min_tokens=first + 2)
    assert late[:first] == tokens[:first]
    assert stop not in late[: first + 2]
    object.__setattr__(engine.model_config, "eos_token_ids", frozenset({stop}))
    assert finish() == (tokens[: first + 1], FinishReason.STOP)
    assert finish(ignore_eos=True) == (tokens, FinishReason.LENGTH)


def test_max_model_len_ends_a_request_that_fills_it(make_engine, make_generation, run):
    engine = make_engine(max_model_len=30)
    request = engine.add(make_generation(PROMPT, ignore_eos=True, max_tokens=100))
    run(engine)
    assert (request.num_tokens, request.finish_reason) == (30, FinishReason.LENGTH)
    whole = engine.add(make_generation(range(29), ignore_eos=True, max_tokens=100))
    run(engine)
    assert whole.num_output_tokens == 1


@pytest.mark.parametrize(
    ("tokens", "options", "error"),
    [
        ([], {}, InvalidRequest),
        ([1] * 512, {}, ContextLengthExceeded),
        ([512], {}, InvalidRequest),
        ([-1], {}, InvalidRequest),
        ([1, 2], {"num_prompt_tokens": 0}, InvalidRequest),
        ([1, 2], {"num_prompt_tokens": 3}, InvalidRequest),
        ([1, 2], {"logit_bias": {512: 1.0}}, InvalidRequest),
        ([1, 2], {"num_prompt_tokens": 1, "max_tokens": 1}, InvalidRequest),
    ],
)
def test_generations_that_can_never_run_are_refused(make_engine, make_generation, tokens, options, error):
    engine = make_engine()
    for enter in (engine.add, engine.reserve):
        with pytest.raises(error):
            enter(make_generation(tokens, **options))
    assert not engine.has_work


@pytest.mark.parametrize("sampling", [{"ignore_eos": True, "max_tokens": 20}, SAMPLED | {"ignore_eos": True}])
def test_a_resumed_request_continues_with_the_same_tokens(make_engine, make_generation, run, sampling):
    engine = make_engine()
    whole = engine.add(make_generation(PROMPT, **sampling))
    run(engine)
    for num_done in (1, 7, 19):
        other = make_engine(block_size=16)
        resumed = make_generation(whole.token_ids[: 20 + num_done], num_prompt_tokens=20, **sampling)
        request = other.add(resumed)
        outputs = run(other)
        assert [output.index for output in outputs] == list(range(num_done, 20))
        assert request.token_ids == whole.token_ids


def test_sampled_tokens_do_not_depend_on_the_batch(make_engine, make_generation, run):
    engine = make_engine()
    alone = engine.add(make_generation(PROMPT, **SAMPLED))
    run(engine)
    crowd = [make_generation(range(i, 60), key=i, **(SAMPLED | {"seed": i})) for i in range(10)]
    engine = make_engine(kv_memory=str(engine.layout.block_bytes * 64), max_num_seqs=7)
    requests = [engine.add(generation) for generation in [*crowd[:5], alone.generation, *crowd[5:]]]
    run(engine)
    assert requests[5].token_ids == alone.token_ids


def test_prefix_cache_events_and_salt(make_engine, make_generation, run):
    engine = make_engine(max_num_batched_tokens=16)
    engine.add(make_generation(PROMPT, max_tokens=2, ignore_eos=True))
    assert engine.step().stored == block_hashes(PROMPT[:16], 8, root_hash(engine.layout.model_fingerprint))
    run(engine)
    for salt, num_cached_tokens in [(b"", 16), (b"other", 0)]:
        request = engine.add(make_generation(PROMPT, cache_salt=salt, max_tokens=2))
        run(engine)
        assert request.num_cached_tokens == num_cached_tokens


def test_a_fully_cached_prompt_still_yields_a_token(make_engine, make_generation, run):
    engine = make_engine()
    first, second = (make_generation(PROMPT[:16], max_tokens=4, ignore_eos=True) for _ in range(2))
    wanted = engine.add(first)
    run(engine)
    request = engine.add(second)
    run(engine)
    assert (request.token_ids, request.num_cached_tokens) == (wanted.token_ids, 8)


def test_cached_tokens_count_prompt_only(make_engine, make_generation, run):
    engine = make_engine()
    first = engine.add(make_generation(PROMPT, max_tokens=20, ignore_eos=True))
    run(engine)
    resumed = engine.add(make_generation(first.token_ids[:36], num_prompt_tokens=20, max_tokens=20, ignore_eos=True))
    engine.step()
    assert (resumed.num_cached_tokens, len(resumed.block_ids)) == (20, 5)


@pytest.mark.parametrize("num_steps", range(6))
def test_release_at_any_time(make_engine, make_generation, run, num_steps):
    engine = make_engine(max_num_batched_tokens=8)
    stays, goes = (engine.add(make_generation(range(i, i + 20), max_tokens=3)) for i in (0, 100))
    for _ in range(num_steps):
        engine.step()
    engine.release(goes)
    engine.check()
    outputs = run(engine)
    assert all(output.request is stays for output in outputs)
    assert stays.finish_reason is FinishReason.LENGTH
    assert goes.finish_reason is FinishReason.ABORT


class TestErrors:
    @pytest.mark.parametrize("prefill_only", [False, True])
    def test_a_block_with_nan_ends_the_requests_that_read_it(self, make_engine, make_generation, run, prefill_only):
        engine = make_engine()
        engine.add(make_generation(PROMPT, max_tokens=1))
        run(engine)
        engine.pool.view(torch.float32)[:] = float("nan")
        bad = engine.add(make_generation(PROMPT), prefill_only=prefill_only)
        good = engine.add(make_generation(range(100, 120), max_tokens=3, ignore_eos=True))
        outputs = run(engine)
        [failed] = [output for output in outputs if output.request is bad]
        assert (failed.index, failed.token_id, failed.finish_reason) == (0, NO_TOKEN, FinishReason.ERROR)
        assert failed.error.code == "numerical_error"
        assert bad.state is (RequestState.HELD if prefill_only else RequestState.FINISHED)
        assert good.finish_reason is FinishReason.LENGTH
        again = engine.add(make_generation(PROMPT, max_tokens=1))
        run(engine)
        assert (again.num_cached_tokens, again.finish_reason) == (0, FinishReason.LENGTH)
        engine.release(bad)
        assert engine.blocks.num_free_blocks == engine.num_blocks

    def test_infinite_logits(self, make_engine, make_generation, run, monkeypatch):
        engine = make_engine()
        decoder = engine.steps.readout.decoder
        lm_head = decoder._weights.lm_head

        def second_row_infinite(hidden):
            result = lm_head(hidden).clone()
            result[1:, 3] = float("inf")
            return result

        monkeypatch.setattr(decoder, "_weights", dataclasses.replace(decoder._weights, lm_head=second_row_infinite))
        first, second = (engine.add(make_generation([i] * 9, ignore_eos=True, max_tokens=3)) for i in (1, 2))
        outputs = run(engine)
        assert second.error.code == "numerical_error"
        assert first.finish_reason is FinishReason.LENGTH
        assert [output.token_id for output in outputs if output.request is second] == [NO_TOKEN]

    def test_a_step_that_raises_ends_its_requests_only(self, make_engine, make_generation, run):
        engine = make_engine(max_num_seqs=1)

        def raises(group, batch):
            raise RuntimeError("no such kernel")

        engine.steps.on_layer_group = raises
        first, second = (engine.add(make_generation([i] * 9, max_tokens=2, ignore_eos=True)) for i in (1, 2))
        [failed] = engine.step().outputs
        assert (failed.request, failed.error.code) == (first, "internal_error")
        assert "kernel" not in failed.error.message
        engine.steps.on_layer_group = None
        run(engine)
        assert second.finish_reason is FinishReason.LENGTH


def test_load(make_engine, make_generation, run):
    engine = make_engine(max_num_seqs=1)
    requests = [engine.add(make_generation([i] * 20, max_tokens=2, ignore_eos=True)) for i in (1, 2)]
    load = engine.current_load()
    assert (load.num_running, load.num_waiting, load.num_waiting_tokens, load.num_steps) == (0, 2, 40, 0)
    engine.step()
    load = engine.current_load()
    assert (load.num_running, load.num_waiting, load.num_waiting_tokens, load.num_steps) == (1, 1, 20, 1)
    assert load.num_blocks - load.num_free_blocks == 3
    assert load.prefill_tokens_per_s > 0
    assert load.step_s > 0
    run(engine)
    assert engine.current_load().num_free_blocks == engine.num_blocks
    assert all(request.state is RequestState.FINISHED for request in requests)


def test_load_counts_partly_computed_prompts_and_reserved_requests(make_engine, make_generation):
    engine = make_engine(max_num_batched_tokens=16)
    engine.add(make_generation([1] * 40, max_tokens=2))
    engine.reserve(make_generation([2] * 20))
    engine.step()
    load = engine.current_load()
    assert (load.num_waiting_tokens, load.num_context_tokens, load.num_reserved) == (24, 40 + 20, 1)
    assert engine.num_idle_blocks == 3
