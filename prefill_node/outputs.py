"""From the step thread to the legs: progress of layer groups, and first tokens; and the load to the board.

The hook runs on the step thread, once per layer group of each step, and hands everything on in one call into the event
loop; requests that are gone by then are skipped.
"""

import asyncio

from baton.node_load import CACHED_TOKENS, OUTPUT_TOKENS, PROMPT_TOKENS, LoadBoard
from engine.batch import Batch
from engine.engine import Engine
from engine.outputs import StepOutput
from engine.request import Request, RequestState
from prefill_node.legs import PrefillLeg


class Outputs:
    """Which leg a request of the engine belongs to."""

    def __init__(self, board: LoadBoard) -> None:
        self._board = board
        self._loop = asyncio.get_running_loop()
        self._legs: dict[int, PrefillLeg] = {}  # by id(request); changed on the step thread, each change atomic

    def expect(self, request: Request, leg: PrefillLeg) -> None:
        """On the step thread: the leg wants what the engine says of this request."""
        self._legs[id(request)] = leg

    def forget(self, request: Request) -> None:
        """On the step thread: it no longer does."""
        self._legs.pop(id(request), None)

    def publish(self, engine: Engine) -> None:
        """On the step thread: what the engine looks like now."""
        leased: set[int] = set()
        for leg in self._legs.values():
            if leg.request is not None and leg.request.state is RequestState.HELD:
                leased.update(leg.request.block_ids)
        self._board.publish(
            engine.current_load(),
            num_cached=engine.blocks.num_cached_blocks,
            num_leased=len(leased),
            num_preemptions=engine.num_preemptions,
        )

    def on_layer_group(self, layer_group: int, batch: Batch) -> None:
        """On the step thread: that group of the batch is computed and written."""
        rows = [
            (leg, progress.num_final_blocks, progress.request.block_ids)
            for progress in batch.progress()
            if (leg := self._legs.get(id(progress.request))) is not None
        ]
        if rows:
            self._loop.call_soon_threadsafe(_advance, layer_group, rows)

    def deliver(self, step: StepOutput) -> None:
        """In the event loop: first tokens."""
        for token in step.outputs:
            leg = self._legs.get(id(token.request))
            if leg is not None and not leg.output.done():
                leg.output.set_result(token)
                PROMPT_TOKENS.inc(token.request.num_prompt_tokens)
                CACHED_TOKENS.inc(token.request.num_cached_tokens)
                OUTPUT_TOKENS.inc(token.error is None)


def _advance(layer_group: int, rows: list[tuple[PrefillLeg, int, list[int]]]) -> None:
    for leg, num_blocks, block_ids in rows:
        leg.advance(layer_group, num_blocks, block_ids)
