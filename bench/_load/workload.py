"""The requests of a load: bodies of conversations with one or more turns.

Prompts are random token ids that share nothing except `num_prefixes` system prompts, used in turn, and within a
conversation all earlier turns. A client that reads text does not know the token ids of an answer, so the next prompt
contains the same number of random ones instead.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench._load.lengths import Lengths, parse
from bench._simulated.trace import BLOCK_TOKENS, TraceLine

FIRST_TOKEN = 100  # lower ids are often special tokens

Body = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """The turns of a conversation, and when the first is due, if a trace says so."""

    path: str
    turns: list[Body]
    at_s: float = 0.0


@dataclass(frozen=True)
class Shape:
    """The shape of conversations."""

    model: str
    prompt: Lengths = field(default_factory=lambda: parse("128"))  # of each turn, without earlier turns
    output: Lengths = field(default_factory=lambda: parse("64"))
    vocab_size: int = 4000
    num_prefixes: int = 0
    prefix_tokens: int = 0
    num_turns: int = 1
    chat: str = ""  # send this text instead of random tokens
    ignore_eos: bool = True

    @classmethod
    def fixed(cls, model: str, num_prompt: int, num_output: int, vocab_size: int) -> "Shape":
        """Return a shape with one length for all prompts, and one for all answers."""
        return cls(model, parse(str(num_prompt)), parse(str(num_output)), vocab_size)


def conversations(shape: Shape, source: random.Random) -> Iterator[Conversation]:
    """Yield conversations, without end."""
    prefixes = [_tokens(shape.prefix_tokens, shape, source) for _ in range(shape.num_prefixes)]
    for number in itertools.count():
        prefix = prefixes[number % len(prefixes)] if prefixes else []
        yield _conversation(shape, prefix, source)


def of_trace(lines: list[TraceLine], shape: Shape, *, speed: float, shrink: int) -> Iterator[Conversation]:
    """Yield a trace's requests, with lengths divided by `shrink`; equal block ids give equal tokens."""
    start_ms = lines[0].timestamp
    for line in lines:
        prompt: list[int] = []
        for block in line.hash_ids:
            prompt += _tokens(max(BLOCK_TOKENS // shrink, 1), shape, random.Random(block))
        prompt = prompt[: max(line.input_length // shrink, 1)]
        body = _body(shape, max(line.output_length // shrink, 1)) | {"prompt": prompt or [FIRST_TOKEN]}
        yield Conversation("/v1/completions", [body], (line.timestamp - start_ms) / 1000 / speed)


def _conversation(shape: Shape, prefix: list[int], source: random.Random) -> Conversation:
    if shape.chat:
        message = {"role": "user", "content": shape.chat}
        body = {key: value for key, value in _body(shape, shape.output.draw(source)).items() if key != "ignore_eos"}
        return Conversation("/v1/chat/completions", [body | {"messages": [message]} for _ in range(shape.num_turns)])
    turns, history = [], list(prefix)
    for _ in range(shape.num_turns):
        num_output = shape.output.draw(source)
        history = history + _tokens(shape.prompt.draw(source), shape, source)
        turns.append(_body(shape, num_output) | {"prompt": history})
        history = history + _tokens(num_output, shape, source)
    return Conversation("/v1/completions", turns)


def _body(shape: Shape, num_output: int) -> Body:
    body: Body = {"model": shape.model, "max_tokens": num_output, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    return body | ({"ignore_eos": True} if shape.ignore_eos else {})


def _tokens(number: int, shape: Shape, source: random.Random) -> list[int]:
    return [source.randrange(FIRST_TOKEN, shape.vocab_size) for _ in range(number)]
