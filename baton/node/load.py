"""A node's load after its last step, for heartbeats, the registry and metrics.

The step thread publishes it and the event loop reads it, so a long step delays no heartbeat.
"""

from prometheus_client import Counter, Gauge

from baton.errors import Overloaded
from baton.v1 import types_pb2

MAX_WAITING = 1024  # requests waiting for their first step, beyond which more are refused

_BLOCKS = Gauge("baton_kv_blocks", "KV blocks by what holds them; together the pool", ["state"])
_USAGE = Gauge("baton_kv_usage_ratio", "Share of the KV blocks that requests hold, 0 to 1; cached blocks are free")
BLOCK_LEAKS = Counter("baton_kv_block_leaks", "Times that an idle node found blocks which nobody accounts for")
_RUNNING = Gauge("baton_requests_running", "Requests in the running batch")
_PREEMPTIONS = Counter("baton_preemptions", "Running requests preempted because KV blocks ran out")
_STEPS = Counter("baton_steps", "Engine steps")
_STEP_SECONDS = Gauge("baton_step_seconds", "Mean duration of recent steps")
_SPEED = Gauge("baton_prefill_tokens_per_second", "Recent prefill speed; 0: none yet")
_WAITING = Gauge("baton_requests_waiting", "Requests not yet scheduled, or waiting for blocks")
_WAITING_TOKENS = Gauge("baton_waiting_prompt_tokens", "Prompt tokens still to be computed")
_READY = Gauge("baton_node_ready", "1 while the node takes requests; 0 while it starts or drains")

ERRORS = Counter("baton_request_errors", "Requests that ended with an error here", ["code"])


class TokenCount:
    """A counter whose value heartbeats also carry."""

    def __init__(self, name: str, documentation: str) -> None:
        self.value = 0
        self._metric = Counter(name, documentation)

    def inc(self, amount: int = 1) -> None:
        """Add `amount`."""
        self.value += amount
        self._metric.inc(amount)


PROMPT_TOKENS = TokenCount("baton_prompt_tokens", "Prompt tokens of requests that started here")
CACHED_TOKENS = TokenCount("baton_prefix_cache_hit_tokens", "Prompt tokens found in this node's prefix cache")
OUTPUT_TOKENS = TokenCount("baton_generation_tokens", "Output tokens sampled here")


class LoadBoard:
    """Holds the latest load. The node's life cycle sets `state`; the engine publishes the rest."""

    def __init__(self) -> None:
        self._state: types_pb2.NodeState.ValueType = types_pb2.NODE_STATE_STARTING
        self.num_queued = 0  # requests that wait for blocks before the engine gets them
        self._load = types_pb2.Load()
        self._num_cached_blocks = 0
        self._num_preemptions = 0

    @property
    def state(self) -> "types_pb2.NodeState.ValueType":
        """The node's state: starting, ready or draining."""
        return self._state

    @state.setter
    def state(self, state: "types_pb2.NodeState.ValueType") -> None:
        self._state = state
        _READY.set(state == types_pb2.NODE_STATE_READY)

    def publish(self, load: types_pb2.Load, *, num_cached: int, num_leased: int, num_preemptions: int) -> None:
        """Publish the engine's `load`, which must not be changed afterwards. Called on the step thread.

        `num_cached` blocks are free but hold a prefix; `num_leased` belong to requests that are not running because a
        transfer fills or reads their blocks.
        """
        _STEPS.inc(max(load.num_steps - self._load.num_steps, 0))
        self._load, self._num_cached_blocks = load, num_cached
        blocks = {
            "free": load.num_free_blocks - num_cached,
            "cached": num_cached,
            "leased": num_leased,
            "running": load.num_blocks - load.num_free_blocks - num_leased,
        }
        for state, count in blocks.items():
            _BLOCKS.labels(state).set(count)
        _RUNNING.set(load.num_running)
        _WAITING.set(load.num_waiting + self.num_queued)
        _WAITING_TOKENS.set(load.num_waiting_tokens)
        _USAGE.set(1 - load.num_free_blocks / load.num_blocks if load.num_blocks else 0)
        _STEP_SECONDS.set(load.step_s)
        _SPEED.set(load.prefill_tokens_per_s)
        _PREEMPTIONS.inc(num_preemptions - self._num_preemptions)
        self._num_preemptions = num_preemptions

    def check_room(self) -> None:
        """Raise Overloaded if MAX_WAITING requests are waiting already."""
        if self._load.num_waiting + self.num_queued >= MAX_WAITING:
            raise Overloaded("too many requests are waiting on this node")

    def load(self) -> types_pb2.Load:
        """Return a copy of the load, with the current state, queue length and token counts."""
        load = types_pb2.Load()
        load.CopyFrom(self._load)
        load.state = self.state
        load.num_waiting += self.num_queued
        load.num_cached_blocks = self._num_cached_blocks
        load.num_preemptions = self._num_preemptions
        load.num_prompt_tokens = PROMPT_TOKENS.value
        load.num_cached_tokens = CACHED_TOKENS.value
        load.num_output_tokens = OUTPUT_TOKENS.value
        return load
