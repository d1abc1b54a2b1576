"""A fingerprint of a model and its weights, the same on two nodes if and only if their KV blocks are interchangeable.

Fast rather than complete: it covers config.json, and the size, header and samples of the bytes of each shard. So it
guards against mistakes (another checkpoint, another fine-tune), not against forgery.
"""

import hashlib
import json
from pathlib import Path

from baton.model_dir import read_json

_NUM_SAMPLES = 32
_SAMPLE_BYTES = 4096
_NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache")


def fingerprint(model_dir: str | Path, shards: list[Path], *extras: str) -> str:
    """Return 32 hex digits for config.json and the shards; `extras` are further facts on which KV depends."""
    config = read_json(Path(model_dir) / "config.json")
    kept = {name: value for name, value in config.items() if name not in _NOT_OF_THE_MODEL}
    digest = hashlib.sha256(json.dumps([kept, extras], sort_keys=True).encode())
    for shard in shards:
        for part in _samples(shard):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()[:32]


def _samples(shard: Path) -> list[bytes]:
    size = shard.stat().st_size
    with shard.open("rb") as file:
        prefix = file.read(8)
        parts = [size.to_bytes(8, "little"), prefix, file.read(int.from_bytes(prefix, "little"))]
        first = file.tell()
        step = max((size - first) // _NUM_SAMPLES, 1)
        for offset in [*range(first, size, step), max(size - _SAMPLE_BYTES, first)]:
            file.seek(offset)
            parts.append(file.read(_SAMPLE_BYTES))
    return parts
