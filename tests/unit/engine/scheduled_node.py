"""A node that schedules, and computes nothing."""

import numpy as np

from baton.request import FinishReason
from engine.blocks import BlockManager
from engine.config import EngineConfig
from engine.request import RequestState
from engine.rows import Rows
from engine.scheduler import Scheduler


class Node:
    """A scheduler with a model that computes nothing and always answers token 7."""

    def __init__(self, num_blocks=32, block_size=4, max_num_seqs=8, max_num_batched_tokens=16):
        self.config = EngineConfig(
            max_model_len=num_blocks * block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            block_size=block_size,
            num_blocks=num_blocks,
            dtype="float32",
            device="cpu",
        )
        self.blocks = BlockManager(num_blocks, block_size)
        self.rows = Rows(max_num_seqs, self.config.max_blocks_per_request)
        self.scheduler = Scheduler(self.config, self.blocks, self.rows)

    def step(self):
        """Schedule a step and pretend to compute it; returns its [(request, num_tokens)]."""
        schedule = self.scheduler.schedule()
        scheduled = list(zip(schedule.requests, schedule.num_tokens.tolist(), strict=True))
        assert schedule.rows.tolist() == [request.row for request in schedule.requests]
        assert sum(n for _, n in scheduled) <= self.config.max_num_batched_tokens
        assert len({request.row for request, _ in scheduled}) == len(scheduled) <= self.config.max_num_seqs
        for request, n in scheduled:
            assert request.state is RequestState.RUNNING
            assert len(request.block_ids) * self.config.block_size >= request.num_computed_tokens + n
            table = self.rows.block_tables[request.row, : len(request.block_ids)]
            assert table.tolist() == request.block_ids
        drawn = [i for i, (request, n) in enumerate(scheduled) if n == request.num_uncomputed_tokens]
        places = np.array(drawn, np.int64)
        advance = self.rows.launch(schedule, places)
        self.rows.num_pending[schedule.rows] -= 1
        self.rows.land(schedule, advance, places, [7] * len(drawn))
        for place, (request, _) in enumerate(scheduled):
            self.blocks.publish(request)
            if place in drawn:
                self._end(request)
        self.blocks.check(self.scheduler.requests())
        self.rows.check(self.scheduler.running)
        return scheduled

    def _end(self, request):
        if request.prefill_only:
            self.scheduler.hold(request)
        elif request.num_output_tokens >= request.sampling.max_tokens:
            request.finish_reason = FinishReason.LENGTH
            self.scheduler.release(request)
