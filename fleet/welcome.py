"""What `baton up` says when the fleet is ready."""

import json
import os
import shlex
from pathlib import Path

from fleet.plan import Plan


def welcome(plan: Plan) -> str:
    """Where the fleet is, a request to paste, and whom to talk to."""
    names = ", ".join(plan.model.names)
    dashboard = f"  {plan.dashboard}\n" if plan.dashboard else ""
    return f"\nReady: {plan.endpoint}/v1 serves {names}\n\n  {_curl(plan)}\n  baton chat\n{dashboard}"


def _curl(plan: Plan) -> str:
    """A line that works when pasted into a shell on this host."""
    name, question = plan.model.names[0], "What does itertools.chain do?"
    if plan.model.has_chat_template:
        path = "chat/completions"
        body: dict[str, object] = {"model": name, "messages": [{"role": "user", "content": question}]}
    else:
        path, body = "completions", {"model": name, "prompt": question, "max_tokens": 32}
    data = shlex.quote(json.dumps(body))
    return f"curl {plan.endpoint}/v1/{path} -H 'Content-Type: application/json' {_authorization(plan)}-d {data}"


def _authorization(plan: Plan) -> str:
    """The header with the key, which is left where it is."""
    file = plan.config.api_key_file
    if file and _begins_plain(file):
        return f'-H "Authorization: Bearer $(grep -m 1 "^[^#]" {shlex.quote(os.path.abspath(file))})" '
    return '-H "Authorization: Bearer ${BATON_API_KEY%%,*}" ' if file or os.environ.get("BATON_API_KEY") else ""


def _begins_plain(file: str) -> bool:
    """Whether the first line is a key as it stands, rather than JSON or a digest."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return not first.startswith(("{", "sha256:"))
