"""How benchmarks are asked for, end, name themselves in reports, and show how far they are."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from baton.errors import BatonError


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `baton bench name`, which the first line of its module's docstring describes."""
    return argparse.ArgumentParser(prog=f"baton bench {name}", description=(doc or "").partition("\n")[0])


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns; with 1 and a line that says why where it fails."""
    try:
        sys.exit(main())
    except BatonError as error:
        sys.exit(f"baton: error: {error.message}")


def line(name: str, argv: Sequence[str] | None) -> str:
    """What was typed."""
    return shlex.join(["baton", "bench", name, *(sys.argv[1:] if argv is None else argv)])


def words(argv: Sequence[str] | None) -> list[str]:
    """What was typed after the name; of paths only their ends, as where a machine keeps files is nobody's matter."""
    return [Path(word).name for word in (sys.argv[1:] if argv is None else argv)]


def progress(*columns: ProgressColumn) -> Progress:
    """A bar, or `columns`, on the terminal's standard error, gone afterwards; nothing where that is no terminal.

    What is printed meanwhile goes above it, or to the file that standard output leads to.
    """
    console, is_shown = Console(stderr=True), sys.stderr.isatty()
    return Progress(
        *columns, console=console, transient=True, disable=not is_shown, redirect_stdout=sys.stdout.isatty()
    )
