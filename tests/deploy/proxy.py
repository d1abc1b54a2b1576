"""The proxy of the compose stack, started here: its own configuration, but for where things lie."""

import re
from pathlib import Path

from tests.deploy.tools import DEPLOY


def configuration(folder: Path, port: int, router: str) -> Path:
    """nginx.conf with `router` in place of those that Docker's DNS would name, and all files in `folder`."""
    content = (DEPLOY / "docker" / "nginx.conf").read_text()
    content = content.replace("router:8000 resolve", router).replace("listen 8080", f"listen 127.0.0.1:{port}")
    content = re.sub(r"^\s*resolver .*$", "", content, flags=re.MULTILINE).replace("/tmp/", f"{folder}/")
    content = re.sub(r"/dev/std\w+", f"{folder}/log", content)
    path = folder / "nginx.conf"
    path.write_text(f"daemon off; user root;\n{content}")
    return path
