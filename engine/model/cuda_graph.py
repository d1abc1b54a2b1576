"""Decode steps as CUDA graphs: the launches of a step are captured once per batch size, and replayed with one call.

A graph reads fixed addresses, so a batch is first copied into buffers and padded to the next captured size. Padding
rows are sequences of one query and no keys; their slot is -1, so their KV is not written. Other steps (prefill, or with
a hook between layers) run without a graph. How a graph is captured is a parameter: without a GPU, a plain call will do.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.batch import Batch
from engine.config import EngineConfig
from engine.model.decoder import Decoder, LayerGroupHook
from engine.model.step_buffers import StepBuffers
from kernels.api import Logits

Results = tuple[Tensor, Tensor, Tensor]  # hidden [B, H], logits [B, V], whether these are finite [B]
Compute = Callable[[], Results]
Capture = Callable[[Compute], Compute]
"""Captures a computation. Calling the result repeats it on the current contents of the same addresses.

The results of a call are overwritten by the next call.
"""


def batch_sizes(largest: int) -> list[int]:
    """Sizes to capture, up to the first that holds `largest`: powers of two, and from 16 on halfway between them."""
    sizes = [1]
    while sizes[-1] < largest:
        power = 1 << (sizes[-1].bit_length() - 1)
        sizes.append(power + power // 2 if power >= 16 and sizes[-1] == power else 2 * power)
    return sizes


class CudaCapture:
    """Captures CUDA graphs, which share one memory pool for tensors within a step."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """See `Capture`."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()  # first-use compilation and allocation must not happen during the capture
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = compute()

        def replay() -> Results:
            graph.replay()
            return results

        return replay


class GraphedDecoder:
    """A `Decoder` that replays decode steps. Results of `hidden` and `logits` are valid until the next `hidden`."""

    def __init__(self, decoder: Decoder, config: EngineConfig, capture: Capture) -> None:
        """Capture all sizes, which takes seconds."""
        self._decoder = decoder
        self._sizes = batch_sizes(config.max_num_seqs)
        self._buffers = StepBuffers(self._sizes[-1], config)
        self._latest: tuple[Tensor, Logits] | None = None  # of the latest step, if it was a replay
        with torch.inference_mode():
            # The largest first: smaller ones can reuse its memory.
            self._graphs = {size: capture(self._computes(size)) for size in reversed(self._sizes)}

    def hidden(self, batch: Batch, on_layer_group: LayerGroupHook | None = None) -> Tensor:
        """See `Decoder.hidden`."""
        self._latest = None
        num_rows = batch.num_tokens
        if on_layer_group or batch.meta.max_query_len > 1 or num_rows > self._sizes[-1]:
            return self._decoder.hidden(batch, on_layer_group)
        size = next(size for size in self._sizes if size >= num_rows)
        self._buffers.fill(batch, size)
        hidden, values, is_finite = self._graphs[size]()
        self._latest = hidden[:num_rows], Logits(values[:num_rows], is_finite[:num_rows], None)
        return self._latest[0]

    def logits(self, hidden: Tensor) -> Logits:
        """See `Decoder.logits`. A replayed step has already computed those of all its rows."""
        if self._latest and hidden is self._latest[0]:
            return self._latest[1]
        return self._decoder.logits(hidden)

    def _computes(self, size: int) -> Compute:
        batch = self._buffers.batch(size)

        def compute() -> Results:
            hidden = self._decoder.hidden(batch)
            values, is_finite, _ = self._decoder.logits(hidden)
            return hidden, values, is_finite

        return compute
