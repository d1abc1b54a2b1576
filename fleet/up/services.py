"""Turns the flags of `baton up` into the commands of the fleet's services.

Services do not inherit the parent's BATON_ variables: they get flags, and secrets as variables.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baton.model_source import Model
from baton.process.config import to_args
from baton.process.settings import FleetConfig, FrontFlags, LogFlags, NodeConfig, NodeFlags, RouterConfig
from fleet.up.cores import Share, share
from fleet.up.cores import available as available_cores
from fleet.up.gpus import Gpu, available, kv_memory, of_node
from fleet.up.process import Command

MODULES = {"router": "router", "prefill": "prefill_node", "decode": "decode_node"}
PROGRAMS: Mapping[str, tuple[str, ...]] = {
    # -P: do not import a folder named `router` in the user's working directory
    role: (sys.executable, "-P", "-m", module)
    for role, module in MODULES.items()
}
_NO_ENV: Mapping[str, str] = {}
_PASSED_ON = ("BATON_FAULT",)


@dataclass(frozen=True)
class Services:
    """What the services of one fleet have in common."""

    config: FleetConfig
    model: Model
    redis_url: str = field(repr=False)
    service_token: str = field(repr=False)
    admin_ports: tuple[int, ...] = ()  # of the routers, on loopback; empty: each uses a free port
    suffix: str = ""  # distinguishes fleets that share a Redis
    programs: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: PROGRAMS)
    cores: list[int] = field(default_factory=available_cores)
    gpus: tuple[Gpu, ...] = field(default_factory=available)

    @property
    def local_host(self) -> str:
        """The host part of URLs by which this host reaches services that listen on `--host`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.config.host, self.config.host)  # noqa: S104
        return f"[{host}]" if ":" in host else host

    @property
    def endpoint(self) -> str:
        """The URL at which clients on this host reach the fleet."""
        return f"http://{self.local_host}:{self.config.port}"

    def node(self, role: str, index: int, num_nodes: int) -> Command:
        """Return the command of the `index`-th of `num_nodes` prefill or decode nodes."""
        name = f"{role}-{index}{self.suffix}"
        part = self._share(role, index, num_nodes)
        gpu = self._gpu(role, index)
        own = {"node_id": name, "num_threads": part.num_threads, "kv_memory": self._kv_memory(gpu)}
        flags = NodeConfig(**self._shared(NodeFlags) | own)
        env = {"CUDA_VISIBLE_DEVICES": gpu.index} if gpu else {}
        return self._command(role, name, to_args(flags), part, env)

    def router(self, index: int) -> Command:
        """Return the command of the `index`-th router."""
        name = f"router-{index}{self.suffix}"
        key_file = self.config.api_key_file
        own = {
            "node_id": name,
            "host": self.config.host,
            "port": self.config.port,
            "admin_port": self.admin_ports[index] if self.admin_ports else 0,
            "api_key_file": os.path.abspath(key_file) if key_file else "",
        }
        flags = RouterConfig(**self._shared(FrontFlags) | own)
        return self._command("router", name, to_args(flags), Share(frozenset(), 0))

    @property
    def dashboard(self) -> str:
        """The URL of the dashboard on this host; empty if no admin ports were chosen."""
        return f"http://127.0.0.1:{self.admin_ports[0]}/dashboard" if self.admin_ports else ""

    def _shared(self, kind: type[NodeFlags | FrontFlags]) -> dict[str, Any]:
        """Return the fleet's flags that a service of this kind has too."""
        fields = (field.name for flags in (kind, LogFlags) for field in dataclasses.fields(flags))
        return {name: getattr(self.config, name) for name in fields} | {
            "model": str(self.model.path),
            "served_model_name": self.model.names,
        }

    def _share(self, role: str, index: int, num_nodes: int) -> Share:
        if self.config.num_threads or self._gpus():
            return Share(frozenset(), self.config.num_threads)
        return share(self.cores, role, num_nodes, colocated=self.config.colocated, index=index)

    def _gpus(self) -> tuple[Gpu, ...]:
        return () if self.config.device == "cpu" else self.gpus

    def _gpu(self, role: str, index: int) -> Gpu | None:
        first = self.config.prefill if role == "decode" and not self.config.colocated else 0
        return of_node(self._gpus(), first + index) if self._gpus() else None

    def _kv_memory(self, gpu: Gpu | None) -> str:
        if gpu is None or self.config.kv_memory != "auto":
            return self.config.kv_memory
        num_nodes = self.config.decode + (0 if self.config.colocated else self.config.prefill)
        return kv_memory(gpu, math.ceil(num_nodes / len(self._gpus())), self.model.path)

    def _command(
        self, role: str, name: str, args: list[str], part: Share, more_env: Mapping[str, str] = _NO_ENV
    ) -> Command:
        env = {k: v for k, v in os.environ.items() if not k.startswith("BATON_") or k.startswith(_PASSED_ON)}
        env |= {
            **more_env,
            "BATON_REDIS_URL": self.redis_url,  # it contains a password, so it must not be in argv
            "BATON_SERVICE_TOKEN": self.service_token,
            "BATON_DIE_WITH_PARENT": str(os.getpid()),
        }
        if role == "router" and (keys := os.environ.get("BATON_API_KEY")):
            env["BATON_API_KEY"] = keys
        return Command(name, role, (*self.programs[role], *args), env, part.cores, part.niceness)
