"""The certificates and keys of a local control plane: one authority, what it signs, and the service accounts' key."""

from __future__ import annotations

import datetime as dt
import ipaddress
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_VALIDITY = dt.timedelta(days=3650)
_CLOCK_SKEW = dt.timedelta(days=1)
_SERVER_NAMES = ("localhost", "kubernetes", "kubernetes.default.svc")

CLIENTS = {
    "admin": ("kubernetes-admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", None),
    "kube-scheduler": ("system:kube-scheduler", None),
}
"""Client certificates: file name -> (user, group)."""


def create(folder: Path) -> None:
    """Write `ca`, `server` and the CLIENTS as <name>.crt and <name>.key, and `service-accounts.key`; all or nothing."""
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, mode=0o700)
    authority = _Authority.create(partial)
    authority.issue(partial, "server", "kube-apiserver", is_server=True)
    for name, (user, group) in CLIENTS.items():
        authority.issue(partial, name, user, group)
    _write_key(partial / "service-accounts.key", ec.generate_private_key(ec.SECP256R1()))
    partial.rename(folder)


@dataclass(frozen=True)
class _Authority:
    name: x509.Name
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, folder: Path) -> _Authority:
        authority = cls(_name("local-control-plane"), ec.generate_private_key(ec.SECP256R1()))
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        certificate = authority._builder(authority.name, authority.key).add_extension(constraints, critical=True)
        authority._write(folder, "ca", certificate, authority.key)
        return authority

    def issue(self, folder: Path, file_name: str, user: str, group: str | None = None, is_server: bool = False) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._builder(_name(user, group), key)
        if is_server:
            names = [x509.DNSName(name) for name in _SERVER_NAMES]
            loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            certificate = certificate.add_extension(x509.SubjectAlternativeName([*names, loopback]), critical=False)
        self._write(folder, file_name, certificate, key)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _VALIDITY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )

    def _write(
        self, folder: Path, file_name: str, certificate: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey
    ) -> None:
        signed = certificate.sign(self.key, hashes.SHA256())
        (folder / f"{file_name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        _write_key(folder / f"{file_name}.key", key)


def _name(user: str, group: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    if group:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
