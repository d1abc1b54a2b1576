"""How a benchmark ends that is a process of its own."""

import sys
from collections.abc import Callable
from typing import NoReturn

from baton.errors import BatonError


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns; with 1 and a line that says why where it fails."""
    try:
        sys.exit(main())
    except BatonError as error:
        sys.exit(f"baton: error: {error.message}")
