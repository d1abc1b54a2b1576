"""From the step thread to the legs: progress of layer groups, and first tokens; and the load to the board.

The hook runs on the step thread, once per layer group of each step, and hands everything on in one call into the event
loop; requests that are gone by then are skipped.
"""

import asyncio

from baton.node.load import CACHED_TOKENS, OUTPUT_TOKENS, PROMPT_TOKENS, LoadBoard
from engine.batch import Batch
from engine.outputs import Output, StepOutput
from engine.owners import Owners
from prefill_node.legs import PrefillLeg


class Outputs(Owners[PrefillLeg]):
    """What the legs are told."""

    def __init__(self, board: LoadBoard) -> None:
        super().__init__(board)
        self._loop = asyncio.get_running_loop()

    def on_layer_group(self, layer_group: int, batch: Batch) -> None:
        """On the step thread: that group of the batch is computed and written."""
        rows = [
            (leg, progress.num_final_blocks, progress.request.block_ids)
            for progress in batch.progress()
            if (leg := self.of(progress.request)) is not None
        ]
        if rows:
            self._loop.call_soon_threadsafe(_advance, layer_group, rows)

    def deliver(self, step: StepOutput) -> None:
        """In the event loop: first tokens."""
        for token in step.outputs:
            leg = self.of(token.request)
            if leg is not None and not leg.output.done():
                leg.output.set_result(token)
                if not leg.was_set_aside:
                    _count(token)


def _count(token: Output) -> None:
    PROMPT_TOKENS.inc(token.request.num_prompt_tokens)
    CACHED_TOKENS.inc(token.request.num_cached_tokens)
    OUTPUT_TOKENS.inc(token.error is None)


def _advance(layer_group: int, rows: list[tuple[PrefillLeg, int, list[int]]]) -> None:
    for leg, num_blocks, block_ids in rows:
        leg.advance(layer_group, num_blocks, block_ids)
