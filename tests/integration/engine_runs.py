"""Requests through engines in this process, and checks of their output against transformers."""

import dataclasses
import random

import torch

from baton.process.settings import EngineFlags
from baton.request import Generation, SamplingParams
from engine.engine import Engine
from engine.loading import load_engine
from engine.model.recorded import RecordedDecoder
from engine.request import Request
from engine.sampling.sampler import Logprobs
from kernels.api import Kernels

VOCAB = 199
MAX_TOKENS = 12
CLOSE = 1e-4  # tolerance of log-probabilities; the largest difference seen is 3e-5


def prompts(*lengths: int) -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


def engine_of(directory, kernels: Kernels | None = None, **flags) -> Engine:
    defaults = {"kv_memory": "2MiB", "max_num_batched_tokens": 24, "block_size": 8, "num_threads": 1, "device": "cpu"}
    flags = EngineFlags(model=str(directory), **(defaults | flags))
    return load_engine(directory, flags, kernels=kernels)


def ahead(engine: Engine) -> Engine:
    """The same with steps that run ahead, as on a GPU, and are therefore not recorded."""
    config, decoder = dataclasses.replace(engine.config, runs_ahead=True), engine.steps.readout.decoder
    decoder = decoder._decoder if isinstance(decoder, RecordedDecoder) else decoder
    return Engine(config, engine.model_config, decoder, engine._cache, grammars=engine._grammars)


def generation(prompt: list[int], key: int = 0, **sampling) -> Generation:
    defaults = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "ignore_eos": True, "num_logprobs": 5}
    return Generation(
        request_id=f"r{key}",
        key=key,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(**(defaults | sampling)),
        router_id="router",
    )


def run(engine: Engine) -> dict[str, list[Logprobs]]:
    """Step until nothing is left to do; returns log-probabilities by request."""
    logprobs: dict[str, list[Logprobs]] = {}
    while engine.has_work:
        for output in engine.step().outputs:
            if output.logprobs:
                logprobs.setdefault(output.request.request_id, []).append(output.logprobs)
        engine.check()
    return logprobs


def outputs(request: Request) -> list[int]:
    return request.token_ids[request.num_prompt_tokens :]


def assert_same(model, request: Request, logprobs: list[Logprobs] | None = None, close: float = CLOSE) -> None:
    """Check that the output is transformers' greedy one; `logprobs` are those of its last tokens."""
    drawn = outputs(request)
    with torch.inference_mode():
        wanted = model(torch.tensor([request.token_ids])).logits[0].float().log_softmax(-1)
    wanted = wanted[request.num_prompt_tokens - 1 : -1]  # [drawn, V]
    assert drawn == wanted.argmax(-1).tolist()
    for row, found in zip(wanted[len(drawn) - len(logprobs or []) :], logprobs or [], strict=True):
        values, ids = row.topk(5)
        assert found.top_token_ids == ids.tolist()
        assert torch.allclose(torch.tensor(found.top_logprobs), values, rtol=0, atol=close)


def hand_over(prefill: Engine, decode: Engine, prompt: list[int], max_tokens: int) -> Request:
    """Prefill a request on one engine, and start it on the other."""
    source = prefill.add(generation(prompt, max_tokens=max_tokens), prefill_only=True)
    run(prefill)
    target = decode.reserve(generation(prompt, max_tokens=max_tokens))
    assert target is not None
    ship(prefill, source, decode, target)
    prefill.release(source)
    prefill.check()
    decode.start(target, outputs(source)[0])
    return target


def ship(source: Engine, sent: Request, target: Engine, received: Request) -> None:
    layout, size = source.layout, source.layout.block_group_bytes
    for group in range(layout.num_layer_groups):
        for index in range(received.num_present_blocks, len(received.block_ids)):
            read = layout.offset(source.num_blocks, group, sent.block_ids[index])
            write = layout.offset(target.num_blocks, group, received.block_ids[index])
            target.pool[write : write + size] = source.pool[read : read + size]
