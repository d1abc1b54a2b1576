import json
import random
from pathlib import Path

import pytest

from bench import routing


def write_trace(path: Path, num_requests: int = 150) -> Path:
    """Return conversations of a few turns with a common system prompt."""
    rng, lines, serial = random.Random(2), [], 1
    open_ones: list[list[int]] = []
    for i in range(num_requests):
        ids = open_ones.pop(rng.randrange(len(open_ones))) if open_ones and rng.random() < 0.6 else [0]
        ids = ids + list(range(serial, serial + rng.randint(1, 6)))
        serial += 10
        open_ones.append(ids)
        row = {"timestamp": 500 * i, "input_length": 512 * len(ids) - 7, "output_length": rng.randint(5, 300)}
        lines.append(json.dumps(row | {"hash_ids": ids}))
    path.write_text("\n".join(lines))
    return path


def test_a_table_for_each_fleet_in_which_the_router_is_ahead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_trace(tmp_path / "trace.jsonl")
    assert routing.main(["--trace", str(path), "--nodes", "4", "8", "--max-requests", "140"]) == 0
    out = capsys.readouterr().out
    assert "140 requests" in out
    assert str(tmp_path) not in out
    tables = [table.splitlines() for table in out.split("\n\n")[1:]]
    assert len(tables) == 2
    for _, _, *rows in tables:
        p90 = {row[:16].strip(): float(row[16:].split()[3]) for row in rows}
        hits = {row[:16].strip(): float(row[16:].split()[0]) for row in rows}
        assert set(p90) == {"baton", "round robin", "least loaded", "prefix affinity"}
        assert p90["baton"] <= 1.25 * min(p90.values())  # such a short trace hardly fills the caches
        assert p90["baton"] < 0.8 * p90["least loaded"]
        assert hits["baton"] > 1.5 * hits["round robin"]
