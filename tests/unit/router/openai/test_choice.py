"""The end of a choice is reported once, whatever is reported of its job afterwards."""

from types import SimpleNamespace
from typing import Any

import pytest

from baton.errors import NoCapacity
from baton.request import FinishReason, SamplingParams
from router.job import Usage
from router.openai.choice import Choice

USAGE = Usage(num_prompt_tokens=5)


class Told:
    """The calls to a listener, in order."""

    def __init__(self) -> None:
        self.words: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda choice, *rest: self.words.append((name, *rest[:1]) if name == "on_delta" else (name,))

    def inserter(self, choice: Choice) -> None:
        return None

    def on_failure(self, error: Exception) -> None:
        self.words.append(("on_failure", str(error)))


@pytest.fixture
def make(served_model):
    """A choice that stops at "x", its tokens, and the calls to its listener."""

    def make() -> tuple[Choice, Any, list[Any]]:
        told = Told()
        choice = Choice(0, told, served_model.token_texts, SamplingParams(), ("x",), at_start=False)
        choice.handle = SimpleNamespace(cancel=lambda: told.words.append(("cancelled",)), usage=USAGE)
        return choice, served_model.tokenizer.encode, told.words

    return make


def test_nothing_is_reported_after_a_stop_string(make):
    choice, tokens, told = make()
    choice.on_tokens(tokens("ab x cd"), None)
    expected = [("on_begin",), ("cancelled",), ("on_delta", "ab "), ("on_end",)]
    assert told == expected
    assert (choice.finish_reason, choice.usage) == ("stop", USAGE)
    choice.on_prompt(None)
    choice.on_tokens(tokens("more"), None)
    choice.on_finish(FinishReason.LENGTH, Usage(num_prompt_tokens=9))
    choice.on_error(NoCapacity("none"))
    assert told == expected
    assert (choice.finish_reason, choice.usage) == ("stop", USAGE)


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR, FinishReason.UNFINISHED])
def test_an_aborted_generation_is_a_failure(make, reason):
    choice, tokens, told = make()
    choice.on_tokens(tokens("ab"), None)
    choice.on_finish(reason, USAGE)
    assert told[-1] == ("on_failure", "the generation was aborted")
    assert not choice.finish_reason


@pytest.mark.parametrize(("reason", "name"), [(FinishReason.STOP, "stop"), (FinishReason.LENGTH, "length")])
def test_an_end_has_a_reason_and_usage(make, reason, name):
    choice, tokens, told = make()
    choice.on_tokens(tokens("ab"), None)
    choice.on_finish(reason, USAGE)
    assert (told[-1], choice.finish_reason, choice.usage) == (("on_end",), name, USAGE)


def test_an_error_in_the_listener_fails_the_answer(make):
    choice, tokens, told = make()
    choice.on_tokens(tokens("ab"), None)
    choice._listener.on_end = None
    choice.on_finish(FinishReason.STOP, USAGE)
    assert told[-1] == ("on_failure", "internal error")
