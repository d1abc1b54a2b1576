"""`python -m prefill_node`: run a prefill node."""

import sys
from collections.abc import Sequence

from baton.node import start
from baton.process import heap  # noqa: F401 - takes effect when it is imported


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node until it has drained; return the exit code."""
    return start.main("baton prefill", "prefill_node.node", argv)


if __name__ == "__main__":
    sys.exit(main())
