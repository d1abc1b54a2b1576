"""How `baton up` tells what it does: a live line per service in a terminal, plain lines elsewhere.

What it leaves to others: what to tell. A detached supervisor tells it through a pipe to the `baton up` that started it.
"""

import json
import time
from typing import IO, Protocol

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from baton.errors import ConfigError


class Reporter(Protocol):
    """Is told what happens while a fleet starts and runs."""

    def update(self, name: str, text: str, fraction: float | None = None, done: bool = False) -> None:
        """`name` is now at `text`; `fraction` of it where that is known."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def close(self) -> None:
        """Nothing will change any more, except by `note`."""


class Plain:
    """One line per change of text."""

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
        except OSError:  # nobody reads any more; the fleet goes on
            self._out = open("/dev/null", "w")  # noqa: SIM115 - lives as long as the process

    def close(self) -> None:
        """See Reporter."""


class Live:
    """One line per service that changes in place."""

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
    """Passes everything on as JSON lines; `replay` is the other end."""

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
        """Tell the reader the exit code of the start; what comes later goes to `then`."""
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
        except OSError:  # the reader has gone
            self._out = None


def replay(source: IO[str], reporter: Reporter) -> int | None:
    """Tell `reporter` what a `Piped` sends; its exit code, None where it just ends, ConfigError where it failed."""
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
    """A live display where `out` is a terminal, plain lines elsewhere."""
    terminal = Terminal(file=out)
    return Live(terminal) if terminal.is_terminal else Plain(out)
