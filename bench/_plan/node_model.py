"""The cost model of a prefill and a decode node: fitted, or derived from a few measured figures."""

import math
from pathlib import Path
from typing import Any

import msgspec

from baton.errors import ConfigError
from baton.step_cost import StepCost
from bench._plan.least_squares import non_negative
from bench._simulated.hardware import Hardware


class NodeModel(msgspec.Struct, frozen=True, kw_only=True):
    """Step costs in milliseconds, as in `baton.step_cost`, and overheads besides steps."""

    cost: StepCost
    overhead_ms: float = 0.0  # of TTFT: HTTP, tokenizing, routing
    noise: float = 0.1  # standard deviation of the logarithm of a prompt's time
    latency_ms: float = 0.0  # between the first token and decoding: the rest of a transfer
    join_ms: float = 0.0  # part of it: the decode node stands still for so long when a request joins
    prefill_beside: float = 1.0  # factor on prompts while all decode nodes are busy
    decode_beside: float = 1.0  # factor on decode steps while all prefill nodes are busy; above 1 on shared cores
    block_size: int = 16
    num_blocks: int = 100_000  # of a node's pool
    chunk_tokens: int = 2048

    def hardware(self, block_size: int = 0) -> Hardware:
        """Return simulated nodes of this kind; `block_size` is the trace's number of tokens per hash."""
        size = block_size or self.block_size
        return Hardware(
            cost=self.cost,
            chunk_tokens=self.chunk_tokens,
            block_size=size,
            num_blocks=max(self.num_blocks * self.block_size // size, 1),
            latency_ms=max(self.latency_ms - self.join_ms, 0.0),
            join_ms=self.join_ms,
            noise=self.noise,
            prefill_beside=self.prefill_beside,
            decode_beside=self.decode_beside,
            block_ms=0.0,  # transfers overlap with the prefill; the exposed rest is in latency_ms
        )


def read(path: Path) -> NodeModel:
    """Read a file of `write`, or a report of `baton bench serve --json`. Raises ConfigError if it is neither."""
    try:
        content = msgspec.json.decode(path.read_bytes())
        return of_report(content) if "runs" in content else msgspec.convert(content, NodeModel)
    except OSError as error:
        raise ConfigError(f"--node: {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"--node: {path} is neither a node model nor a report of `baton bench serve`: {problem}"
        ) from None


def write(path: Path, model: NodeModel) -> None:
    """Write the model as JSON that can be edited."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(model), indent=2) + b"\n")


def of_rates(prefill_tokens_per_s: float, decode_base_ms: float, decode_request_ms: float) -> NodeModel:
    """Return a model from three figures, as an engine benchmark gives them."""
    if prefill_tokens_per_s <= 0 or decode_base_ms <= 0:
        raise ConfigError("no node costs: give --fit, --node, or --prefill-tokens-per-s and --decode-base-ms above 0")
    cost = StepCost(
        prefill_token_ms=1000 / prefill_tokens_per_s, decode_base_ms=decode_base_ms, decode_request_ms=decode_request_ms
    )
    return NodeModel(cost=cost)


def of_report(report: dict[str, Any]) -> NodeModel:
    """Return a model from closed-loop runs with one node per pool: less accurate, as there is one prompt length.

    The cost of prompts is taken at the highest throughput; the rest of the shortest TTFT is overhead.
    """
    runs = [run for run in report["runs"] if run["requests"] > run["failed"]]
    if not runs:
        raise ConfigError("the report contains no complete request")
    fastest = max(run["prompt_tokens_per_s"] for run in runs)
    shortest = min(runs, key=lambda run: float(run["ttft_p50_s"]))
    num_tokens = shortest["prompt_tokens"] / (shortest["requests"] - shortest["failed"])
    rows = [(1.0, run["requests_per_s"] * (run["e2e_mean_s"] - run["ttft_mean_s"])) for run in runs]
    base, per_request = non_negative(rows, [1000 * run["tpot_p50_s"] for run in runs])
    prefill_token_ms = 1000 / fastest
    cost = StepCost(prefill_token_ms=prefill_token_ms, decode_base_ms=base, decode_request_ms=per_request)
    overhead_ms = 1000 * shortest["ttft_p50_s"] - prefill_token_ms * num_tokens
    return NodeModel(cost=cost, overhead_ms=max(overhead_ms, 0.0) if math.isfinite(overhead_ms) else 0.0)
