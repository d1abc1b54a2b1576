"""The model as the HTTP side knows it: names, tokenizer, chat template, limits. Encodes prompts to token ids.

Long texts are encoded in threads, a few at a time, so that no stream waits for them. The length of a text is checked
before it is encoded.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from baton.errors import CheckpointError, ContextLengthExceeded, InvalidRequest, ModelNotFound, Overloaded
from baton.model_dir import ModelFacts, SamplingDefaults, load_facts
from baton.process.settings import FrontFlags
from baton.process.threads import started_pool
from baton.text.chat_template import ChatTemplate
from baton.text.detokenizer import TokenTexts
from baton.text.tokenizer import Tokenizer
from router.openai.body import too_long
from router.openai.conversation import Conversation
from router.openai.parsing.style import CALL_MARKERS, MARKERS, OutputStyle, detect

_INLINE_CHARS = 4096  # about a millisecond
_NUM_THREADS = 2
_MAX_WAITING = 64
_TAIL_TOKENS = 8
Result = TypeVar("Result")


class Sized(Protocol):
    """A message of a chat, or an item of a response."""

    @property
    def sizes(self) -> Iterator[int]:
        """The lengths of its parts, in characters."""


class ServedModel:
    """The served model, under one or several names."""

    def __init__(
        self,
        names: Sequence[str],
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        facts: ModelFacts,
        style: OutputStyle,
        max_model_len: int = 0,
    ) -> None:
        """`max_model_len` is the operator's limit; 0 leaves it to the nodes, which know how far RoPE reaches."""
        self.names = tuple(names)
        self.facts = facts
        self.max_model_len = max_model_len
        self.tokenizer = tokenizer
        self.style = style
        self.token_texts = TokenTexts(tokenizer)
        self.marked_texts = TokenTexts(tokenizer, MARKERS)  # for outputs that are parsed: markers appear as text
        self._template = template
        self._knows_developers = template is not None and "developer" in template.source
        self._threads = started_pool(_NUM_THREADS, "encode")
        self._num_waiting = 0

    @classmethod
    def load(cls, flags: FrontFlags) -> "ServedModel":
        """Read the model directory. Raises CheckpointError that names the faulty file."""
        path = Path(flags.model)
        if not path.is_dir():
            raise CheckpointError(f"--model: {path} is not a directory")
        facts = load_facts(path)
        tokenizer = Tokenizer.load(path)
        _check_vocabulary(path, tokenizer, facts.vocab_size)
        max_model_len = flags.max_model_len or facts.max_model_len
        sampling = facts.sampling if flags.sampling_defaults == "model" else SamplingDefaults()
        facts = ModelFacts(facts.vocab_size or tokenizer.num_tokens, max_model_len, facts.eos_token_ids, sampling)
        names = flags.served_model_name or (path.resolve().name,)
        template = ChatTemplate.load(path)
        style = detect(template.source if template else "", flags.tool_parser, flags.reasoning_parser)
        style = msgspec.structs.replace(style, marker_id=_marker_id(tokenizer, style, facts.vocab_size))
        return cls(names, tokenizer, template, facts, style, flags.max_model_len)

    def check_name(self, name: str) -> None:
        """Raise ModelNotFound unless `name` is one of the model's names."""
        if name not in self.names:
            raise ModelNotFound("No such model is served here: GET /v1/models lists those that are", param="model")

    def check_sizes(self, pieces: Sequence[Sized], max_model_len: int, param: str) -> None:
        """Raise ContextLengthExceeded for messages that are certainly too long, before they are rendered or encoded.

        Each message counts as at least one token, even if its parts are empty.
        """
        least, most = self.tokenizer.max_token_chars, self._max_chars(max_model_len)
        if len(pieces) * least > most or sum([least + sum(piece.sizes) for piece in pieces]) > most:
            raise _too_long(max_model_len, param)

    async def encode_text(
        self,
        text: str,
        max_model_len: int,
        param: str = "prompt",
        *,
        framed: bool = True,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Encode a client's text, the value of `param`, with special tokens in it as plain text.

        `framed`: add the tokenizer's own special tokens, such as BOS. `max_tokens`: keep only the first tokens.
        """
        max_chars = self._max_chars(max_model_len)
        if max_tokens is not None:
            text = text[:max_chars]
        if len(text) > max_chars:
            raise _too_long(max_model_len, param)
        return await self._run(len(text), lambda: self.tokenizer.encode(text, framed=framed, max_tokens=max_tokens))

    async def decode(self, token_ids: list[int]) -> str:
        """Decode tokens to text, including special ones."""
        return await self._run(len(token_ids), lambda: self.tokenizer.decode(token_ids, special=True))

    async def encode_chat(self, conversation: Conversation, max_model_len: int) -> list[int]:
        """Render and encode a conversation, up to the start of the assistant's turn."""
        template, param = self._template, conversation.param
        if template is None:
            raise InvalidRequest("The model has no chat template: use /v1/completions", param=param)
        texts = conversation.texts
        num_chars, max_chars = sum(map(len, texts)), self._max_chars(max_model_len)
        if num_chars > max_chars:
            raise _too_long(max_model_len, param)
        encode = partial(self._encode_chat, template, conversation, texts, max_chars)
        return await self._run(num_chars + 16 * len(texts), encode)

    def ends_with(self, token_ids: list[int], mark: str) -> bool:
        """Whether a prompt ends with `mark` and space: then its template has opened or closed a reasoning block."""
        tail = b"".join(map(self.marked_texts.token_bytes, token_ids[-_TAIL_TOKENS:]))
        return tail.rstrip().endswith(mark.encode())

    async def _run(self, num_chars: int, encode: Callable[[], Result]) -> Result:
        if num_chars <= _INLINE_CHARS:
            return encode()
        if self._num_waiting >= _MAX_WAITING:
            raise Overloaded("Too many long prompts at present")
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, encode)
        finally:
            self._num_waiting -= 1

    def _encode_chat(self, template: ChatTemplate, given: Conversation, texts: list[str], max_chars: int) -> list[int]:
        tokens = self.tokenizer.control_tokens
        marks = tokens.choose_marks(texts) if any(map(tokens.occur_in, texts)) else None
        if marks is not None:
            given = given.mapped(lambda text: tokens.mark(text, marks))
        messages = given.messages
        if not self._knows_developers:  # the template has no developer role: use system instead
            messages = [m if m["role"] != "developer" else {**m, "role": "system"} for m in messages]
        rendered = template.render(messages, max_chars, given.tools, given.variables)
        return self.tokenizer.encode_chat(rendered, marks)

    def _max_chars(self, max_model_len: int) -> int:
        return max_model_len * self.tokenizer.max_token_chars if max_model_len else 2**30


def _too_long(max_model_len: int, param: str) -> ContextLengthExceeded:
    return too_long(max_model_len, "the text is longer", param)


def _marker_id(tokenizer: Tokenizer, style: OutputStyle, vocab_size: int) -> int | None:
    marker_id = tokenizer.token_id(CALL_MARKERS.get(style.calls, ""))
    return marker_id if marker_id in tokenizer.special_ids and marker_id < vocab_size else None


def _check_vocabulary(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    # Special tokens may have no row: clients cannot write them, and if a template does, the nodes refuse the request.
    largest = max(tokenizer.token_ids() - tokenizer.special_ids, default=-1)
    if vocab_size and largest >= vocab_size:
        raise CheckpointError(
            f"{path / 'tokenizer.json'} does not match the model: token {largest} has no row in tensor "
            f"model.embed_tokens.weight, which has {vocab_size} by vocab_size in {path / 'config.json'}"
        )
