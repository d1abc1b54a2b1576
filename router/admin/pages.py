"""The HTML pages of the admin port: self-contained, built once, with a policy that allows only their own scripts."""

import base64
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import NamedTuple

from router.http.error_format import Header

_STYLES = ("style.css",)
_SCRIPTS = {"dashboard": ("picture.js", "charts.js", "dashboard.js"), "login": ("login.js",)}


class Page(NamedTuple):
    """A page's body, and its headers."""

    body: bytes
    headers: list[Header]


@cache
def page(name: str) -> Page:
    """Return the page `dashboard` or `login`."""
    style = "\n".join(map(_read, _STYLES))
    script = "\n".join(map(_read, _SCRIPTS[name]))
    body = _read(f"{name}.html").replace("/*style*/", style).replace("/*script*/", script)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(body.encode(), [(b"content-security-policy", policy.encode()), *SAFE_HEADERS])


SAFE_HEADERS: list[Header] = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def _read(name: str) -> str:
    return resources.files("router.admin").joinpath("dashboard", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}"
