"""How fast the engine computes, relative to the machine's roofline.

Measures the prefill of one 512-token prompt, and decode steps at several batch sizes, of a random 107M Llama in bf16
(or --model, of a dense family). The roofline is measured again in every round: a decode step has to read all weights
and the KV once; a prefill takes two floating-point operations per weight and token, plus those of causal attention. The
KV pool's pages are made resident first, as in a server that has used each block. If transformers is installed, it does
the same work, in turns with the engine. Steps that sample are measured in turns with greedy ones, at the largest batch
size; a random model's logits are nearly equal, which is the worst case for top-p. Shares and ratios are medians over
rounds, with their range, so that a slow minute affects all sides.
"""

import argparse
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from baton.process.bounds import whole
from baton.process.settings import EngineFlags
from baton.request import Generation, SamplingParams
from bench import _command
from bench._roofline import Roofline, best_of, torch_dtype
from bench._transformers import Transformers
from engine import random_checkpoint
from engine.engine import Engine
from engine.loading import load_engine

PROMPT_TOKENS = 512
SAMPLED: Mapping[str, Mapping[str, Any]] = {  # what requests commonly ask for, as fields of SamplingParams
    "temperature 1": {"temperature": 1.0},
    "top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "top-k 20, top-p 0.8": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
    "repetition penalty": {"repetition_penalty": 1.1},
    "5 log-probabilities": {"num_logprobs": 5},
}
_ROUNDS = 5
_MORE_STEPS = 8  # for transformers, whose step time is a difference of two runs


def main(argv: Sequence[str]) -> int:
    parser = _command.parser("engine", __doc__)
    parser.add_argument("--model", help="checkpoint (default: a random 107M Llama)")
    parser.add_argument("--device", default="auto", help="where to compute: auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="type of weights and KV")
    parser.add_argument("--num-threads", type=whole(0, 1024), default=0, help="compute threads; 0: one per core")
    parser.add_argument("--batch-sizes", type=whole(), nargs="+", default=[1, 8, 32], help="requests per decode step")
    parser.add_argument("--context", type=whole(), default=128, help="prompt tokens before decoding")
    parser.add_argument("--num-steps", type=whole(), default=40, help="decode steps to measure")
    args = parser.parse_args(argv)
    if args.num_steps <= max(args.batch_sizes) // 8:
        parser.error("--num-steps must be above an eighth of --batch-sizes: so many pass until all requests decode")
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.model or random_checkpoint.write(Path(scratch), random_checkpoint.LLAMA_107M)
        flags = EngineFlags(
            model=str(directory), device=args.device, dtype=args.dtype, num_threads=args.num_threads, kv_memory="1GiB"
        )
        start_s = time.perf_counter()
        engine = load_engine(directory, flags)
        engine.pool.zero_()
        print(_command.line("engine", argv))
        print(f"{engine.config.device}, {engine.config.num_threads} threads of {os.cpu_count()}, {engine.config.dtype}")
        print(f"loaded in {time.perf_counter() - start_s:.2f} s")
        with _command.progress() as progress:
            for line in progress.track(
                report(engine, args, str(directory)), total=2 + len(args.batch_sizes) + len(SAMPLED)
            ):
                print(line)
    return 0


def report(engine: Engine, args: argparse.Namespace, directory: str) -> Iterator[str]:
    """Yield the lines of the report as they are measured."""
    num_weights = layer_weights(engine) + head_weights(engine)  # a step reads only single rows of the embedding
    weight_bytes = num_weights * (4 if engine.config.dtype == "float32" else 2)
    device, dtype = engine.config.device, getattr(torch, engine.config.dtype)
    roofline = Roofline(device, dtype)
    yield f"roofline: {roofline.bytes_per_s() / 1e9:.1f} GB/s read, {roofline.flops() / 1e9:.0f} GFLOP/s GEMM"

    peer_dtype = torch_dtype(device, dtype)
    peer = Transformers(directory, peer_dtype, device) if find_spec("transformers") else None
    peers = f"transformers in {str(peer_dtype).removeprefix('torch.')}"
    products = layer_weights(engine) * PROMPT_TOKENS + head_weights(engine)  # the head computes the logits of one token
    operations = 2 * (products + attention_products(engine))
    prefill_s, compared = in_rounds(
        partial(measure_prefill, engine),
        lambda: operations / roofline.flops(),
        partial(peer.seconds, 1, PROMPT_TOKENS, 1) if peer else None,
        peers,
    )
    yield f"prefill {PROMPT_TOKENS}:   {PROMPT_TOKENS / prefill_s:22.0f} tok/s  {compared}"
    for batch_size in args.batch_sizes:
        context = args.context + args.num_steps // 2
        num_bytes = weight_bytes + batch_size * context * engine.layout.block_bytes / engine.layout.block_size
        step_s, compared = in_rounds(
            partial(measure_decode, engine, batch_size, args, {}),
            partial(step_bound_s, roofline, num_bytes, 2 * num_weights * batch_size),
            partial(transformers_step_s, peer, batch_size, args.context) if peer else None,
            peers,
        )
        yield f"decode at {batch_size:3}: {step_s * 1e3:8.2f} ms a step, {batch_size / step_s:7.0f} tok/s  {compared}"
    measure = partial(measure_decode, engine, max(args.batch_sizes), args)
    for name, sampling in SAMPLED.items():
        pairs = [(measure(sampling), measure({})) for _ in range(_ROUNDS)]
        added_ms = [1e3 * (sampled_s - greedy_s) for sampled_s, greedy_s in pairs]
        yield f"{name + ':':20} {_median(added_ms, '.2f')} ms more for a step of {max(args.batch_sizes)}"


def in_rounds(
    ours: Callable[[], float], bound: Callable[[], float], theirs: Callable[[], float] | None, peers: str
) -> tuple[float, str]:
    """Return (our median seconds, text with shares and ratios), measured in turns after one unmeasured round."""
    times, shares, ratios = [], [], []
    for _ in range(1 + _ROUNDS):
        times.append(ours())
        shares.append(100 * bound() / times[-1])
        ratios.append(theirs() / times[-1] if theirs else math.nan)
    compared = f"{_median(shares[1:], '.0f')} % of roofline"
    if theirs:
        known = [ratio for ratio in ratios[1:] if not math.isnan(ratio)] or [math.nan]
        compared += f", {_median(known, '.1f')} x {peers}"
    return statistics.median(times[1:]), compared


def _median(values: list[float], form: str) -> str:
    """Format the median and the range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def step_bound_s(roofline: Roofline, num_bytes: float, operations: int) -> float:
    """Return the lower bound of a step: the time to read or to multiply, whichever is longer."""
    return max(num_bytes / roofline.bytes_per_s(), operations / roofline.flops())


def transformers_step_s(peer: Transformers, batch_size: int, context: int) -> float:
    """Return the time of a decode step, from two runs that differ by _MORE_STEPS steps. NaN if noise is larger."""
    short, long = (peer.seconds(batch_size, context, 1 + steps) for steps in (0, _MORE_STEPS))
    return (long - short) / _MORE_STEPS if long > short else math.nan


def layer_weights(engine: Engine) -> int:
    m = engine.model_config
    attention = m.hidden_size * m.head_dim * (2 * m.num_heads + 2 * m.num_kv_heads)
    return m.num_layers * (attention + 3 * m.hidden_size * m.intermediate_size)


def attention_products(engine: Engine) -> int:
    """Return multiplications of causal attention: one for the score and one for the value of each pair of tokens."""
    m = engine.model_config
    return m.num_layers * m.num_heads * m.head_dim * PROMPT_TOKENS * (PROMPT_TOKENS + 1)


def head_weights(engine: Engine) -> int:
    return engine.model_config.vocab_size * engine.model_config.hidden_size


def generation(engine: Engine, num_tokens: int, num_output: int, sampling: Mapping[str, Any]) -> Generation:
    """Return a request of random tokens, so that nothing is found in the prefix cache. Greedy by default."""
    tokens = [random.randrange(engine.model_config.vocab_size) for _ in range(num_tokens)]
    params = SamplingParams(**{"temperature": 0.0, **sampling}, max_tokens=num_output, ignore_eos=True)
    return Generation(
        request_id="bench", key=0, token_ids=tokens, num_prompt_tokens=num_tokens, sampling=params, router_id="bench"
    )


def measure_prefill(engine: Engine) -> float:
    """Return the seconds of a single prompt, from `add` to its first token."""

    def run() -> None:
        engine.add(generation(engine, PROMPT_TOKENS, 1, {}))
        while engine.has_work:
            engine.step()

    return best_of(run, engine.config.device, repeats=1)


def measure_decode(engine: Engine, batch_size: int, args: argparse.Namespace, sampling: Mapping[str, Any]) -> float:
    """Return the median seconds of a step with `batch_size` decoding requests."""
    num_output = args.num_steps + 2
    requests = [engine.add(generation(engine, args.context, num_output, sampling)) for _ in range(batch_size)]
    while any(not request.first_token_s for request in requests):
        engine.step()
    times = []
    for _ in range(args.num_steps - batch_size // 8):
        start_s = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start_s)
    for request in requests:
        engine.release(request)
    return statistics.median(times)
