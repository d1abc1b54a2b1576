from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fleet.up.stand_in_fleet import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.end()


@pytest.fixture(scope="package")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A fleet that tests read, but never change."""
    bench = Bench(tmp_path_factory.mktemp("standing"))
    bench.start(BATON_PREFILL="2", BATON_MAX_NUM_SEQS="9")
    yield bench
    bench.end()
