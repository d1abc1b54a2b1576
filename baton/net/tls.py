"""Mutual TLS between services: who holds a key of the fleet's authority may speak, and nobody else can listen.

Every service has one certificate, by which it serves and by which it calls. It is read once, at the start: a rotation
is a rolling restart. KV blocks do not travel by gRPC, and are not encrypted by it (docs/security.md).
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from baton.errors import ConfigError
from baton.process.settings import ServiceFlags


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A certificate chain, its key, and the authority that signed everybody's; all PEM."""

    certificate: bytes
    key: bytes
    authority: bytes
    name: str = ""  # that all certificates carry; empty: each carries the address by which its service is reached


def load(flags: ServiceFlags) -> Identity | None:
    """What `--tls-…` name; None where they name nothing, ConfigError where it is incomplete or does not fit."""
    paths = {"--tls-cert": flags.tls_cert, "--tls-key": flags.tls_key, "--tls-ca": flags.tls_ca}
    if not any(paths.values()):
        return None
    if missing := [name for name, path in paths.items() if not path]:
        raise ConfigError(f"TLS between services needs {', '.join(missing)} too")
    certificate, key, authority = (_read(name, path) for name, path in paths.items())
    _check(flags)
    return Identity(certificate=certificate, key=key, authority=authority, name=flags.tls_name)


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from None


def _check(flags: ServiceFlags) -> None:
    """gRPC would say nothing of a key that does not fit, and answer nobody."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(flags.tls_cert, flags.tls_key, password=lambda: b"")
    except (ssl.SSLError, ValueError, OSError):
        raise ConfigError(f"--tls-key: {flags.tls_key} is no PEM key of the certificate {flags.tls_cert}") from None
    try:
        context.load_verify_locations(flags.tls_ca)
    except (ssl.SSLError, OSError):
        raise ConfigError(f"--tls-ca: {flags.tls_ca} holds no PEM certificate") from None
