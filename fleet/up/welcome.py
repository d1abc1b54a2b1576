"""The message that `baton up` prints when the fleet is ready."""

import json
import os
import shlex

from fleet.key_file import begins_plain
from fleet.up.services import Services


def welcome(services: Services) -> str:
    """Return the endpoint, a curl command to paste, and the address of the dashboard."""
    names = ", ".join(services.model.names)
    dashboard = f"  {services.dashboard}\n" if services.dashboard else ""
    return f"\nReady: {services.endpoint}/v1 serves {names}\n\n  {_curl(services)}\n  baton chat\n{dashboard}"


def _curl(services: Services) -> str:
    """Return a curl command that works in a shell on this host."""
    name, question = services.model.names[0], "What does itertools.chain do?"
    if services.model.has_chat_template:
        path = "chat/completions"
        body: dict[str, object] = {"model": name, "messages": [{"role": "user", "content": question}]}
    else:
        path, body = "completions", {"model": name, "prompt": question, "max_tokens": 32}
    data = shlex.quote(json.dumps(body))
    return f"curl {services.endpoint}/v1/{path} -H 'Content-Type: application/json' {_authorization(services)}-d {data}"


def _authorization(services: Services) -> str:
    """Return the header option; it refers to the file or variable with the key, instead of containing it."""
    file = services.config.api_key_file
    if file and begins_plain(file):
        return f'-H "Authorization: Bearer $(grep -m 1 "^[^#]" {shlex.quote(os.path.abspath(file))})" '
    return '-H "Authorization: Bearer ${BATON_API_KEY%%,*}" ' if file or os.environ.get("BATON_API_KEY") else ""
