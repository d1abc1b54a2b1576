"""`python -m prefill_node`: run a prefill node."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from baton.node.start import complete
from baton.process import heap, lifecycle  # noqa: F401 - `heap` takes effect when it is imported
from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig

if TYPE_CHECKING:
    from engine.engine import Engine


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node until it has drained; return the exit code."""
    return lifecycle.main("baton prefill", NodeConfig, _load, _serve, argv, complete)


def _load(config: NodeConfig) -> "Engine":
    from prefill_node import node  # imports torch: not before the flags have been parsed, as it takes long

    return node.load(config)


async def _serve(config: NodeConfig, engine: "Engine", shutdown: Shutdown) -> None:
    from prefill_node import node

    await node.serve(config, engine, shutdown)


if __name__ == "__main__":
    sys.exit(main())
