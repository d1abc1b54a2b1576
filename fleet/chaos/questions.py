"""The questions of `baton chaos`: prompts from a few tokens to many blocks, greedy and seeded, all repeatable.

They are completions, multi-turn conversations, answers under a schema, and embeddings. Except for the turns of a
conversation, no two questions share a prefix, so each prompt is computed and transferred when first asked.
"""

import json
from dataclasses import dataclass
from typing import Any

_WORDS = "The baton goes from one runner to the next and must not fall while it changes hands. " * 40
_NUM_CHARS = (8, 150, 40, 420, 900)  # of a prompt; a token of the random model is a character
_KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.95, "n": 2},
    {"temperature": 0, "logprobs": 2},
    {"temperature": 1, "top_k": 40, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    {"temperature": 0, "stop": ["zq", "QX"]},
    {"temperature": 0.8, "logprobs": 1, "n": 2},
)
_NUM_OUTPUT_TOKENS = (96, 160, 40)
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 8, "maxLength": 24}, "legs": {"enum": [0, 2, 4, 6]}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "animal", "schema": _SCHEMA, "strict": True}}
_EVERY = 4  # every fourth question is not a completion


@dataclass(frozen=True)
class Question:
    """A question; its name identifies it in reports."""

    name: str
    body: dict[str, Any]
    path: str = "/v1/completions"

    def __hash__(self) -> int:
        return hash(self.name)


def question(model: str, topic: str, index: int) -> Question:
    """Return a question, always the same one for the same arguments. `index` runs through all kinds and lengths."""
    name = f"{index} {topic}"
    if index % _EVERY == _EVERY - 1:
        return (_turn, _structured, _embedding)[index // _EVERY % 3](model, name, topic, index)
    num_chars = _NUM_CHARS[index % len(_NUM_CHARS)]
    body = _streamed(model, index) | {
        "prompt": f"{name}: {_WORDS[:num_chars]}",
        "max_tokens": _NUM_OUTPUT_TOKENS[index // 2 % len(_NUM_OUTPUT_TOKENS)],
        "ignore_eos": True,
    }
    return Question(name, body | _KINDS[index % len(_KINDS)])


def answers_schema(text: str) -> bool:
    """Return whether a complete answer to a structured question conforms to its schema."""
    try:
        answer = json.loads(text)
        return set(answer) == {"name", "legs"} and 8 <= len(answer["name"]) <= 24 and answer["legs"] in (0, 2, 4, 6)
    except (ValueError, TypeError):
        return False


def _streamed(model: str, index: int) -> dict[str, Any]:
    return {"model": model, "seed": index, "stream": True, "stream_options": {"include_usage": True}}


def _turn(model: str, name: str, topic: str, index: int) -> Question:
    """Return one turn of a conversation; it contains all earlier turns."""
    num_turns = 1 + index // (3 * _EVERY) % 4
    messages = [{"role": "user", "content": f"{topic}: {_WORDS[:200]}"}]
    for turn in range(num_turns - 1):
        messages.append({"role": "assistant", "content": f"answer {turn}: {_WORDS[turn : turn + 60]}"})
        messages.append({"role": "user", "content": f"turn {turn}: {_WORDS[turn : turn + 80]}"})
    body = _streamed(model, index) | {"messages": messages, "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    return Question(name, body, "/v1/chat/completions")


def _structured(model: str, name: str, topic: str, index: int) -> Question:
    asked = [{"role": "user", "content": f"{name}: {_WORDS[:120]}"}]
    temperature = 0.8 * (index % 2)
    body = _streamed(model, index) | {"messages": asked, "max_tokens": 120, "temperature": temperature}
    return Question(name, body | {"response_format": _FORMAT}, "/v1/chat/completions")


def _embedding(model: str, name: str, topic: str, index: int) -> Question:
    return Question(name, {"model": model, "input": f"{name}: {_WORDS[:300]}"}, "/v1/embeddings")
