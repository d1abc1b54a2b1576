"""`python -m prefill_node`: one prefill node."""

import sys
from collections.abc import Sequence

from baton.model_source import settle
from baton.process import heap, lifecycle  # noqa: F401 - importing `heap` is what it is for
from baton.process.settings import NodeConfig
from prefill_node.node import load, serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node until it has drained; its exit code."""
    return lifecycle.main("prefill_node", NodeConfig, load, serve, argv, settle)


if __name__ == "__main__":
    sys.exit(main())
