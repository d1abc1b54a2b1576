"""`python -m prefill_node`: one prefill node."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from baton.node.start import complete
from baton.process import heap, lifecycle  # noqa: F401 - importing `heap` is what it is for
from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig

if TYPE_CHECKING:
    from engine.engine import Engine


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node until it has drained; its exit code."""
    return lifecycle.main("baton prefill", NodeConfig, _load, _serve, argv, complete)


def _load(config: NodeConfig) -> "Engine":
    from prefill_node import node  # with torch, for which nobody waits who has mistyped a flag

    return node.load(config)


async def _serve(config: NodeConfig, engine: "Engine", shutdown: Shutdown) -> None:
    from prefill_node import node

    await node.serve(config, engine, shutdown)


if __name__ == "__main__":
    sys.exit(main())
