"""The command line of benchmarks: parser, the command printed in reports, and progress bars."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from baton.process.help import HelpFormatter


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser for `baton bench name`, described by the first line of the module's docstring."""
    description = (doc or "").partition("\n")[0]
    return argparse.ArgumentParser(prog=f"baton bench {name}", description=description, formatter_class=HelpFormatter)


def line(name: str, argv: Sequence[str]) -> str:
    """Return the command as it was typed, but paths without their folders, which are private to a machine."""
    return shlex.join(["baton", "bench", name, *(Path(word).name if word.startswith("/") else word for word in argv)])


def progress(*columns: ProgressColumn) -> Progress:
    """Return a progress display on standard error, removed at the end; invisible if that is not a terminal.

    Anything printed meanwhile appears above it, or in the file that standard output is redirected to.
    """
    console, is_shown = Console(stderr=True), sys.stderr.isatty()
    return Progress(
        *columns, console=console, transient=True, disable=not is_shown, redirect_stdout=sys.stdout.isatty()
    )
