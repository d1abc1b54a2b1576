"""What a node's load was after its last step, for heartbeats, the registry and metrics.

The step thread publishes, everyone else reads: a step that takes long delays no heartbeat.
"""

from prometheus_client import Counter, Gauge

from baton.errors import Overloaded
from baton.v1 import types_pb2

MAX_WAITING = 1024  # requests that wait for their first step

_BLOCKS = Gauge("baton_kv_blocks", "KV blocks by what holds them", ["state"])
_RUNNING = Gauge("baton_requests_running", "Requests in the running batch")
_PREEMPTIONS = Counter("baton_preemptions", "Running requests set back for want of blocks")
_STEP_SECONDS = Gauge("baton_step_seconds", "Mean length of lately run steps")
_WAITING = Gauge("baton_requests_waiting", "Requests not yet scheduled, or waiting for blocks")

PROMPT_TOKENS = Counter("baton_prompt_tokens_total", "Prompt tokens of requests that began here")
CACHED_TOKENS = Counter("baton_prefix_cache_hit_tokens_total", "Prompt tokens found in this node's prefix cache")
OUTPUT_TOKENS = Counter("baton_generation_tokens_total", "Output tokens sampled here")
ERRORS = Counter("baton_request_errors_total", "Requests that ended with an error here", ["code"])


class LoadBoard:
    """The latest load. `state` is the life cycle's, the rest the engine's."""

    def __init__(self) -> None:
        self.state: types_pb2.NodeState.ValueType = types_pb2.NODE_STATE_STARTING
        self.num_queued = 0  # waiting for blocks before the engine knows of them
        self._load = types_pb2.Load()
        self._num_preemptions = 0

    def publish(self, load: types_pb2.Load, *, num_cached: int, num_leased: int, num_preemptions: int) -> None:
        """On the step thread: `load` as the engine sees it, never changed afterwards.

        `num_cached` blocks are free but hold a prefix; `num_leased` are held by requests that do not run, because a
        transfer fills or reads them.
        """
        self._load = load
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
        _STEP_SECONDS.set(load.step_s)
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
        return load
