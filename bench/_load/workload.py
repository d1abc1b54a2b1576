"""What is asked: conversations of one turn or several, as bodies of requests.

Prompts are random token ids, no two alike but for what is to be shared: `num_prefixes` system prompts in turn, and in
a conversation all that was said before. An answer's own tokens are not known to a client that reads text, so random
ones of the same number stand for it in the next prompt.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench._load.lengths import Lengths, parse
from bench._simulated.trace import BLOCK_TOKENS, TraceLine

FIRST_TOKEN = 100  # those below are often special

Body = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Turns to be asked one after the other, and when the first one is due where a trace says so."""

    path: str
    turns: list[Body]
    at_s: float = 0.0


@dataclass(frozen=True)
class Shape:
    """What conversations look like."""

    model: str
    prompt: Lengths = field(default_factory=lambda: parse("128"))  # of each turn, what came before not counted
    output: Lengths = field(default_factory=lambda: parse("64"))
    vocab_size: int = 4000
    num_prefixes: int = 0
    prefix_tokens: int = 0
    num_turns: int = 1
    chat: str = ""  # ask this, instead of random tokens
    ignore_eos: bool = True

    @classmethod
    def fixed(cls, model: str, num_prompt: int, num_output: int, vocab_size: int) -> "Shape":
        """All prompts of one length, and all answers."""
        return cls(model, parse(str(num_prompt)), parse(str(num_output)), vocab_size)


def conversations(shape: Shape, source: random.Random) -> Iterator[Conversation]:
    """Without end."""
    prefixes = [_tokens(shape.prefix_tokens, shape, source) for _ in range(shape.num_prefixes)]
    for number in itertools.count():
        prefix = prefixes[number % len(prefixes)] if prefixes else []
        yield _conversation(shape, prefix, source)


def of_trace(lines: list[TraceLine], shape: Shape, *, speed: float, shrink: int) -> Iterator[Conversation]:
    """A trace's requests: lengths divided by `shrink`, equal block ids giving equal tokens."""
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
    turns, said = [], list(prefix)
    for _ in range(shape.num_turns):
        num_output = shape.output.draw(source)
        said = said + _tokens(shape.prompt.draw(source), shape, source)
        turns.append(_body(shape, num_output) | {"prompt": said})
        said = said + _tokens(num_output, shape, source)
    return Conversation("/v1/completions", turns)


def _body(shape: Shape, num_output: int) -> Body:
    body: Body = {"model": shape.model, "max_tokens": num_output, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    return body | ({"ignore_eos": True} if shape.ignore_eos else {})


def _tokens(number: int, shape: Shape, source: random.Random) -> list[int]:
    return [source.randrange(FIRST_TOKEN, shape.vocab_size) for _ in range(number)]
