"""The output of `baton up`: a live line per service in a terminal, plain lines elsewhere.

A detached supervisor sends its output through a pipe to the `baton up` that started it.
"""

import json
import time
from typing import IO, Protocol

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from baton.errors import ConfigError


class Reporter(Protocol):
    """Reports events while a fleet starts and runs."""

    def update(self, name: str, text: str, fraction: float | None = None, done: bool = False) -> None:
        """Show that service `name` is now in state `text`, with the completed `fraction` if known."""

    def note(self, text: str) -> None:
        """Print a message."""

    def close(self) -> None:
        """End the display; only `note` is called afterwards."""


class Plain:
    """Prints one line per change of text."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._began = out, time.monotonic()
        self._last: dict[str, str] = {}

    def update(self, name: str, text: str, fraction: float | None = None, done: bool = False) -> None:
        """See Reporter."""
        if self._last.get(name) != text:
            self._last[name] = text
            self.note(f"[{time.monotonic() - self._began:5.1f} s] {name}: {text}")

    def note(self, text: str) -> None:
        """See Reporter."""
        try:
            print(text, file=self._out, flush=True)
        except OSError:  # the reader is gone; the fleet keeps running
            self._out = open("/dev/null", "w")  # noqa: SIM115 - lives as long as the process

    def close(self) -> None:
        """See Reporter."""


class Live:
    """Updates one line per service in place."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.fields[name]:<12}", style="bold"),
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[percent]}"),
            console=terminal,
            transient=False,
        )
        self._progress.start()

    def update(self, name: str, text: str, fraction: float | None = None, done: bool = False) -> None:
        """See Reporter."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(text, total=None, name=name, percent="")
        shown = 1.0 if done else fraction
        self._progress.update(
            self._tasks[name],
            description=text,
            total=None if shown is None else 1.0,
            completed=shown or 0.0,
            percent="" if done or fraction is None else f"{fraction:.0%}",
        )

    def note(self, text: str) -> None:
        """See Reporter."""
        self._terminal.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """See Reporter."""
        self._progress.stop()


class Piped:
    """Sends all events as JSON lines; `replay` reads them at the other end."""

    def __init__(self, out: IO[str], then: Reporter) -> None:
        self._out: IO[str] | None = out
        self._then = then

    def update(self, name: str, text: str, fraction: float | None = None, done: bool = False) -> None:
        """See Reporter."""
        self._send({"name": name, "text": text, "fraction": fraction, "done": done})

    def note(self, text: str) -> None:
        """See Reporter."""
        self._send({"note": text})

    def finish(self, code: int) -> None:
        """Send the exit code of the start; later events go to `then`."""
        self._send({"exit": code})
        if self._out is not None:
            self._out.close()
            self._out = None

    def fail(self, message: str) -> None:
        """Have the reader raise it as a ConfigError."""
        self._send({"error": message})

    def close(self) -> None:
        """See Reporter."""

    def _send(self, event: dict[str, object]) -> None:
        if self._out is None:
            for text in (event[key] for key in ("note", "error") if key in event):
                self._then.note(str(text))
            return
        try:
            print(json.dumps(event), file=self._out, flush=True)
        except OSError:  # the reader is gone
            self._out = None


def replay(source: IO[str], reporter: Reporter) -> int | None:
    """Pass a `Piped`'s events to `reporter`; return its exit code, or None if the pipe ends without one.

    Raises ConfigError if it reports a failure.
    """
    for line in source:
        event = json.loads(line)
        if "exit" in event:
            return int(event["exit"])
        if "error" in event:
            raise ConfigError(event["error"])
        if "note" in event:
            reporter.note(event["note"])
        else:
            reporter.update(**event)
    return None


def for_terminal(out: IO[str]) -> Reporter:
    """Return a live display if `out` is a terminal, else plain lines."""
    terminal = Terminal(file=out)
    return Live(terminal) if terminal.is_terminal else Plain(out)
