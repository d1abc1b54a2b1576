"""The format of /v1/completions: text, after an echo of the prompt if that was asked for."""

from collections.abc import Sequence
from typing import Any

import msgspec

from router.openai.answer_format import ChoicesFormat, ChoiceText, TokenCounts
from router.openai.logprobs_format import completion_logprobs, moved
from router.openai.token_entry import TokenEntry

_encode = msgspec.json.encode


class CompletionFormat(ChoicesFormat):
    """The format of /v1/completions. Choices whose prompt is echoed begin with it."""

    _kind = "text_completion"

    def begin(self, index: int) -> bytes:
        """Return the event with the prompt, if it is to be echoed."""
        before, after = b'{"index":%d,"text":"' % index, b'","logprobs":null,"finish_reason":null}'
        self._around[index] = self._frame.around(before, after)
        prompt = self.prompts[index]
        return self._delta(index, prompt.echo, prompt.entries) if prompt.echo or prompt.entries else b""

    def delta(self, index: int, text: str, entries: Sequence[TokenEntry]) -> bytes:
        """See `Format`."""
        return self._delta(index, text, moved(entries, len(self.prompts[index].echo)) if entries else ())

    def _delta(self, index: int, text: str, entries: Sequence[TokenEntry]) -> bytes:
        if not entries:
            before, after = self._around[index]
            return before + _encode(text)[1:-1] + after
        logprobs = _encode(completion_logprobs(entries))
        return self._frame.event(
            b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":null}' % (index, _encode(text), logprobs)
        )

    def end(self, index: int, finish_reason: str) -> bytes:
        """See `Format`."""
        return self._frame.event(
            b'{"index":%d,"text":"","logprobs":null,"finish_reason":"%s"}' % (index, finish_reason.encode())
        )

    def whole(self, choices: Sequence[ChoiceText], counts: TokenCounts) -> bytes:
        """See `Format`."""
        listed = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return self._frame.whole("text_completion", listed, counts)

    def _choice(self, index: int, choice: ChoiceText) -> dict[str, Any]:
        prompt = self.prompts[index]
        entries = [*prompt.entries, *moved(choice.entries, len(prompt.echo))]
        fields = {
            "index": index,
            "text": prompt.echo + choice.text,
            "logprobs": completion_logprobs(entries) if entries else None,
            "finish_reason": choice.finish_reason,
        }
        return fields if prompt.logprobs is None else {**fields, "prompt_logprobs": prompt.logprobs}
