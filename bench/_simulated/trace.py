"""Request traces in Mooncake's format: a JSON line per request {timestamp, input_length, output_length, hash_ids}."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from baton.errors import ConfigError
from bench._simulated.hardware import Hardware, SimulatedRequest

BLOCK_TOKENS = 512


class TraceLine(msgspec.Struct, frozen=True):
    """One request. Equal ids mean equal prefixes: an id stands for its block and all before it."""

    timestamp: float  # milliseconds
    input_length: int  # tokens
    output_length: int
    hash_ids: list[int]  # of each block; the last one may be of a part of a block


def read(path: Path) -> list[TraceLine]:
    """In order of time. Raises ConfigError naming the line that cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--trace: {path}: {error.strerror}") from None
    decoder, found = msgspec.json.Decoder(TraceLine), []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(decoder.decode(line))
            except msgspec.MsgspecError as error:
                raise ConfigError(f"--trace: {path}, line {number}: {error}") from None
    if not found:
        raise ConfigError(f"--trace: {path} holds no request")
    return sorted(found, key=lambda line: line.timestamp)


def requests(lines: Sequence[TraceLine], speed: float) -> Iterator[SimulatedRequest]:
    """Fresh ones, coming `speed` times as fast as in the trace."""
    start_ms = lines[0].timestamp
    for line in lines:
        yield SimulatedRequest(
            arrival_ms=(line.timestamp - start_ms) / speed,
            num_prompt_tokens=max(line.input_length, 1),
            num_output_tokens=max(line.output_length, 1),
            hashes=line.hash_ids,
        )


def ideal_hits(lines: Sequence[TraceLine]) -> tuple[int, int]:
    """(blocks that came before as part of the same prefix, blocks in all): what one boundless cache would give."""
    return sum(_hits_of_each(lines)), sum(len(line.hash_ids) for line in lines)


def ideal_work_ms(lines: Sequence[TraceLine], hardware: Hardware) -> float:
    """What computing all prompts takes one node with a boundless cache."""
    total_ms = 0.0
    for line, num_hits in zip(lines, _hits_of_each(lines), strict=True):
        num_uncached = max(line.input_length - num_hits * hardware.block_size, 1)
        total_ms += hardware.cost.prefill_ms(num_uncached, line.input_length - num_uncached, hardware.chunk_tokens)
    return total_ms


def _hits_of_each(lines: Sequence[TraceLine]) -> Iterator[int]:
    """Leading blocks of each request that came before."""
    seen: set[int] = set()
    for line in lines:
        yield next((i for i, block in enumerate(line.hash_ids) if block not in seen), len(line.hash_ids))
        seen.update(line.hash_ids)
