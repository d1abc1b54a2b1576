"""If the jail is starved of CPU, or cannot start a thread or process, its verdict on the grammar is not final."""

import errno
import os
import threading
import time

import pytest

from baton.request import Grammar, GrammarKind
from engine.grammar import jail, tokens
from engine.grammar.jail import Verdict

VOCAB, EOS = 512, 2


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return tokens.load(tiny_model, VOCAB, [EOS]).tokenizer


def test_a_starved_fork_is_waited_for_with_signs_of_life(tokenizer, monkeypatch, capfdbinary):
    def starved(grammar, tokenizer):
        time.sleep(1.2)
        return Verdict("compiled")

    monkeypatch.setattr(jail, "judge", starved)
    assert jail._judge_in_fork(Grammar(GrammarKind.REGEX, "a", "p"), tokenizer).serialized == "compiled"
    assert capfdbinary.readouterr().out.count(b" ") >= 2


def test_a_failure_to_start_a_thread_or_process_is_no_final_verdict(tokenizer, monkeypatch):
    def no_thread(thread):
        raise RuntimeError("can't start new thread")

    def no_process():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    monkeypatch.setattr(os, "fork", no_process)
    for judge in (jail.judge, jail._judge_in_fork):
        assert not judge(Grammar(GrammarKind.REGEX, "a", "p"), tokenizer).is_final
