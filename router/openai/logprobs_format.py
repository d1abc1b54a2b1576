"""Log-probabilities in OpenAI's formats."""

from collections.abc import Sequence
from typing import Any

import msgspec

from router.openai.token_entry import TokenEntry


def chat_logprobs(entries: Sequence[TokenEntry]) -> dict[str, Any]:
    """Return `logprobs` of a choice of /v1/chat/completions."""
    content = [
        {
            **_token_logprob(entry.token, entry.logprob or 0.0),
            "top_logprobs": [_token_logprob(*top) for top in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _token_logprob(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def moved(entries: Sequence[TokenEntry], num_chars: int) -> Sequence[TokenEntry]:
    """Return the entries with offsets moved by `num_chars`, the length of an echo before them."""
    if not num_chars:
        return entries
    return [msgspec.structs.replace(entry, offset=entry.offset + num_chars) for entry in entries]


def completion_logprobs(entries: Sequence[TokenEntry]) -> dict[str, Any]:
    """Return `logprobs` of a choice of /v1/completions: one list for each column."""
    return {
        "text_offset": [entry.offset for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "tokens": [_text(entry.token) for entry in entries],
        "top_logprobs": [
            None
            if entry.logprob is None
            else {_text(token): logprob for token, logprob in (*entry.top, (entry.token, entry.logprob))}
            for entry in entries
        ],
    }


def _text(token: bytes) -> str:
    """Return the text of a token or, if it is not whole characters, its bytes in OpenAI's notation: `bytes:\\xe2\\x80`.

    Replacement characters would make different tokens the same key of `top_logprobs`.
    """
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
