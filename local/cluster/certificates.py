"""The certificates and keys of a local control plane: one authority, what it signs, and the service accounts' key."""

from __future__ import annotations

import datetime as dt
import ipaddress
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_VALIDITY = dt.timedelta(days=3650)
_CLOCK_SKEW = dt.timedelta(days=1)
_AUTHORITY = "local-control-plane"
_SERVER_NAMES = ("localhost", "kubernetes", "kubernetes.default.svc")

FRONT_PROXY = "front-proxy"
"""Certificate of the API server as a client of the servers behind it."""
CLIENTS = {
    "admin": ("kubernetes-admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", None),
    "kube-scheduler": ("system:kube-scheduler", None),
}
"""Client certificates: file name -> (user, group)."""
NODE_CLIENTS = ("kubelet", "kube-proxy")


Address = ipaddress.IPv4Address
LOOPBACK = Address("127.0.0.1")


def create(folder: Path, addresses: Sequence[Address]) -> None:
    """Write `ca`, `server`, FRONT_PROXY and the CLIENTS as <name>.crt and <name>.key, and `service-accounts.key`; all or nothing.

    `addresses` are those of the API server.
    """
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, mode=0o700)
    authority = _Authority.create(partial)
    authority.issue(partial, "server", "kube-apiserver", addresses=addresses)
    authority.issue(partial, FRONT_PROXY, FRONT_PROXY)
    for name, (user, group) in CLIENTS.items():
        authority.issue(partial, name, user, group)
    _write_key(partial / "service-accounts.key", ec.generate_private_key(ec.SECP256R1()))
    partial.rename(folder)


def create_node(folder: Path, name: str, addresses: Sequence[Address]) -> None:
    """Write, beside the rest, what a node's programs need: `kubelet-server`, and the NODE_CLIENTS."""
    authority = _Authority.load(folder)
    for file_name, user, group, own_addresses in (
        ("kubelet", f"system:node:{name}", "system:nodes", ()),
        ("kube-proxy", "system:kube-proxy", None, ()),
        ("kubelet-server", f"system:node:{name}", "system:nodes", addresses),
    ):
        if not (folder / f"{file_name}.key").exists():
            authority.issue(folder, file_name, user, group, addresses=own_addresses, names=(name,))


@dataclass(frozen=True)
class _Authority:
    name: x509.Name
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, folder: Path) -> _Authority:
        authority = cls(_name(_AUTHORITY), ec.generate_private_key(ec.SECP256R1()))
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        certificate = authority._builder(authority.name, authority.key).add_extension(constraints, critical=True)
        authority._write(folder, "ca", certificate, authority.key)
        return authority

    @classmethod
    def load(cls, folder: Path) -> _Authority:
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(_name(_AUTHORITY), key)

    def issue(
        self,
        folder: Path,
        file_name: str,
        user: str,
        group: str | None = None,
        *,
        addresses: Sequence[Address] = (),
        names: Sequence[str] = _SERVER_NAMES,
    ) -> None:
        """One certificate; a server's, valid for these names and addresses, where it has addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._builder(_name(user, group), key)
        if addresses:
            alternatives = [*map(x509.DNSName, names), *map(x509.IPAddress, addresses)]
            certificate = certificate.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
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
