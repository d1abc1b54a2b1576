"""How benchmarks end, name themselves in reports, and show how far they are."""

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from baton.errors import BatonError


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns; with 1 and a line that says why where it fails."""
    try:
        sys.exit(main())
    except BatonError as error:
        sys.exit(f"baton: error: {error.message}")


def line(name: str, argv: Sequence[str] | None) -> str:
    """What was typed."""
    return shlex.join(["baton", "bench", name, *(sys.argv[1:] if argv is None else argv)])


def progress(*columns: ProgressColumn) -> Progress:
    """A bar, or `columns`, on the terminal's standard error, gone afterwards; nothing where that is no terminal."""
    is_shown = sys.stderr.isatty()
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_shown)
