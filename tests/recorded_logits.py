"""Engines whose logits are kept, to be compared bit for bit."""

from collections import Counter
from pathlib import Path

from torch import Tensor

from baton.process.settings import EngineFlags
from baton.request import Generation, SamplingParams
from engine.loading import load_engine
from kernels.api import Logits

MAX_TOKENS = 4


class Recording:
    """An engine that keeps the logits of each step, row by row."""

    def __init__(self, directory: Path, dtype: str, quantization: str = "none", **flags: object) -> None:
        defaults = {"device": "cpu", "kv_memory": "4MiB", "block_size": 8, "num_threads": 1}
        config = EngineFlags(model=str(directory), dtype=dtype, quantization=quantization, **(defaults | flags))
        self.engine = load_engine(directory, config)
        self.rows: Counter[bytes] = Counter()
        decoder = self.engine.steps.readout.decoder
        compute = decoder.logits

        def logits(hidden: Tensor) -> Logits:
            result = compute(hidden)
            self.rows.update(row.cpu().numpy().tobytes() for row in result.values)
            return result

        decoder.logits = logits

    def run(self) -> Counter[bytes]:
        """Step until nothing is left to do; the rows since the last call."""
        while self.engine.has_work:
            for output in self.engine.step().outputs:
                assert output.error is None
        rows, self.rows = self.rows, Counter()
        return rows


def generation(prompt: list[int], key: int = 0) -> Generation:
    return Generation(
        request_id=f"r{key}",
        key=key,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True),
        cache_salt=bytes([key]),  # nobody finds another's blocks
        router_id="router",
    )


def run_apart(first: Recording, second: Recording, prompt: list[int]) -> Counter[bytes]:
    """The prompt on the one engine, the rest on the other: the rows of both."""
    prefill, decode = first.engine, second.engine
    source = prefill.add(generation(prompt), prefill_only=True)
    rows = first.run()
    target = decode.reserve(generation(prompt))
    assert target is not None
    assert prefill.layout == decode.layout
    layout, size = prefill.layout, prefill.layout.block_group_bytes
    for group in range(layout.num_layer_groups):
        for read, write in zip(source.block_ids, target.block_ids, strict=True):
            at = layout.offset(prefill.num_blocks, group, read)
            to = layout.offset(decode.num_blocks, group, write)
            decode.pool[to : to + size] = prefill.pool[at : at + size]
    decode.start(target, source.token_ids[-1])
    return rows + second.run()
