"""A client of routers' admin ports, for `top` and `trace`: of the running fleet, or of the router given by --admin."""

import argparse
import json
import os
from typing import Any

from baton.errors import ConfigError
from baton.net.failure import reason
from fleet import http_ask, key_file, state
from fleet.home import Home

_TIMEOUT_S = 5.0
_OTHERWISE = "is it a router's admin port?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --admin, and the flag for the API key."""
    parser.add_argument(
        "--admin", default="", metavar="URL", help="a router's admin port (default: the running fleet's)"
    )
    key_file.add_argument(parser)


class AdminClient:
    """Sends requests to the first router that answers."""

    def __init__(self, urls: list[str], key: str = "") -> None:
        """Take base URLs without a path. `key` is an API key or the service token."""
        self._urls, self._key = urls, key

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "AdminClient":
        """Use --admin, or else the running fleet. Raises ConfigError if none is ready."""
        file = key_file.asked_for(args)
        urls = [args.admin.rstrip("/").removesuffix("/dashboard")]
        if not args.admin:
            fleet = state.serving(Home.from_env())
            file = file or fleet.api_key_file
            urls = [p.metrics.removesuffix("/metrics") for p in fleet.processes if p.role == "router" and p.metrics]
        return cls(urls, _key(file))

    def get(self, path: str, key: str) -> dict[str, Any]:
        """Return the JSON object at `path`, which has to contain `key`.

        Raises ConfigError if no router answers, or one answers with an error or something else.
        """
        problem = "the fleet has no router"
        for url in self._urls:
            try:
                status, body = http_ask.get(url, path, self._key, _TIMEOUT_S)
            except OSError as error:
                problem = f"{url}: {reason(error)}"
                continue
            answer = _object(body)
            if status != 200 or key not in answer:
                raise ConfigError(f"{url}{path} answers {status}: {http_ask.error_message(body, _OTHERWISE)}")
            return answer
        raise ConfigError(f"no admin port answers ({problem})")


def _object(body: bytes) -> dict[str, Any]:
    """Return the JSON object, empty if the body is something else."""
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _key(file: str) -> str:
    """Return the first key of the file, else of the environment, else the service token."""
    return key_file.key_of(file) or ("" if file else os.environ.get("BATON_SERVICE_TOKEN", ""))
