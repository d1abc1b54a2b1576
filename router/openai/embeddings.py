"""The endpoints whose answers are made from embeddings: POST /v1/embeddings and /v1/score.

Each input is a job without output tokens, on a single node. Only MAX_IN_FLIGHT jobs of a request run at a time, so that
a request with two thousand inputs leaves room for others.
"""

import asyncio
import base64
import secrets
import time
from array import array
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from operator import mul
from typing import Any

import msgspec

from baton.errors import BatonError, NoCapacity
from baton.request import FinishReason, SamplingParams
from router.http import metrics as http_metrics
from router.http.exchange import ClientGone, Exchange
from router.job import PromptResult, PromptWork, TokenLogprobs, Usage
from router.openai.embedding_schema import EmbeddingBody, check_kept, inputs_of, parse_score, texts_of
from router.openai.generate import JOBS_AT_ONCE, Generator
from router.openai.id_lists import Reader
from router.openai.sampling import check_ids, check_prompt
from router.openai.schema import MAX_INT32

MAX_IN_FLIGHT = 64  # jobs of one request
_PIECE_BYTES = 2**17  # of an answer, sent at once
_TURN_S = 0.001  # how long items are computed and encoded before other requests get a turn


class Vector:
    """A sink that collects the embedding of one input, as a future."""

    def __init__(self) -> None:
        self.embedding: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.usage = Usage(num_prompt_tokens=0)
        self._found = b""

    def on_prompt(self, result: PromptResult) -> None:
        """See `Sink`. The embedding only counts once the job has finished."""
        self._found = result.embedding

    def on_tokens(self, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        """See `Sink`. Never called: the job has no output tokens."""

    def on_finish(self, reason: FinishReason, usage: Usage) -> None:
        """See `Sink`."""
        self.usage = usage
        if not self.embedding.done():
            self.embedding.set_result(self._found)

    def on_error(self, error: BatonError) -> None:
        """See `Sink`."""
        if not self.embedding.done():
            self.embedding.set_exception(error)


class Embedder:
    """Serves both endpoints."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._model = generator.model
        self._reader = Reader(EmbeddingBody, "input", generator.model.facts.vocab_size)

    async def embeddings(self, exchange: Exchange) -> None:
        """Serve POST /v1/embeddings."""
        body = await self._reader.read(exchange, self._generator.check_body)
        check_kept(body)
        self._check_model(exchange, body.model)
        inputs = inputs_of(body)
        kept = body.truncate_prompt_tokens
        prompts = [await self._encode(given, "input", kept) for given in inputs]
        vectors = await self._embed(exchange, prompts, body.dimensions or 0)
        as_text = body.encoding_format == "base64"
        items = (
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else _floats(vector)}
            for index, vector in enumerate(vectors)
        )
        await _send(exchange, {"object": "list", "model": body.model, "usage": _usage(prompts)}, items)

    async def score(self, exchange: Exchange) -> None:
        """Serve POST /v1/score: the cosine similarity of each pair of embeddings."""
        body = parse_score(await exchange.read_body(self._generator.check_body))
        self._check_model(exchange, body.model)
        kept = body.truncate_prompt_tokens
        first = [await self._encode(text, "text_1", kept) for text in texts_of(body.text_1)]
        second = [await self._encode(text, "text_2", kept) for text in texts_of(body.text_2)]
        vectors = await self._embed(exchange, first + second)
        left, right = vectors[: len(first)], vectors[len(first) :]
        num_scores = max(len(left), len(right))
        left, right = (side * num_scores if len(side) == 1 else side for side in (left, right))
        items = (
            {"index": index, "object": "score", "score": sum(map(mul, _floats(a), _floats(b)))}
            for index, (a, b) in enumerate(zip(left, right, strict=True))
        )
        head = {"id": f"score-{secrets.token_hex(12)}", "object": "list", "created": int(time.time())}
        await _send(exchange, {**head, "model": body.model, "usage": _usage(first + second)}, items)

    def _check_model(self, exchange: Exchange, name: str) -> None:
        self._model.check_name(name)
        exchange.model = name

    async def _encode(self, given: str | Sequence[int], param: str, kept: int | None) -> Sequence[int]:
        """Return the input's tokens: the first `kept` of them, for -1 as many as the model takes, for None all."""
        limit = self._generator.max_model_len
        most = None if kept is None else (limit or MAX_INT32) if kept < 0 else min(kept, limit or MAX_INT32)
        token_ids: Sequence[int]
        if isinstance(given, str):
            token_ids = await self._model.encode_text(given, limit, param, max_tokens=most)
        else:
            token_ids = given[:most]
        check_prompt(token_ids, limit, param, num_output_tokens=0)
        if not isinstance(given, str):
            check_ids(token_ids, self._model.facts, param)
        await asyncio.sleep(0)  # give other requests a turn between two texts
        return token_ids

    async def _embed(self, exchange: Exchange, prompts: Sequence[Sequence[int]], dimensions: int = 0) -> list[bytes]:
        """Compute the embeddings, as fp32 bytes. The first error ends all jobs, and so does a client that leaves."""
        num_tokens, account = sum(map(len, prompts)), exchange.account
        await account.admit(exchange.model, num_tokens)
        exchange.num_tokens = (num_tokens, 0)
        http_metrics.PROMPT_TOKENS.inc(num_tokens)
        sampling, work = SamplingParams(max_tokens=0), PromptWork(embeds=True, dimensions=dimensions)
        found, waiting = [b""] * len(prompts), iter(enumerate(prompts))

        async def embed() -> None:
            for index, token_ids in waiting:
                vector = Vector()
                handle = self._generator.submit(self._generator.job(exchange, token_ids, sampling, work), vector)
                try:
                    found[index] = await vector.embedding
                finally:
                    exchange.num_cached_tokens += vector.usage.num_cached_tokens
                    handle.cancel()

        is_good = False
        try:
            await _unless_gone(exchange, _all(embed() for _ in range(min(MAX_IN_FLIGHT, len(prompts)))))
            is_good = True
            return found
        finally:
            http_metrics.CACHE_HIT_TOKENS.inc(exchange.num_cached_tokens)
            account.used(num_tokens, exchange.num_cached_tokens, 0, is_good=is_good)


async def _all(workers: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run the workers to their end. The first error ends all of them."""
    tasks: list[asyncio.Task[None]] = []
    try:
        for worker in workers:
            tasks.append(asyncio.create_task(worker))
            if len(tasks) % JOBS_AT_ONCE == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _unless_gone(exchange: Exchange, answer: Awaitable[None]) -> None:
    gone = asyncio.ensure_future(exchange.gone())
    answering = asyncio.ensure_future(answer)
    either: set[asyncio.Future[Any]] = {gone, answering}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientGone("the client left")
        answering.result()
    except asyncio.CancelledError:
        raise NoCapacity("the router is shutting down") from None
    finally:
        gone.cancel()
        answering.cancel()


async def _send(exchange: Exchange, head: dict[str, Any], items: Iterable[dict[str, Any]]) -> None:
    """Send an answer with a long `data` list: its items are computed and sent a few per turn of the event loop."""
    parts, began_s = [msgspec.json.encode(head)[:-1] + b',"data":['], time.perf_counter()
    for item in items:
        parts += [msgspec.json.encode(item), b","]
        if time.perf_counter() - began_s > _TURN_S:
            await asyncio.sleep(0)
            began_s = time.perf_counter()
    parts[-1] = b"]}"
    sender, piece, num_bytes = exchange.sender, list[bytes](), 0
    exchange.start(200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % sum(map(len, parts)))])
    for part in parts:
        piece.append(part)
        num_bytes += len(part)
        if num_bytes > _PIECE_BYTES:
            sender.write(b"".join(piece))
            piece, num_bytes = [], 0
            await asyncio.sleep(0)
            await sender.flush()
    sender.write(b"".join(piece), more=False)
    exchange.left = sender.broken


def _usage(prompts: Sequence[Sequence[int]]) -> dict[str, int]:
    num_tokens = sum(map(len, prompts))
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def _floats(vector: bytes) -> list[float]:
    return array("f", vector).tolist()


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
