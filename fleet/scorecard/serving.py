"""Items of the scorecard about answers: correct, timely, and within their limits."""

import asyncio
import itertools
import json
import random
import secrets
import statistics
from importlib.util import find_spec
from typing import Any

from bench._load import workload
from bench._load.driver import Driver
from bench._load.figures import percentile
from fleet.scorecard.client import Reply
from fleet.scorecard.item import SMALLEST_VOCABULARY, Context, Item, Result, failed, unknown, when

_SHORT = 16  # tokens of output when testing the length limit
_MAX_PROMPT = 4096  # tokens, when testing caching and chunked prefill
_MAX_STALL_S = 0.5  # of a stream, while long prompts are computed
_FALLS_TO = 0.7  # of the TTFT, when most of a prompt is cached
_TIMEOUT_S = 120.0
_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}


def probes_answer(context: Context) -> Result:
    """Check that GET /health and /ready answer without a key."""
    codes = {path: context.client.ask("GET", path, key="").status for path in ("/health", "/ready")}
    wrong = [f"{path} answers {code}" for path, code in codes.items() if code != 200]
    return when(not wrong, f"{' and '.join(codes)} answer 200 without a key", f"without a key {', '.join(wrong)}")


def length_is_honoured(context: Context) -> Result:
    """Check that a request of exactly the maximum length works, and one token more is a 400."""
    limit = _max_model_len(context)
    if not limit:
        return unknown("the fleet does not report its maximum length: set --max-model-len")
    prompt = _tokens(limit - _SHORT)
    exact = context.client.complete(context.model, prompt, _SHORT, ignore_eos=True)
    if exact.status != 200:
        return failed(f"a request of exactly {limit} tokens answers {exact.status} {exact.error_code}")
    over = context.client.complete(context.model, [*prompt, 100], _SHORT, ignore_eos=True)
    good = over.status == 400 and over.error_code == "context_length_exceeded"
    return when(
        good, f"{limit} tokens work, {limit + 1} give 400", f"{limit + 1} tokens answer {over.status} {over.error_code}"
    )


def prefixes_are_cached(context: Context) -> Result:
    """Check that TTFT falls when most of the prompt is cached, and that `cached_tokens` reports this."""
    number = _long(context)
    first, again, hits = [], [], 0
    for _ in range(3):
        prompt = _tokens(number)
        first.append(_ttft(context, prompt).first_byte_s)
        second = _ttft(context, [*prompt, *_tokens(_SHORT)])
        again.append(second.first_byte_s)
        usage: dict[str, Any] = next((event["usage"] for event in second.events if event.get("usage")), {})
        hits = max(hits, int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0))
    before, after = statistics.median(first), statistics.median(again)
    measured = (
        f"TTFT of {number} tokens {before * 1000:.0f} ms, cached {after * 1000:.0f} ms, {hits} tokens from the cache"
    )
    return when(hits > 0 and after <= _FALLS_TO * before, measured, measured)


def long_prompts_stall_nobody(context: Context) -> Result:
    """Check the longest gap of a stream while long prompts are computed."""
    gap_s, number = asyncio.run(_gap_beside_prompts(context, _long(context))), _long(context)
    measured = f"longest gap of a stream beside prompts of {number} tokens: {gap_s * 1000:.0f} ms"
    return when(gap_s <= _MAX_STALL_S, measured, f"{measured}: is --max-num-batched-tokens too large?")


def structure_is_kept(context: Context) -> Result:
    """Check that a streamed answer under a JSON schema conforms to it."""
    body = {
        "model": context.model,
        "messages": [{"role": "user", "content": "Is it fine?"}],
        "max_tokens": 64,
        "stream": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA}},
    }
    reply = context.client.ask("POST", "/v1/chat/completions", body)
    if reply.status != 200:
        return failed(f"the request answers {reply.status} {reply.error_code}")
    text = "".join(choice["delta"].get("content") or "" for event in reply.events for choice in event["choices"])
    try:
        answer = json.loads(text)
    except ValueError:
        return failed(f"the answer is not JSON: {text[:60]!r}")
    fits = set(answer) == {"ok", "size"} and isinstance(answer["ok"], bool) and answer["size"] in ("small", "large")
    return when(fits, "a streamed answer conforms to its schema", f"the answer violates its schema: {text[:60]!r}")


def template_is_the_reference(context: Context) -> Result:
    """Check that the token ids of a conversation equal those of transformers, with the checkpoint's template."""
    if context.local is None or not find_spec("transformers"):
        return unknown("compare /tokenize with transformers' apply_chat_template on a host that has the checkpoint")
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "What is a baton?"}]
    ours = context.client.ask("POST", "/tokenize", {"model": context.model, "messages": messages}).json["tokens"]
    tokenizer = AutoTokenizer.from_pretrained(context.local.model)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
    return when(ours == theirs, f"{len(ours)} token ids equal transformers'", f"{ours[:8]}… are not {theirs[:8]}…")


def ids_come_back(context: Context) -> Result:
    """Check that X-Request-ID is returned as sent, and generated if none was sent."""
    sent = f"scorecard-{secrets.token_hex(8)}"
    path, body = "/v1/completions", {"model": context.model, "prompt": "a", "max_tokens": 1}
    back = context.client.ask("POST", path, body, headers={"X-Request-ID": sent}).headers.get("x-request-id", "")
    minted = {context.client.ask("POST", path, body).headers.get("x-request-id", "") for _ in range(2)}
    good = back == sent and len(minted - {""}) == 2
    return when(
        good, "X-Request-ID is returned as sent, and generated if absent", f"sent {sent}, got {back or 'nothing'}"
    )


def _max_model_len(context: Context) -> int:
    reply = context.client.ask("POST", "/tokenize", {"model": context.model, "prompt": "a"})
    return int(reply.json.get("max_model_len") or 0) if reply.status == 200 else 0


def _long(context: Context) -> int:
    return min((_max_model_len(context) or 2048) * 3 // 4, _MAX_PROMPT)


def _tokens(number: int) -> list[int]:
    return [random.randrange(workload.FIRST_TOKEN, SMALLEST_VOCABULARY) for _ in range(number)]  # noqa: S311


def _ttft(context: Context, prompt: list[int]) -> Reply:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    return context.client.complete(context.model, prompt, 1, **options)


async def _gap_beside_prompts(context: Context, num_prompt: int) -> float:
    """Return the longest gap of two concurrent streams, while two long prompts at a time are computed."""
    target = context.client.target
    short = workload.Shape.fixed(context.model, 16, 96, SMALLEST_VOCABULARY)
    long = workload.Shape.fixed(context.model, num_prompt, 1, SMALLEST_VOCABULARY)
    source = random.Random()  # noqa: S311
    streams, prompts = Driver(target, _TIMEOUT_S), Driver(target, _TIMEOUT_S)
    await asyncio.gather(
        streams.closed(list(itertools.islice(workload.conversations(short, source), 4)), 2),
        prompts.closed(list(itertools.islice(workload.conversations(long, source), 8)), 2),
    )
    return percentile([gap for stream in streams.streams for gap in stream.gaps_s], 100)


ITEMS = (
    Item("probes", True, probes_answer),
    Item("length limit", True, length_is_honoured),
    Item("prefix cache", True, prefixes_are_cached),
    Item("chunked prefill", True, long_prompts_stall_nobody),
    Item("structured output", True, structure_is_kept),
    Item("chat template", True, template_is_the_reference),
    Item("request ids", True, ids_come_back),
)
