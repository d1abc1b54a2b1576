import io
import os

import pytest
from rich.console import Console as Terminal

from baton.errors import ConfigError
from fleet.up.console import Live, Piped, Plain, for_terminal, replay


def test_plain_output_prints_each_change_once():
    out = io.StringIO()
    plain = Plain(out)
    for fraction in (0.1, 0.2, 0.3):
        plain.update("decode-0", "loading weights", fraction)
    plain.update("decode-0", "ready", done=True)
    lines = out.getvalue().splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["decode-0: loading weights", "decode-0: ready"]


def test_a_closed_output_does_not_end_the_fleet():
    read, write = os.pipe()
    os.close(read)
    plain = Plain(os.fdopen(write, "w"))
    plain.note("hello")
    plain.note("still here")


def test_the_live_display_shows_percent_and_then_a_tick():
    out = io.StringIO()
    live = Live(Terminal(file=out, force_terminal=True, width=100))
    live.update("decode-0", "loading weights", 0.42)
    live._progress.refresh()
    assert "42%" in out.getvalue()
    live.update("decode-0", "ready", done=True)
    live.close()
    assert "✓" in out.getvalue()


def test_output_without_a_terminal_is_plain_lines():
    assert isinstance(for_terminal(io.StringIO()), Plain)


def test_a_pipe_carries_all_events():
    sent, seen, later = io.StringIO(), io.StringIO(), io.StringIO()
    sent.close = lambda: None  # type: ignore[method-assign]
    piped = Piped(sent, then=Plain(later))
    piped.update("redis", "ready", None, done=True)
    piped.note("welcome")
    piped.finish(0)
    piped.update("redis", "died")
    piped.note("redis died")
    assert replay(io.StringIO(sent.getvalue()), Plain(seen)) == 0
    assert seen.getvalue().endswith("redis: ready\nwelcome\n")
    assert later.getvalue() == "redis died\n"


def test_a_failed_start_is_raised_at_the_other_end_of_the_pipe():
    sent = io.StringIO()
    Piped(sent, then=Plain(io.StringIO())).fail("no model")
    with pytest.raises(ConfigError, match="no model"):
        replay(io.StringIO(sent.getvalue()), Plain(io.StringIO()))


def test_a_pipe_that_ends_early_gives_no_exit_code():
    assert replay(io.StringIO(""), Plain(io.StringIO())) is None
