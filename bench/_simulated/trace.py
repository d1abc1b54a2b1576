"""Request traces in Mooncake's format: a JSON line per request {timestamp, input_length, output_length, hash_ids}."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from baton.errors import ConfigError
from bench._simulated.hardware import Hardware, SimulatedRequest

BLOCK_TOKENS = 512


class TraceLine(msgspec.Struct, frozen=True):
    """A request. Equal ids mean equal prefixes, because an id stands for its block and all before it."""

    timestamp: float  # milliseconds
    input_length: int  # tokens
    output_length: int
    hash_ids: list[int]  # one per block; the last block may be partial


def read(path: Path) -> list[TraceLine]:
    """Read a trace, ordered by time. Raises ConfigError, naming the line that cannot be parsed."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--trace: {path}: {error.strerror}") from None
    decoder, decoded = msgspec.json.Decoder(TraceLine), []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                decoded.append(decoder.decode(line))
            except msgspec.MsgspecError as error:
                raise ConfigError(f"--trace: {path}, line {number}: {error}") from None
    if not decoded:
        raise ConfigError(f"--trace: {path} contains no requests")
    return sorted(decoded, key=lambda line: line.timestamp)


def requests(lines: Sequence[TraceLine], speed: float) -> Iterator[SimulatedRequest]:
    """Yield new requests, arriving `speed` times as fast as in the trace."""
    start_ms = lines[0].timestamp
    for line in lines:
        yield SimulatedRequest(
            arrival_ms=(line.timestamp - start_ms) / speed,
            num_prompt_tokens=max(line.input_length, 1),
            num_output_tokens=max(line.output_length, 1),
            hashes=line.hash_ids,
        )


def ideal_hits(lines: Sequence[TraceLine]) -> tuple[int, int]:
    """Return (blocks that an unbounded cache would hit, all blocks)."""
    return sum(_hits_of_each(lines)), sum(len(line.hash_ids) for line in lines)


def ideal_work_ms(lines: Sequence[TraceLine], hardware: Hardware) -> float:
    """Return how long one node with an unbounded cache takes to compute all prompts."""
    total_ms = 0.0
    for line, num_hits in zip(lines, _hits_of_each(lines), strict=True):
        num_uncached = max(line.input_length - num_hits * hardware.block_size, 1)
        total_ms += hardware.cost.prefill_ms(num_uncached, line.input_length - num_uncached, hardware.chunk_tokens)
    return total_ms


def _hits_of_each(lines: Sequence[TraceLine]) -> Iterator[int]:
    """Yield how many leading blocks of each request have occurred before."""
    seen: set[int] = set()
    for line in lines:
        yield next((i for i, block in enumerate(line.hash_ids) if block not in seen), len(line.hash_ids))
        seen.update(line.hash_ids)
