"""`baton chat`: chats with the running fleet, or with any OpenAI-compatible endpoint.

In a terminal it runs until you leave it. From a pipe it answers the input once, and prints nothing else.
"""

import argparse
import contextlib
import sys
from typing import Any

from rich.console import Console

from baton.errors import BatonError
from baton.process.bounds import real, whole
from fleet import key_file, state
from fleet.chat_client import ChatClient, Reply
from fleet.home import Home

_HELP = "/clear starts a new conversation, /quit leaves, Ctrl-C stops an answer."

# Control characters in a model's output are removed, so that no escape sequence reaches the terminal.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for endpoint, model and sampling."""
    parser.add_argument("--url", default="", help="endpoint (default: that of the running fleet)")
    parser.add_argument("--model", default="", help="model name (default: the first that the endpoint lists)")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--temperature", type=real(), help="sampling temperature; 0 is greedy")
    parser.add_argument("--max-tokens", type=whole(), help="maximum length of an answer")
    key_file.add_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the chat; return the exit code."""
    client, options = _connect(args)
    if sys.stdin.isatty():
        return _converse(client, options, Console())
    question = sys.stdin.buffer.read().decode(errors="replace")
    request = {**options, "messages": [*options["messages"], {"role": "user", "content": question.strip()}]}
    for piece in client.stream(request, Reply()):
        print(piece.translate(_CONTROLS) if sys.stdout.isatty() else piece, end="", flush=True)
    print()
    return 0


def _connect(args: argparse.Namespace) -> tuple[ChatClient, dict[str, Any]]:
    file = key_file.asked_for(args)
    url, model = args.url.rstrip("/").removesuffix("/v1"), args.model
    if not url:
        fleet = state.serving(Home.from_env())
        url, file = fleet.endpoint, file or fleet.api_key_file
        model = model or fleet.served_model_name[0]
    client = ChatClient(url, key_file.key_of(file))
    options: dict[str, Any] = {"model": model or client.first_model(), "messages": []}
    if args.system:
        options["messages"].append({"role": "system", "content": args.system})
    for name in ("temperature", "max_tokens"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return client, options


def _converse(client: ChatClient, options: dict[str, Any], console: Console) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - line editing and history for input()
    first = options["messages"]
    messages = list(first)
    console.print(f"[bold]{options['model']}[/] at {client.url}. [dim]{_HELP}[/]", highlight=False)
    while (text := _ask(console)) is not None:
        if text == "/clear":
            messages = list(first)
        elif text:
            messages.append({"role": "user", "content": text})
            _answer(client, {**options, "messages": messages}, messages, console)
    return 0


def _ask(console: Console) -> str | None:
    """Read a line from the terminal; None means to leave."""
    try:
        text = console.input("[bold green]> [/]").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None
    return None if text in ("/quit", "/exit") else text


def _answer(client: ChatClient, request: dict[str, Any], messages: list[dict[str, str]], console: Console) -> None:
    """Stream one answer and add it to `messages`. If it fails, remove its question."""
    reply = Reply()
    pieces = client.stream(request, reply)
    try:
        for piece in pieces:
            console.print(piece.translate(_CONTROLS), end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        pieces.close()
        console.print(" …", end="", style="dim")
    except BatonError as error:
        console.print(f"\n{error.message}", style="red", markup=False)
        messages.pop()
        return
    messages.append({"role": "assistant", "content": reply.text})
    console.print(f"\n{_figures(reply)}", style="dim", highlight=False)


def _figures(reply: Reply) -> str:
    tokens = reply.usage.get("completion_tokens", 0)
    spent = reply.total_s - reply.ttft_s
    rate = f", {(tokens - 1) / spent:.0f} tokens/s" if tokens > 1 and spent > 0 else ""
    return f"first token after {reply.ttft_s * 1000:.0f} ms{rate}"
