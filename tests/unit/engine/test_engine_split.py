"""A request whose prompt is computed on one node and whose output on another."""

import pytest

from baton.request import FinishReason
from engine.outputs import NO_TOKEN
from engine.request import RequestState

PROMPT = list(range(30, 50))


class TestPrefillOnly:
    def test_holds_its_blocks_until_released(self, make_engine, make_generation, run):
        engine = make_engine()
        request = engine.add(make_generation(PROMPT, ignore_eos=True), prefill_only=True)
        [output] = run(engine)
        assert (output.index, output.finish_reason, request.state) == (0, FinishReason.UNFINISHED, RequestState.HELD)
        assert request.num_computed_tokens == 20
        assert engine.num_blocks - engine.blocks.num_free_blocks == 3
        engine.release(request)
        engine.release(request)
        assert engine.num_blocks == engine.blocks.num_free_blocks

    def test_first_token_may_be_the_last(self, make_engine, make_generation, run):
        engine = make_engine()
        request = engine.add(make_generation(PROMPT, max_tokens=1), prefill_only=True)
        [output] = run(engine)
        assert output.finish_reason is FinishReason.LENGTH
        assert request.state is RequestState.HELD

    def test_layer_groups_are_reported_in_order_with_progress(self, make_engine, make_generation, run):
        engine = make_engine(max_num_batched_tokens=12)
        calls = []

        def hook(group, batch):
            layer = engine._cache.layers[group].float()
            for request, num_computed, num_final in batch.progress():
                slots = [divmod(position, 8) for position in range(num_computed)]
                written = [layer[request.block_ids[block], :, :, offset].abs().sum() > 0 for block, offset in slots]
                calls.append((group, num_computed, num_final, all(written)))

        engine.steps.on_layer_group = hook
        engine.add(make_generation(PROMPT), prefill_only=True)
        run(engine)
        steps = [(12, 1), (20, 3)]
        assert calls == [(group, *progress, True) for progress in steps for group in range(4)]


class TestReserve:
    def test_starts_where_the_other_node_stopped(self, make_engine, make_generation, run):
        engine = make_engine()
        request = engine.reserve(make_generation(PROMPT, ignore_eos=True, max_tokens=3))
        assert (len(request.block_ids), request.num_present_blocks, engine.has_work) == (3, 0, False)
        engine.start(request, 77)
        outputs = run(engine)
        assert [output.index for output in outputs] == [1, 2]
        assert request.token_ids[len(PROMPT)] == 77

    def test_shares_its_blocks_from_its_start_on(self, make_engine, make_generation):
        engine = make_engine()
        first = engine.reserve(make_generation(PROMPT))
        second = engine.reserve(make_generation(PROMPT))
        assert second.num_present_blocks == 0
        engine.start(first, 77)
        third = engine.reserve(make_generation(PROMPT))
        assert third.block_ids[:2] == first.block_ids[:2]
        assert third.num_present_blocks == 2

    def test_full_blocks_of_its_own_cache_are_present(self, make_engine, make_generation, run):
        engine = make_engine()
        engine.add(make_generation(PROMPT[:16], max_tokens=1))
        run(engine)
        for prompt, num_prompt_tokens, found in [
            (PROMPT[:16], 16, (2, 16)),
            (PROMPT[:16], 9, (2, 9)),
            ([7] * 16, 16, (0, 0)),
        ]:
            request = engine.reserve(make_generation(prompt, num_prompt_tokens=num_prompt_tokens))
            assert (request.num_present_blocks, request.num_cached_tokens) == found

    def test_none_if_blocks_are_lacking_and_released_at_any_time(self, make_engine, make_generation):
        engine = make_engine(kv_memory=str(make_engine().layout.block_bytes * 8))
        first, second = engine.reserve(make_generation([1] * 40)), engine.reserve(make_generation([2] * 40))
        assert second is None
        engine.release(first)
        assert first.finish_reason is FinishReason.ABORT
        assert engine.reserve(make_generation([2] * 40)) is not None
        engine.check()

    @pytest.mark.parametrize(
        ("sampling", "reason"),
        [({"max_tokens": 1}, FinishReason.LENGTH), ({"stop_token_ids": (9,)}, FinishReason.STOP)],
    )
    def test_first_token_that_ends_it(self, make_engine, make_generation, run, sampling, reason):
        engine = make_engine()
        request = engine.reserve(make_generation(PROMPT, **sampling))
        engine.start(request, 9)
        [output] = run(engine)
        assert (output.token_id, output.finish_reason) == (NO_TOKEN, reason)  # the node that drew it has reported it
        assert engine.current_load().num_steps == 0
        assert request.token_ids == [*PROMPT, 9]
        assert engine.blocks.num_free_blocks == engine.num_blocks

    def test_only_reserved_requests_start(self, make_engine, make_generation):
        engine = make_engine()
        request = engine.reserve(make_generation(PROMPT))
        engine.release(request)
        with pytest.raises(ValueError, match="FINISHED, not RESERVED"):
            engine.start(request, 1)
