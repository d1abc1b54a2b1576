"""What a node's load was after its last step, for heartbeats, the registry and metrics.

The step thread publishes, everyone else reads: a step that takes long delays no heartbeat.
"""

from prometheus_client import Counter, Gauge

from baton.errors import Overloaded
from baton.v1 import types_pb2

MAX_WAITING = 1024  # requests that wait for their first step

_BLOCKS = Gauge("baton_kv_blocks", "KV blocks by what holds them; together the pool", ["state"])
_USAGE = Gauge("baton_kv_usage_ratio", "Share of the KV blocks that requests hold, 0 to 1; cached blocks are free")
BLOCK_LEAKS = Counter("baton_kv_block_leaks", "Times that an idle node found blocks which nobody accounts for")
_RUNNING = Gauge("baton_requests_running", "Requests in the running batch")
_PREEMPTIONS = Counter("baton_preemptions", "Running requests set back for want of blocks")
_STEPS = Counter("baton_steps", "Engine steps")
_STEP_SECONDS = Gauge("baton_step_seconds", "Mean length of lately run steps")
_SPEED = Gauge("baton_prefill_tokens_per_second", "How fast prompts were lately computed; 0: none yet")
_WAITING = Gauge("baton_requests_waiting", "Requests not yet scheduled, or waiting for blocks")
_WAITING_TOKENS = Gauge("baton_waiting_prompt_tokens", "Prompt tokens still to be computed")
_READY = Gauge("baton_node_ready", "1 while the node takes requests; 0 while it starts or drains")

ERRORS = Counter("baton_request_errors", "Requests that ended with an error here", ["code"])


class TokenCount:
    """A counter that heartbeats carry too."""

    def __init__(self, name: str, documentation: str) -> None:
        self.value = 0
        self._metric = Counter(name, documentation)

    def inc(self, amount: int = 1) -> None:
        """Count so many more."""
        self.value += amount
        self._metric.inc(amount)


PROMPT_TOKENS = TokenCount("baton_prompt_tokens", "Prompt tokens of requests that began here")
CACHED_TOKENS = TokenCount("baton_prefix_cache_hit_tokens", "Prompt tokens found in this node's prefix cache")
OUTPUT_TOKENS = TokenCount("baton_generation_tokens", "Output tokens sampled here")


class LoadBoard:
    """The latest load. `state` is the life cycle's, the rest the engine's."""

    def __init__(self) -> None:
        self._state: types_pb2.NodeState.ValueType = types_pb2.NODE_STATE_STARTING
        self.num_queued = 0  # waiting for blocks before the engine knows of them
        self._load = types_pb2.Load()
        self._num_cached_blocks = 0
        self._num_preemptions = 0

    @property
    def state(self) -> "types_pb2.NodeState.ValueType":
        """Starting, ready or draining."""
        return self._state

    @state.setter
    def state(self, state: "types_pb2.NodeState.ValueType") -> None:
        self._state = state
        _READY.set(state == types_pb2.NODE_STATE_READY)

    def publish(self, load: types_pb2.Load, *, num_cached: int, num_leased: int, num_preemptions: int) -> None:
        """On the step thread: `load` as the engine sees it, never changed afterwards.

        `num_cached` blocks are free but hold a prefix; `num_leased` are held by requests that do not run, because a
        transfer fills or reads them.
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
        """Raise Overloaded where so many requests wait that one more would wait in vain."""
        if self._load.num_waiting + self.num_queued >= MAX_WAITING:
            raise Overloaded("too many requests wait on this node")

    def load(self) -> types_pb2.Load:
        """A copy, with the state and the queue of this moment."""
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
