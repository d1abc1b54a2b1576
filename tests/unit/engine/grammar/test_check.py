"""The node's end of the process that compiles grammars: it waits for it, gives it up, and replaces it."""

import os
import select
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from baton.errors import Overloaded
from baton.request import Grammar, GrammarKind
from engine.grammar.check import GrammarCheck

VOCAB, EOS = 512, 2


@pytest.fixture
def check(tiny_model):
    check = GrammarCheck(tiny_model, VOCAB, [EOS])
    yield check
    check.close()


def test_a_compiler_shares_the_processor_with_its_node(check):
    """It has a process group of its own, since Ctrl-C is not for it. But with a session, and so a scheduling group, of
    its own it had to wait for a core for seconds."""
    check.warm()
    assert os.getsid(check._process.pid) == os.getsid(0)
    assert os.getpgid(check._process.pid) == check._process.pid


def test_a_process_that_never_answers_is_tried_once(check):
    check._command = ["false"]
    with pytest.raises(Overloaded):  # which another node may not be
        check.run(Grammar(GrammarKind.REGEX, "a", "p"))
    assert check._process is None


def test_a_slow_process_that_shows_signs_of_life_is_waited_for(check):
    slow = "import time\nfor _ in range(12): print(end=' ', flush=True); time.sleep(0.2)\nprint('{}', flush=True)"
    check._command = [sys.executable, "-c", slow]
    process = check._start()
    select.select([process.stdout], [], [])  # the interpreter's start has its share
    check._timeout_s = 2.0  # less than all of it takes
    assert not check.run(Grammar(GrammarKind.REGEX, "a", "p")).error
    assert check._process is process


@pytest.mark.parametrize("num_chars", [10, 60_000])  # the latter is more than a pipe holds
def test_a_frozen_process_is_replaced(check, num_chars):
    assert not check.run(Grammar(GrammarKind.REGEX, "a", "p")).error
    os.kill(check._process.pid, signal.SIGSTOP)
    check._timeout_s = 0.3
    frozen = check._process
    check.run(Grammar(GrammarKind.REGEX, "\x01" * num_chars, "p"))
    assert check._process is not frozen
    assert not check.run(Grammar(GrammarKind.REGEX, "b", "p")).error


def test_closing_ends_a_wait(check):
    check.run(Grammar(GrammarKind.REGEX, "a", "p"))
    os.kill(check._process.pid, signal.SIGSTOP)
    check._timeout_s = 60.0
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(check.run, Grammar(GrammarKind.REGEX, "b", "p"))
        while not check._lock.locked():
            time.sleep(0.001)
        check.close()
        with pytest.raises(Overloaded):
            waiting.result(timeout=5.0)
