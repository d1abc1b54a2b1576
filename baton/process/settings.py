"""Every flag of every service, once. `baton up` passes them on to the services it starts."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from baton.process.config import check_bytes, env_name, flag

MAX_PORT = 65535
TRANSPORTS = ("auto", "cuda", "shm", "ucx", "tcp")


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model, and under which names."""

    model: str = flag("", "model directory in Hugging Face layout, or a hub id", metavar="DIR|HF_ID")
    served_model_name: tuple[str, ...] = flag((), "names that clients may use; the model's own where none is given")
    max_model_len: int = flag(0, "prompt and output tokens of one request at most; 0 takes the model's own limit")


@dataclass(frozen=True, kw_only=True)
class EngineFlags(ModelFlags):
    """How a node computes."""

    device: str = flag("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    dtype: str = flag(
        "auto",
        "type of weights and KV; auto is the checkpoint's",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str = flag(
        "none",
        "weights of all layers rounded to so many bits; embedding, output head and routers of experts are not",
        choices=("none", "int8", "int4"),
    )
    deterministic: bool | None = flag(
        None,
        "results that depend neither on the batch, nor on chunks, nor on which nodes computed them; "
        "unless told, on CPUs, where that costs nothing, and not on GPUs",
    )
    cuda_graphs: bool = flag(
        True, "replay decode steps on CUDA from graphs that are recorded at the start; means nothing on a CPU"
    )
    max_num_seqs: int = flag(256, "requests in one step at most", least=1)
    max_num_batched_tokens: int = flag(
        2048, "tokens in one step at most; longer prompts are computed in chunks", least=1
    )
    block_size: int = flag(16, "tokens in a KV block", least=1)
    kv_memory: str = flag(
        "auto", "size of a node's KV pool, as 512MiB or 4GiB; auto looks at the memory at hand", check=check_bytes
    )
    num_threads: int = flag(0, "compute threads of a node; 0 takes every core it may use")


@dataclass(frozen=True, kw_only=True)
class NodeFlags(EngineFlags):
    """What nodes are told, besides who they are."""

    transport: str = flag("auto", "how KV blocks travel; auto: what each pair of nodes can", choices=TRANSPORTS)


@dataclass(frozen=True, kw_only=True)
class FrontFlags(ModelFlags):
    """What routers are told, besides who they are: whom they serve, and how a model's output is drawn and read."""

    sampling_defaults: str = flag(
        "model",
        "parameters that a request leaves out: as the model's generation_config.json recommends, or OpenAI's",
        choices=("model", "openai"),
    )
    tool_parser: str = flag(
        "auto",
        "format in which the model writes tool calls; auto looks at its chat template",
        choices=("auto", "none", "hermes", "llama3", "mistral"),
    )
    reasoning_parser: str = flag(
        "auto",
        "whether <think>…</think> is split off as reasoning_content; auto looks at the chat template",
        choices=("auto", "none", "think"),
    )
    api_key_file: str = flag(
        "",
        "file with one API key per line, plain, hashed or as JSON with limits; without one every client may come",
        metavar="FILE",
    )
    max_ttft_s: float = flag(0.0, "refuse at once (429) what is predicted to have its first token later; 0: nothing")
    log_prompts: bool = flag(False, "write prompts into the log; off, they appear nowhere")


@dataclass(frozen=True, kw_only=True)
class LogFlags:
    """What every service tells of itself."""

    log_level: str = flag("info", "how much to log", choices=("debug", "info", "warning", "error"))
    log_format: str = flag("text", "log lines for people or for programs", choices=("text", "json"))
    otlp_endpoint: str = flag(
        "",
        "where spans go, over OTLP/HTTP: http://collector:4318; OTEL_EXPORTER_OTLP_ENDPOINT where it is empty",
        metavar="URL",
    )


@dataclass(frozen=True, kw_only=True)
class ServiceFlags(LogFlags):
    """What every service needs to be part of a fleet."""

    host: str = flag("127.0.0.1", "address to listen on, and by which the rest of the fleet finds this service")
    redis_url: str = flag("redis://127.0.0.1:6379/0", "where nodes register and the prefix index lives")
    service_token: str = flag("", "shared by all services of a fleet; beyond loopback it or TLS is needed", secret=True)
    tls_cert: str = flag("", "certificate of this service, PEM, for mutual TLS between services", metavar="FILE")
    tls_key: str = flag("", "its key", metavar="FILE")
    tls_ca: str = flag("", "authority that has signed the certificates of all services of the fleet", metavar="FILE")
    tls_name: str = flag("", "name that all these certificates carry; where none is given, each carries its address")


@dataclass(frozen=True, kw_only=True)
class NodeConfig(NodeFlags, ServiceFlags):
    """One prefill or decode node."""

    node_id: str = flag("", "name of this node in the fleet; minted where none is given")
    port: int = flag(0, "gRPC port; 0 takes a free one", most=MAX_PORT)
    metrics_port: int = flag(0, "port of /metrics; 0 takes a free one", most=MAX_PORT)
    drain_timeout_s: float = flag(60.0, "how long SIGTERM waits for running requests")


@dataclass(frozen=True, kw_only=True)
class RouterConfig(FrontFlags, ServiceFlags):
    """One router."""

    port: int = flag(8000, "HTTP port; several routers on one host may share it", most=MAX_PORT)
    node_id: str = flag("", "name of this router in the fleet; minted where none is given")
    admin_host: str = flag("127.0.0.1", "address of the admin port: metrics, dashboard, traces")
    admin_port: int = flag(0, "admin port, one per router process; 0 takes a free one", most=MAX_PORT)
    api_key: str = flag("", "API keys, comma-separated, beside those of the file", secret=True)
    request_timeout_s: float = flag(600.0, "deadline of a request, waiting included")
    max_waiting: int = flag(1024, "requests of each priority class that may wait for a node")
    max_connections_per_address: int = flag(4096, "open connections of one client address; 0: half of all there can be")
    drain_timeout_s: float = flag(60.0, "how long SIGTERM waits for running requests")


@dataclass(frozen=True, kw_only=True)
class FleetConfig(NodeFlags, FrontFlags, LogFlags):
    """A local fleet: `baton up`."""

    prefill: int = flag(1, "prefill nodes")
    decode: int = flag(1, "decode nodes")
    routers: int = flag(1, "router processes, sharing one port")
    host: str = flag("127.0.0.1", "address that the HTTP endpoint listens on")
    port: int = flag(8000, "HTTP port", most=MAX_PORT)
    redis_url: str = flag("", "an existing Redis; where none is given, the fleet starts a private one")
    colocated: bool = flag(False, "prefill and decode in the same node: the baseline to compare with")
    admin_port: int = flag(
        0, "admin port of the first router, the next ones have the next ones; 0 takes free ones", most=MAX_PORT
    )
    detach: bool = flag(False, "return when the fleet is ready; `baton down` stops it")


_LIKE_ENOUGH = 0.88  # BATON_DECOD; not BATON_SERVICE_HOST, which Kubernetes sets where a Service is called baton


def misspelt(env: Mapping[str, str]) -> list[str]:
    """What is said of BATON_ variables that mean nothing, and look much like one that does."""
    fields = (field for config in (FleetConfig, NodeConfig, RouterConfig) for field in dataclasses.fields(config))
    known = {env_name(field.name) for field in fields} | {"BATON_HOME"}
    found = {name: difflib.get_close_matches(name, known, 1, _LIKE_ENOUGH) for name in env if name.startswith("BATON_")}
    return [f"{name} means nothing: {near[0]}?" for name, near in found.items() if name not in known and near]
