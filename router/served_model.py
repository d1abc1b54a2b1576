"""The model as the HTTP side knows it: names, tokenizer, template, limits. Prompts become token ids here.

Long texts are encoded in threads, a few at a time, so that no stream waits for them; how long a text may be is checked
before it is encoded.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from baton.chat_template import ChatTemplate
from baton.detokenizer import TokenTexts
from baton.errors import CheckpointError, ContextLengthExceeded, InvalidRequest, ModelNotFound, Overloaded
from baton.model_dir import ModelFacts, load_facts
from baton.settings import ModelFlags
from baton.tokenizer import Tokenizer
from router.schema import Message

_INLINE_CHARS = 4096  # about a millisecond
_NUM_THREADS = 2
_MAX_WAITING = 64


class ServedModel:
    """One model under one or several names."""

    def __init__(
        self, names: Sequence[str], tokenizer: Tokenizer, template: ChatTemplate | None, facts: ModelFacts
    ) -> None:
        self.names = tuple(names)
        self.facts = facts
        self.tokenizer = tokenizer
        self.token_texts = TokenTexts(tokenizer)
        self._template = template
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="encode")
        self._num_waiting = 0

    @classmethod
    def load(cls, flags: ModelFlags) -> "ServedModel":
        """Read the model directory; CheckpointError names the file that is wrong."""
        path = Path(flags.model)
        if not path.is_dir():
            raise CheckpointError(f"--model: {path} is no directory")
        facts = load_facts(path)
        max_model_len = min(filter(None, (flags.max_model_len, facts.max_model_len)), default=0)
        tokenizer = Tokenizer.load(path)
        _check_vocabulary(path, tokenizer, facts.vocab_size)
        facts = ModelFacts(facts.vocab_size or tokenizer.num_tokens, max_model_len, facts.eos_token_ids)
        names = flags.served_model_name or (path.resolve().name,)
        return cls(names, tokenizer, ChatTemplate.load(path), facts)

    def check_name(self, name: str) -> None:
        """Raise ModelNotFound unless this is one of the names."""
        if name not in self.names:
            raise ModelNotFound("No such model is served here: GET /v1/models lists those that are", param="model")

    async def encode_text(self, text: str, max_model_len: int) -> list[int]:
        """Token ids of a completion's prompt; special tokens in it are plain text."""
        self._check_length(len(text), max_model_len, "prompt")
        return await self._run(len(text), lambda: self.tokenizer.encode(text))

    async def encode_chat(self, messages: Sequence[Message], max_model_len: int) -> list[int]:
        """Token ids of a conversation, up to where the assistant speaks."""
        template = self._template
        if template is None:
            raise InvalidRequest("The model has no chat template: use /v1/completions", param="messages")
        num_chars = sum(len(message.text) for message in messages)
        self._check_length(max(num_chars, len(messages)), max_model_len, "messages")
        max_chars = self._max_chars(max_model_len)
        return await self._run(num_chars + 64 * len(messages), lambda: self._encode_chat(template, messages, max_chars))

    async def _run(self, num_chars: int, encode: Callable[[], list[int]]) -> list[int]:
        if num_chars <= _INLINE_CHARS:
            return encode()
        if self._num_waiting >= _MAX_WAITING:
            raise Overloaded("Too many long prompts at present")
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, encode)
        finally:
            self._num_waiting -= 1

    def _encode_chat(self, template: ChatTemplate, messages: Sequence[Message], max_chars: int) -> list[int]:
        tokens = self.tokenizer.control_tokens
        texts = [text for message in messages for text in (message.text, message.name, message.tool_call_id) if text]
        if not any(map(tokens.occur_in, texts)):
            return self.tokenizer.encode_chat(template.render([_fields(m, str) for m in messages], max_chars))
        marks = tokens.choose_marks(texts)
        marked = [_fields(message, lambda text: tokens.mark(text, marks)) for message in messages]
        return self.tokenizer.encode_chat(template.render(marked, max_chars), marks)

    def _max_chars(self, max_model_len: int) -> int:
        return max_model_len * self.tokenizer.max_token_chars if max_model_len else 2**30

    def _check_length(self, num_chars: int, max_model_len: int, param: str) -> None:
        if num_chars > self._max_chars(max_model_len):
            raise ContextLengthExceeded(f"The text is longer than the {max_model_len} tokens of the model", param=param)


def _check_vocabulary(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    largest = max(tokenizer.token_ids(), default=-1)
    if vocab_size and largest >= vocab_size:
        raise CheckpointError(
            f"{path / 'tokenizer.json'} does not match the model: token {largest} has no row in tensor "
            f"model.embed_tokens.weight, which has {vocab_size} by vocab_size in {path / 'config.json'}"
        )


def _fields(message: Message, text: Callable[[str], str]) -> dict[str, Any]:
    """What a template sees of a message."""
    optional = {"name": message.name, "tool_call_id": message.tool_call_id}
    given = {name: text(value) for name, value in optional.items() if value is not None}
    return {"role": message.role, "content": text(message.text), **given}
