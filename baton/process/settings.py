"""All flags of all services, each defined once. `baton up` passes them on to the services that it starts."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from baton.process.config import check_bytes, env_name, flag

MAX_PORT = 65535
TRANSPORTS = ("auto", "cuda", "shm", "ucx", "tcp")


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model to serve, and under which names."""

    model: str = flag("", "model directory in Hugging Face layout, or a hub id", metavar="DIR|HF_ID")
    served_model_name: tuple[str, ...] = flag((), "names that clients may use; by default the model's own name")
    max_model_len: int = flag(0, "maximum of prompt and output tokens per request; 0 takes the model's own limit")


@dataclass(frozen=True, kw_only=True)
class EngineFlags(ModelFlags):
    """How a node computes."""

    device: str = flag("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    dtype: str = flag(
        "auto",
        "type of weights and KV; auto takes the checkpoint's",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str = flag(
        "none",
        "quantize the weights of all layers to int8 or int4, except embedding, output head and routers of experts",
        choices=("none", "int8", "int4"),
    )
    deterministic: bool | None = flag(
        None,
        "make results independent of the batch, of prefill chunks, and of the nodes that compute them; "
        "by default on for CPUs, where it costs nothing, and off for GPUs",
    )
    cuda_graphs: bool = flag(
        True, "run decode steps on GPUs from CUDA graphs captured at the start; no effect on a CPU"
    )
    max_num_seqs: int = flag(256, "maximum number of requests in one step", least=1)
    max_num_batched_tokens: int = flag(
        2048, "maximum number of tokens in one step; longer prompts are prefilled in chunks", least=1
    )
    block_size: int = flag(16, "tokens per KV block", least=1)
    kv_memory: str = flag(
        "auto", "size of a node's KV pool, as 512MiB or 4GiB; auto derives it from the free memory", check=check_bytes
    )
    num_threads: int = flag(0, "compute threads of a node; 0 takes every core it may use")


@dataclass(frozen=True, kw_only=True)
class NodeFlags(EngineFlags):
    """Flags of nodes, apart from their identity and addresses."""

    transport: str = flag(
        "auto", "transport for KV blocks; auto takes the best one that each pair of nodes supports", choices=TRANSPORTS
    )


@dataclass(frozen=True, kw_only=True)
class FrontFlags(ModelFlags):
    """Flags of routers, apart from their identity and addresses: clients, sampling, and parsing of outputs."""

    sampling_defaults: str = flag(
        "model",
        "sampling parameters for requests that leave them out: the model's generation_config.json, or OpenAI's",
        choices=("model", "openai"),
    )
    tool_parser: str = flag(
        "auto",
        "format in which the model writes tool calls; auto detects it from the chat template",
        choices=("auto", "none", "hermes", "llama3", "mistral"),
    )
    reasoning_parser: str = flag(
        "auto",
        "whether to split <think>…</think> off as reasoning_content; auto detects it from the chat template",
        choices=("auto", "none", "think"),
    )
    api_key_file: str = flag(
        "",
        "file with one API key per line: plain, hashed, or JSON with limits; without any key, every client is served",
        metavar="FILE",
    )
    max_ttft_s: float = flag(0.0, "refuse (429) requests whose predicted time to first token is longer; 0: no limit")
    log_prompts: bool = flag(False, "write prompts to the log; by default they appear nowhere")


@dataclass(frozen=True, kw_only=True)
class LogFlags:
    """Logs and traces of a service."""

    log_level: str = flag("info", "how much to log", choices=("debug", "info", "warning", "error"))
    log_format: str = flag("text", "format of log lines", choices=("text", "json"))
    otlp_endpoint: str = flag(
        "",
        "OTLP/HTTP collector for spans, such as http://collector:4318; by default OTEL_EXPORTER_OTLP_ENDPOINT",
        metavar="URL",
    )


@dataclass(frozen=True, kw_only=True)
class ServiceFlags(LogFlags):
    """What every service needs to be part of a fleet."""

    host: str = flag("127.0.0.1", "address to listen on, at which the rest of the fleet reaches this service")
    redis_url: str = flag("redis://127.0.0.1:6379/0", "Redis that holds the registry of nodes and the prefix index")
    service_token: str = flag(
        "", "secret shared by all services of the fleet; required beyond loopback, unless TLS is used", secret=True
    )
    tls_cert: str = flag("", "certificate of this service, PEM, for mutual TLS between services", metavar="FILE")
    tls_key: str = flag("", "key of that certificate, PEM", metavar="FILE")
    tls_ca: str = flag("", "certificate of the authority that has signed all services' certificates", metavar="FILE")
    tls_name: str = flag("", "name in all these certificates; by default each carries the address of its service")


@dataclass(frozen=True, kw_only=True)
class NodeConfig(NodeFlags, ServiceFlags):
    """Run one prefill or decode node of a fleet, which registers in Redis."""

    node_id: str = flag("", "name of this node in the fleet; by default a generated one")
    port: int = flag(0, "gRPC port; 0 takes a free one", most=MAX_PORT)
    metrics_port: int = flag(0, "port of /metrics; 0 takes a free one", most=MAX_PORT)
    drain_timeout_s: float = flag(60.0, "how long SIGTERM waits for running requests")


@dataclass(frozen=True, kw_only=True)
class RouterConfig(FrontFlags, ServiceFlags):
    """Run one router of a fleet, which finds the nodes through Redis."""

    port: int = flag(8000, "HTTP port; routers of one fleet may share it on a host", most=MAX_PORT)
    node_id: str = flag("", "name of this router in the fleet; by default a generated one")
    admin_host: str = flag("127.0.0.1", "address of the admin port: metrics, dashboard, traces")
    admin_port: int = flag(0, "admin port, one per router process; 0 takes a free one", most=MAX_PORT)
    api_key: str = flag("", "API keys, comma-separated, in addition to those of the file", secret=True)
    request_timeout_s: float = flag(600.0, "deadline of a request, including the time that it waits")
    max_waiting: int = flag(1024, "maximum number of requests per priority class that may wait for a node")
    max_connections_per_address: int = flag(
        4096, "maximum number of open connections per client address; 0: half of all that are possible"
    )
    drain_timeout_s: float = flag(60.0, "how long SIGTERM waits for running requests")


@dataclass(frozen=True, kw_only=True)
class FleetConfig(NodeFlags, FrontFlags, LogFlags):
    """A local fleet: `baton up`."""

    prefill: int = flag(1, "number of prefill nodes")
    decode: int = flag(1, "number of decode nodes")
    routers: int = flag(1, "number of router processes, which share one port")
    host: str = flag("127.0.0.1", "address that the HTTP endpoint listens on")
    port: int = flag(8000, "HTTP port", most=MAX_PORT)
    redis_url: str = flag("", "an existing Redis; by default the fleet starts a private one")
    colocated: bool = flag(False, "run prefill and decode on the same nodes: the baseline for comparisons")
    admin_port: int = flag(
        0, "admin port of the first router; the others take the ports after it; 0 takes free ones", most=MAX_PORT
    )
    detach: bool = flag(False, "return when the fleet is ready; `baton down` stops it")


_LIKE_ENOUGH = 0.88  # similar: BATON_DECOD; not: BATON_SERVICE_HOST, which Kubernetes sets for a Service called baton


def misspelt(env: Mapping[str, str]) -> list[str]:
    """Return a warning for each BATON_ variable that is unknown but similar to a known one."""
    fields = (field for config in (FleetConfig, NodeConfig, RouterConfig) for field in dataclasses.fields(config))
    known = {env_name(field.name) for field in fields} | {"BATON_HOME"}
    similar = {
        name: difflib.get_close_matches(name, known, 1, _LIKE_ENOUGH) for name in env if name.startswith("BATON_")
    }
    return [
        f"{name} is unknown: did you mean {near[0]}?" for name, near in similar.items() if name not in known and near
    ]
