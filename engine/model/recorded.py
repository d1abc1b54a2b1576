"""Decode steps on a CPU without Python between their ops: recorded for each number of rows when that first occurs.

A small model's step takes milliseconds, a tenth or more of which Python would take (ADR 28). Other steps (prefill, or
with a hook between layers) run without a recording, and so do all steps of a model that needs more than compiled
kernels between its layers.
"""

import logging

from torch import Tensor

from engine.batch import Batch
from engine.config import EngineConfig
from engine.model.decoder import Decoder, LayerGroupHook
from engine.model.step_buffers import StepBuffers
from kernels.api import Logits
from kernels.cpu.kernels import CPUKernels
from kernels.cpu.recording import NotRecordable, Recording

MAX_ROWS = 32  # in larger steps Python's share is small

_log = logging.getLogger(__name__)


class RecordedDecoder:
    """A `Decoder` that replays decode steps. Results of `hidden` and `logits` are valid until the next `hidden`."""

    def __init__(self, decoder: Decoder, config: EngineConfig, kernels: CPUKernels) -> None:
        self._decoder = decoder
        self._max_rows = min(config.max_num_seqs, MAX_ROWS)  # 0 if steps cannot be recorded
        self._record = kernels.recorder(self._max_rows)
        self._buffers = StepBuffers(self._max_rows, config)
        self._replays: dict[int, Recording] = {}  # by rows
        self._latest: Recording | None = None  # that of the latest step, if it was a replay

    def hidden(self, batch: Batch, on_layer_group: LayerGroupHook | None = None) -> Tensor:
        """See `Decoder.hidden`."""
        self._latest = None
        num_rows = batch.num_tokens
        if on_layer_group or batch.meta.max_query_len > 1 or num_rows > self._max_rows:
            return self._decoder.hidden(batch, on_layer_group)
        self._buffers.fill(batch, num_rows)
        if replay := self._replays.get(num_rows):
            replay()
        elif not (replay := self._recorded(num_rows)):
            return self._decoder.hidden(batch)
        self._latest = replay
        return replay.results[0]

    def logits(self, hidden: Tensor) -> Logits:
        """See `Decoder.logits`. A replayed step has already computed those of all its rows."""
        if self._latest and hidden is self._latest.results[0]:
            return Logits(*self._latest.results[1:])
        return self._decoder.logits(hidden)

    def _recorded(self, num_rows: int) -> Recording | None:
        """Run and record a step; None if it cannot be recorded."""
        batch = self._buffers.batch(num_rows)

        def compute() -> list[Tensor]:
            hidden = self._decoder.hidden(batch)
            return [hidden, *(part for part in self._decoder.logits(hidden) if part is not None)]

        try:
            self._replays[num_rows] = self._record(compute)
        except NotRecordable as reason:
            _log.debug("decode steps are not recorded: %s", reason)
            self._max_rows = 0
            return None
        return self._replays[num_rows]
