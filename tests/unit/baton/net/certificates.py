"""Certificates for tests, made by openssl."""

import subprocess
from pathlib import Path


def run(*args: str | Path) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=20)


def make_authority(folder: Path) -> Path:
    """Make `ca.pem` and `ca.key` in a new folder."""
    folder.mkdir()
    subject = ("-subj", "/CN=an authority", "-days", "2", "-nodes")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 wants it
    run("req", "-x509", *curve, *subject, *usage, "-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    return folder


def make_identity(authority: Path, name: str, san: str = "IP:127.0.0.1") -> dict[str, str]:
    """Make a certificate signed by the authority; return the values of the `--tls-…` flags."""
    key, request, certificate = (authority / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    run("req", "-new", *curve, "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    extensions = authority / f"{name}.ext"
    extensions.write_text(f"subjectAltName={san}\nauthorityKeyIdentifier=keyid\n")
    signer = ("-CA", authority / "ca.pem", "-CAkey", authority / "ca.key", "-CAcreateserial")
    run("x509", "-req", "-in", request, *signer, "-days", "2", "-extfile", extensions, "-out", certificate)
    return {"tls_cert": str(certificate), "tls_key": str(key), "tls_ca": str(authority / "ca.pem")}
