"""The certificates of both sides, as the controller makes them: which to make anew and when. Pure, but for random keys.

An authority signs for a day at the earliest after it was made, so that everybody trusts it before anybody shows what it
signed; an old one is trusted until it expires. So no exchange of certificates loses a call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from driver.rpc.tls import Certificates

AUTHORITY_LIFE: Final = timedelta(days=730)
AUTHORITY_RENEWAL: Final = timedelta(days=180)
"""What is left of an authority's life when the next one is made."""
SETTLING: Final = timedelta(days=1)
LIFE: Final = timedelta(days=30)
RENEWAL: Final = timedelta(days=10)
_EARLY: Final = timedelta(hours=1)
"""Certificates begin so much before they are made: clocks differ."""
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
_PEM: Final = re.compile(rb"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----\n?", re.DOTALL)
_Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority of our own."""

    certificate: x509.Certificate
    key: _Key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: _Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(name: str, issuer: x509.Name | None, key: _Key, now: datetime, life: timedelta) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def make_authority(now: datetime) -> Authority:
    """A new one."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(f"stillframe {now:%Y-%m-%d %H:%M:%S.%f}", None, key, now, AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(by: Authority, name: str, usage: x509.ObjectIdentifier, now: datetime) -> tuple[bytes, bytes]:
    """A certificate for the DNS name `name` and its key, in PEM. `usage` is SERVER or CLIENT, and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(name, by.certificate.subject, key, now, LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.certificate.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    return _pem(builder.sign(by.key, hashes.SHA256())), _key_pem(key)


def load(certificates: bytes, keys: bytes) -> list[Authority]:
    """Authorities from PEM: as many keys as certificates, in the same order. None at all if they do not fit."""
    try:
        shown = x509.load_pem_x509_certificates(certificates)
        held: list[Any] = [serialization.load_pem_private_key(text, None) for text in _PEM.findall(keys)]
    except ValueError:
        return []
    if len(shown) != len(held) or any(c.public_key() != k.public_key() for c, k in zip(shown, held, strict=True)):
        return []
    return [Authority(certificate, key) for certificate, key in zip(shown, held, strict=True)]


def dump(authorities: Sequence[Authority]) -> tuple[bytes, bytes]:
    """The certificates and the keys, in PEM."""
    return b"".join(_pem(item.certificate) for item in authorities), b"".join(_key_pem(item.key) for item in authorities)


def renewed(authorities: Sequence[Authority], now: datetime) -> list[Authority]:
    """Those that have not expired, oldest first, with a new one if the newest has not long to go."""
    alive = [item for item in authorities if item.certificate.not_valid_after_utc > now]
    if not alive or alive[-1].certificate.not_valid_after_utc - now < AUTHORITY_RENEWAL:
        alive.append(make_authority(now))
    return alive


def signing(authorities: Sequence[Authority], now: datetime) -> Authority:
    """The newest that everybody trusts by now, or the oldest."""
    settled = [item for item in authorities if item.certificate.not_valid_before_utc + _EARLY + SETTLING <= now]
    return settled[-1] if settled else authorities[0]


def is_good(held: Certificates, by: Authority, name: str, now: datetime) -> bool:
    """Whether the certificate need not be made anew: `by` signed it, for that name, and it lasts for a while."""
    if not held.is_whole():
        return False
    shown = x509.load_pem_x509_certificates(held.certificate)[0]
    try:
        shown.verify_directly_issued_by(by.certificate)
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return names.get_values_for_type(x509.DNSName) == [name] and shown.not_valid_after_utc - now > RENEWAL
