"""A model's format of tool calls and reasoning, set by flags or detected in its chat template, and parsers for it."""

from collections.abc import Callable, Collection

import msgspec

from router.openai.parsing.calls import CallParser, HermesParser, LlamaParser, MistralParser
from router.openai.parsing.parts import CallArguments, CallBegin, CallEnd, Parser, Part, PlainParser
from router.openai.parsing.reasoning import CLOSING, OPENING, ReasoningParser

MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", OPENING, CLOSING)
"""Markers that must appear in the text of an output, even if the tokenizer has them as special tokens."""

CALL_BEGINS = ("<tool_call>\n{", "<tool_call>{")
"""How a call begins that ends a reasoning block which the model does not close."""

CALL_MARKERS = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]"}
"""What begins a call, or a list of calls, wherever it appears in an output: in these formats nothing else does."""

_CALL_PARSERS: dict[str, Callable[[Collection[str] | None], CallParser]] = {
    "hermes": HermesParser,
    "llama3": LlamaParser,
    "mistral": MistralParser,
}


class OutputStyle(msgspec.Struct, frozen=True, kw_only=True):
    """A model's format. `calls` is hermes, llama3, mistral, or empty if unknown; `thinks`: it may write reasoning."""

    calls: str = ""
    thinks: bool = False
    marker_id: int | None = None  # of its call marker, if that is a special token

    def parser(
        self,
        names: Collection[str],
        *,
        forced: bool,
        parallel: bool,
        reasons: bool,
        opened: bool,
        free: bool,
        only: bool = False,
    ) -> Parser:
        """Make a parser for one output, in which the tools `names` may be called.

        `forced`: a grammar constrains the output to calls. `parallel`: several calls count. `reasons`: a reasoning
        block may come first. `opened`: the prompt has opened it. `free`: no grammar constrains the output, so that a
        call may come before the end of the block. `only`: a call by any other name is content.
        """
        calls = self._calls(names, forced=forced, only=only)
        if not parallel:
            calls = _FirstCall(calls)
        if not reasons:
            return calls
        begins = CALL_BEGINS if free and names and self.calls == "hermes" else ()
        return ReasoningParser(calls, opened=opened, calls=begins)

    def _calls(self, names: Collection[str], *, forced: bool, only: bool) -> Parser:
        if not names:
            return PlainParser()
        if forced and self.calls not in ("hermes", "llama3"):
            return MistralParser(names, bare=True)
        if not self.calls:
            return PlainParser()
        return _CALL_PARSERS[self.calls](names if only or self.calls not in CALL_MARKERS else None)


def detect(template: str, tool_parser: str = "auto", reasoning_parser: str = "auto") -> OutputStyle:
    """Return the style of a chat template's source, unless the flags `tool_parser` or `reasoning_parser` set it."""
    calls = _detect_calls(template) if tool_parser == "auto" else tool_parser
    thinks = OPENING in template or CLOSING in template if reasoning_parser == "auto" else reasoning_parser == "think"
    return OutputStyle(calls="" if calls == "none" else calls, thinks=thinks)


def _detect_calls(template: str) -> str:
    if "<tool_call>" in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<|python_tag|>" in template or ("ipython" in template and "tools" in template):
        return "llama3"
    return "none"


class _FirstCall:
    """Drops all calls except the first."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self.passes = parser.passes
        self._num_calls = 0

    def push(self, text: str) -> list[Part]:
        """See `Parser`."""
        return [part for part in self._parser.push(text) if self._kept(part)]

    def finish(self) -> list[Part]:
        """See `Parser`."""
        return [part for part in self._parser.finish() if self._kept(part)]

    def _kept(self, part: Part) -> bool:
        self._num_calls += isinstance(part, CallBegin)
        return self._num_calls <= 1 or not isinstance(part, CallBegin | CallArguments | CallEnd)
