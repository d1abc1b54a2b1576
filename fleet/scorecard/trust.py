"""Items of the scorecard about authentication and confidentiality."""

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
    """Check that every route except the probes answers 401 without a key, and with a wrong one."""
    for key in ("", "wrong-" + secrets.token_hex(_KEY_BYTES)):
        for method, path in ROUTES:
            status = context.client.ask(method, path, {} if method == "POST" else None, key=key).status
            if status != 401:
                return failed(f"{method} {path} answers {status} {'with a wrong key' if key else 'without a key'}")
    return passed(f"{len(ROUTES)} routes answer 401 without a key and with a wrong one")


def keys_are_hidden(context: Context) -> Result:
    """Check that no process has a secret in its arguments, and that only their owner can read key files."""
    if context.local is None:
        return unknown("check the arguments of processes and the mode of key files on each host")
    key = context.client.target.api_key
    token = os.environ.get("BATON_SERVICE_TOKEN", "")
    for process in context.local.processes:
        argv = " ".join(psutil.Process(process.pid).cmdline()) if process.pid else ""
        if any(secret and secret in argv for secret in (key, token)) or "--service-token" in argv:
            return failed(f"the arguments of {process.id} contain a secret")
    if context.local.api_key_file:
        path = Path(context.local.api_key_file)
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            return failed(f"{path} can be read by others (mode {mode:o}): chmod 600")
    return passed("no secret in arguments; only its owner can read the key file, if there is one")


def services_are_closed(context: Context) -> Result:
    """Check that nodes refuse calls without the service token."""
    nodes = (
        [p for p in context.local.processes if p.role in ("prefill", "decode") and p.address] if context.local else []
    )
    if not nodes:
        return unknown("call a node without the token: it must answer UNAUTHENTICATED")
    for node in nodes:
        code = asyncio.run(_attach(str(node.address)))
        if code is not grpc.StatusCode.UNAUTHENTICATED:
            return failed(f"{node.id} answers {code.name if code else 'OK'} to a call without the service token")
    return passed(f"{len(nodes)} nodes answer UNAUTHENTICATED without the service token")


def traffic_is_encrypted(context: Context) -> Result:
    """Check that the endpoint uses TLS, or is on loopback."""
    target = context.client.target
    if target.tls:
        return passed("HTTPS, with a trusted certificate")
    return when(
        target.host.startswith(_LOOPBACK),
        "plain HTTP, but on loopback only",
        f"{target.url} is plain HTTP and not on loopback: put a TLS proxy in front",
    )


def prompts_are_not_logged(context: Context) -> Result:
    """Send a prompt with a unique word, and check that no log and no metric contains it."""
    word = f"canary{secrets.token_hex(_KEY_BYTES)}"
    reply = context.client.complete(context.model, f"Say {word}", 4)
    if reply.status != 200:
        return failed(f"the request with the test word answers {reply.status}")
    if context.logs is None:
        return unknown(f"search the logs of all services for {word}: it must not appear")
    for path in sorted(context.logs.glob("*.log")):
        if word in path.read_text(errors="replace"):
            return failed(f"{path.name} contains a prompt: --log-prompts is on")
    return when(
        word.encode() not in context.client.ask("GET", "/metrics").body,
        "a prompt appears in no log and no metric",
        "a prompt appears in the metrics",
    )


def rates_are_limited(context: Context) -> Result:
    """Check that answers report the limits of the key."""
    headers = context.client.complete(context.model, "a", 1).headers
    limits = {name: headers[name] for name in headers if name.startswith("x-ratelimit-limit-")}
    listed = ", ".join(f"{value} {name.removeprefix('x-ratelimit-limit-')}" for name, value in limits.items())
    return when(
        bool(limits),
        f"this key may use {listed} per minute",
        "no x-ratelimit headers: this key has no limits (docs/routing.md)",
    )


async def _attach(address: str) -> grpc.StatusCode | None:
    """Open a stream without the token; return the status code with which it ends."""
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
