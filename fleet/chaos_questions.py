"""What the clients of `baton chaos` ask: prompts from a few tokens to many blocks, greedy and seeded, all repeatable.

No two questions share a prefix, so each prompt is computed and shipped when it is first asked, and cached from then on.
"""

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


@dataclass(frozen=True)
class Question:
    """One of them; its name says where it belongs."""

    name: str
    body: dict[str, Any]

    def __hash__(self) -> int:
        return hash(self.name)


def question(model: str, topic: str, index: int) -> Question:
    """The same for the same arguments. Kinds, lengths and topics come in all combinations as `index` grows."""
    name = f"{index} {topic}"
    num_chars = _NUM_CHARS[index % len(_NUM_CHARS)]
    body = {
        "model": model,
        "prompt": f"{name}: {_WORDS[:num_chars]}",
        "max_tokens": _NUM_OUTPUT_TOKENS[index // 2 % len(_NUM_OUTPUT_TOKENS)],
        "ignore_eos": True,
        "seed": index,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Question(name, body | _KINDS[index % len(_KINDS)])
