"""What a router tells on its admin port, for `top` and `trace`: one of the running fleet's, or the one of --admin."""

import argparse
import http.client
import json
import os
from typing import Any
from urllib.parse import urlsplit

from baton.errors import BatonError, ConfigError
from fleet import state
from fleet.home import Home
from fleet.key_file import key_of

_TIMEOUT_S = 5.0
_MAX_BYTES = 16 * 2**20


class NotKnown(BatonError):
    """There is nothing of that name."""

    status = 404


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which router, and who asks."""
    parser.add_argument("--admin", default="", metavar="URL", help="a router's admin port; the running fleet's if none")
    parser.add_argument("--api-key-file", default="", metavar="FILE", help="file whose first line is the API key")


class AdminClient:
    """Asks the first router that answers."""

    def __init__(self, urls: list[str], key: str = "") -> None:
        """`urls` without a path. `key` is an API key or the service token."""
        self._urls, self._key = urls, key

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "AdminClient":
        """Of the running fleet where no URL is given; ConfigError where none runs."""
        key_file = args.api_key_file or os.environ.get("BATON_API_KEY_FILE", "")
        urls = [args.admin.rstrip("/").removesuffix("/dashboard")]
        if not args.admin:
            fleet = state.running(Home.from_env())
            key_file = key_file or fleet.api_key_file
            urls = [p.metrics.removesuffix("/metrics") for p in fleet.processes if p.role == "router" and p.metrics]
        return cls(urls, _key(key_file))

    def get(self, path: str) -> dict[str, Any]:
        """The JSON at that path. Raises NotKnown, or ConfigError where nobody answers or the key is refused."""
        reason = "there is no router"
        for url in self._urls:
            try:
                status, body = self._ask(url, path)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = f"{url}: {error}"
                continue
            if status == 404:
                raise NotKnown(_message(body))
            if status != 200:
                raise ConfigError(f"{url} answers {status}: {_message(body)}")
            answer: dict[str, Any] = json.loads(body)
            return answer
        raise ConfigError(f"no admin port answers ({reason})")

    def _ask(self, url: str, path: str) -> tuple[int, bytes]:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._key}"} if self._key else {})
            response = connection.getresponse()
            return response.status, response.read(_MAX_BYTES)
        finally:
            connection.close()


def _key(key_file: str) -> str:
    """The first key of the file, else of the environment, else the service token."""
    return key_of(key_file) or ("" if key_file else os.environ.get("BATON_SERVICE_TOKEN", ""))


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "no reason given"
