"""Mutual TLS between services: only holders of a certificate signed by the fleet's authority can take part.

A service uses one certificate, both as a server and as a client. It is read once, at the start, so a rotation needs a
rolling restart. KV blocks do not travel over gRPC, so this does not encrypt them (docs/security.md).
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from baton.errors import ConfigError
from baton.process.settings import ServiceFlags


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A certificate chain, its key, and the certificate of the fleet's authority; all PEM."""

    certificate: bytes
    key: bytes
    authority: bytes
    name: str = ""  # the name that all certificates carry; empty: each carries the address of its service


def load(flags: ServiceFlags) -> Identity | None:
    """Load what the `--tls-…` flags name, or return None if none is set.

    Raises ConfigError if one is missing, a file cannot be read, or key and certificate do not match.
    """
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
    """Raise ConfigError for a bad key or certificate: gRPC would accept it silently, and refuse every connection."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(flags.tls_cert, flags.tls_key, password=lambda: b"")
    except (ssl.SSLError, ValueError, OSError):
        raise ConfigError(
            f"--tls-key: {flags.tls_key} is not a PEM key that matches the certificate {flags.tls_cert}"
        ) from None
    try:
        context.load_verify_locations(flags.tls_ca)
    except (ssl.SSLError, OSError):
        raise ConfigError(f"--tls-ca: {flags.tls_ca} holds no PEM certificate") from None
