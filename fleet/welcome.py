"""What `baton up` says when the fleet is ready."""

import os
import shlex

from fleet.plan import Plan


def welcome(plan: Plan) -> str:
    """Where the fleet is, a request to paste, and whom to talk to."""
    name, key = plan.model.names[0], plan.config.api_key_file
    secret = f'-H "Authorization: Bearer $(head -n 1 {shlex.quote(os.path.abspath(key))})" ' if key else ""
    question = "What does itertools.chain do?"
    if plan.model.has_chat_template:
        path, body = "chat/completions", f'"messages": [{{"role": "user", "content": "{question}"}}]'
    else:
        path, body = "completions", f'"prompt": "{question}", "max_tokens": 32'
    curl = f"curl {plan.endpoint}/v1/{path} -H 'Content-Type: application/json' {secret}-d '{{\"model\": \"{name}\", {body}}}'"
    return f"\nReady: {plan.endpoint}/v1 serves {', '.join(plan.model.names)}\n\n  {curl}\n  baton chat\n"
