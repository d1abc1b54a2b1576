"""The bodies of POST /tokenize and /detokenize, as in vLLM."""

from typing import Annotated

import msgspec
from msgspec import Meta

from baton.errors import InvalidRequest
from router.openai.body import coded, decode
from router.openai.chat_schema import Message, Switches, check_messages
from router.openai.schema import MAX_MESSAGES, Text, TokenId, Yes
from router.openai.tool_schema import MAX_TOOLS, Tool


class TokenizeBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of POST /tokenize: either a prompt, or messages as for a chat."""

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: Switches | None = None
    add_special_tokens: bool | None = None  # default true; only for a prompt
    add_generation_prompt: Yes | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]


_TOKENIZE = msgspec.json.Decoder(TokenizeBody)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeBody)


def parse_tokenize(data: bytes) -> TokenizeBody:
    """Parse and check a body. Raises InvalidRequest, whose `param` is the field's path."""
    body = decode(_TOKENIZE, data)
    if body.prompt is None and body.messages is None:
        raise coded(InvalidRequest("Missing field", param="prompt"), "missing_required_parameter")
    if body.prompt is not None and body.messages is not None:
        raise InvalidRequest("Either a prompt or messages", param="messages")
    if body.add_generation_prompt is False:
        raise coded(InvalidRequest("This is not supported", param="add_generation_prompt"), "unsupported_parameter")
    check_messages(body.messages or ())
    return body


def parse_detokenize(data: bytes) -> DetokenizeBody:
    """Parse a body. Raises InvalidRequest, whose `param` is the field's path."""
    return decode(_DETOKENIZE, data)
