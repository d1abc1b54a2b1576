"""Passes results from the step thread to the legs: progress of layer groups, and first tokens.

The hook runs on the step thread, once per layer group of each step, and passes all progress to the event loop in one
call. Requests without a leg are skipped.
"""

import asyncio

from baton.node.load import CACHED_TOKENS, OUTPUT_TOKENS, PROMPT_TOKENS, LoadBoard
from engine.batch import Batch
from engine.outputs import Output, StepOutput
from engine.owners import Owners
from prefill_node.legs import PrefillLeg


class Outputs(Owners[PrefillLeg]):
    """The legs by request, and what they are told. Publishes the load, too (`Owners`)."""

    def __init__(self, board: LoadBoard) -> None:
        super().__init__(board)
        self._loop = asyncio.get_running_loop()

    def on_layer_group(self, layer_group: int, batch: Batch) -> None:
        """Report that a layer group of the batch is computed and written. On the step thread."""
        rows = [
            (leg, progress.num_final_blocks, progress.request.block_ids)
            for progress in batch.progress()
            if (leg := self.of(progress.request)) is not None
        ]
        if rows:
            self._loop.call_soon_threadsafe(_advance, layer_group, rows)

    def deliver(self, step: StepOutput) -> None:
        """Pass first tokens, or errors, to the legs. In the event loop."""
        for output in step.outputs:
            leg = self.of(output.request)
            if leg is not None and not leg.output.done():
                leg.output.set_result(output)
                if not leg.was_set_aside:
                    _count(output)


def _count(output: Output) -> None:
    PROMPT_TOKENS.inc(output.request.num_prompt_tokens)
    CACHED_TOKENS.inc(output.request.num_cached_tokens)
    OUTPUT_TOKENS.inc(output.error is None)


def _advance(layer_group: int, rows: list[tuple[PrefillLeg, int, list[int]]]) -> None:
    for leg, num_blocks, block_ids in rows:
        leg.advance(layer_group, num_blocks, block_ids)
