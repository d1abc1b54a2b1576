import json
from pathlib import Path

import pytest

from baton.errors import ConfigError
from bench._simulated import trace
from bench._simulated.block_cache import BlockCache
from bench._simulated.hardware import Hardware

ROWS = [
    {"timestamp": 3000, "input_length": 1500, "output_length": 20, "hash_ids": [1, 2, 5]},
    {"timestamp": 1000, "input_length": 1200, "output_length": 10, "hash_ids": [1, 2, 3]},
    {"timestamp": 4000, "input_length": 700, "output_length": 0, "hash_ids": [7, 2]},
]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_a_trace_in_order_of_time_and_faster(tmp_path: Path) -> None:
    lines = trace.read(write(tmp_path / "trace", *map(json.dumps, ROWS)))
    found = list(trace.requests(lines, speed=4.0))
    assert [request.arrival_ms for request in found] == [0, 500, 750]
    assert [request.num_output_tokens for request in found] == [10, 20, 1]
    assert trace.ideal_hits(lines) == (2, 8)  # a block is a hit only if all blocks before it are
    hardware = Hardware()
    whole = sum(hardware.cost.prefill_ms(n, 0, hardware.chunk_tokens) for n in (1200, 700))
    rest = hardware.cost.prefill_ms(1500 - 1024, 1024, hardware.chunk_tokens)
    assert trace.ideal_work_ms(lines, hardware) == pytest.approx(whole + rest)


@pytest.mark.parametrize("content", [None, "", '{"timestamp": 1}', "no json"])
def test_an_invalid_trace_is_a_config_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "trace"
    if content is not None:
        write(path, content)
    with pytest.raises(ConfigError, match="--trace"):
        trace.read(path)


def test_a_cache_evicts_the_end_of_a_prefix_first() -> None:
    cache = BlockCache(5)
    cache.touch([1, 2, 3])
    cache.touch([4, 5, 6])
    assert (len(cache), cache.find([1, 2, 3]), cache.find([4, 5, 6])) == (5, 2, 3)
    cache.touch([1, 2])
    cache.touch([7])
    assert (cache.find([1, 2]), cache.find([4, 5, 6])) == (2, 2)
    cache.shrink(1)
    assert (len(cache), cache.find([7]), cache.find([])) == (1, 1, 0)
