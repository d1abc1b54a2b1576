"""Items of the scorecard about who may do what, and who learns what."""

import asyncio
import os
import secrets
import stat
from pathlib import Path

import grpc
import psutil

from baton.v1 import node_pb2_grpc
from fleet.scorecard.item import Context, Item, Result, failed, passed, unknown, when

ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/score"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/" + "no-such-path"),
)
_LOOPBACK = ("127.", "::1", "localhost")
_RPC_TIMEOUT_S = 3.0
_KEY_BYTES = 8


def routes_want_a_key(context: Context) -> Result:
    """Without a key, and with a wrong one, every route but the probes answers 401."""
    for key in ("", "wrong-" + secrets.token_hex(_KEY_BYTES)):
        for method, path in ROUTES:
            status = context.client.ask(method, path, {} if method == "POST" else None, key=key).status
            if status != 401:
                return failed(f"{method} {path} answers {status} {'with a wrong key' if key else 'without a key'}")
    return passed(f"{len(ROUTES)} routes answer 401 without a key and with a wrong one")


def keys_are_hidden(context: Context) -> Result:
    """No secret in the arguments of a process; key files are for their owner; one look at the machine."""
    if context.local is None:
        return unknown("look at the arguments of processes and at the mode of key files on each host")
    key = context.client.target.api_key
    token = os.environ.get("BATON_SERVICE_TOKEN", "")
    for process in context.local.processes:
        argv = " ".join(psutil.Process(process.pid).cmdline()) if process.pid else ""
        if any(secret and secret in argv for secret in (key, token)) or "--service-token" in argv:
            return failed(f"the arguments of {process.id} hold a secret")
    if context.local.api_key_file:
        path = Path(context.local.api_key_file)
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            return failed(f"{path} can be read by others (mode {mode:o}): chmod 600")
    return passed("no secret in arguments; the key file, if any, is for its owner alone")


def services_are_closed(context: Context) -> Result:
    """A node refuses a call without the service token."""
    nodes = (
        [p for p in context.local.processes if p.role in ("prefill", "decode") and p.address] if context.local else []
    )
    if not nodes:
        return unknown("call a node without the token: it has to answer UNAUTHENTICATED")
    for node in nodes:
        code = asyncio.run(_attach(str(node.address)))
        if code is not grpc.StatusCode.UNAUTHENTICATED:
            return failed(f"{node.id} answers {code.name if code else 'OK'} to a call without the service token")
    return passed(f"{len(nodes)} nodes answer UNAUTHENTICATED without the service token")


def traffic_is_encrypted(context: Context) -> Result:
    """TLS at the proxy, or nothing but loopback."""
    target = context.client.target
    if target.tls:
        return passed("https, with a certificate that is trusted")
    return when(
        target.host.startswith(_LOOPBACK),
        "plain HTTP, but on loopback only",
        f"{target.url} is plain HTTP beyond loopback: put TLS in front",
    )


def prompts_are_not_logged(context: Context) -> Result:
    """A word that nobody else says is asked, and looked for in all logs and metrics."""
    word = f"canary{secrets.token_hex(_KEY_BYTES)}"
    reply = context.client.complete(context.model, f"Say {word}", 4)
    if reply.status != 200:
        return failed(f"the request that carries the word answers {reply.status}")
    if context.logs is None:
        return unknown(f"look for {word} in the logs of all services: it must not be there")
    for path in sorted(context.logs.glob("*.log")):
        if word in path.read_text(errors="replace"):
            return failed(f"{path.name} holds a prompt: --log-prompts is on")
    return when(
        word.encode() not in context.client.ask("GET", "/metrics").body,
        "a prompt is in no log and no metric",
        "a prompt is in the metrics",
    )


def rates_are_limited(context: Context) -> Result:
    """Answers tell the limits of the key."""
    headers = context.client.complete(context.model, "a", 1).headers
    limits = {name: headers[name] for name in headers if name.startswith("x-ratelimit-limit-")}
    said = ", ".join(f"{name.removeprefix('x-ratelimit-limit-')} {value}/min" for name, value in limits.items())
    return when(bool(limits), said, "no x-ratelimit headers: this key has no limits (docs/routing.md)")


async def _attach(address: str) -> grpc.StatusCode | None:
    """The code with which a stream ends that was opened without the token."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = node_pb2_grpc.NodeStub(channel).Attach(timeout=_RPC_TIMEOUT_S)
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            return error.code()
    return None


ITEMS = (
    Item("authentication", True, routes_want_a_key),
    Item("secrets", True, keys_are_hidden),
    Item("closed services", True, services_are_closed),
    Item("encryption", True, traffic_is_encrypted),
    Item("private logs", True, prompts_are_not_logged),
    Item("rate limits", False, rates_are_limited),
)
