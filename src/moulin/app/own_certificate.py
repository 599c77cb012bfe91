"""A certificate for this machine, signed by a CA of this factory's own: what `--tls self` serves with.

Run by the supervisor as `python -m moulin.app.own_certificate --data DIR --name …`, so that the
supervisor stays small. The CA is made once and kept; the certificate is made anew when it lacks a name
or comes near its end. Keys are readable for this user alone. It decides nothing about who trusts the
CA: clients are handed `ca.pem`, and nothing else here.

Reference: RFC 5280; CA/Browser Forum, Baseline Requirements 7.1 (extensions of both certificates).
"""

import argparse
import datetime as dt
import socket
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from moulin.app.certificates import names_of, read_certificate
from moulin.app.datadir import OWN_CA, OWN_CERTIFICATE, OWN_KEY, make_private, write_private
from moulin.domain.addresses import is_every_address
from moulin.domain.errors import InvalidRequest, LocalError, MoulinError

CA_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 90
RENEWED_DAYS: Final = 30
"""A certificate with less than this left is made anew."""
_CA_KEY: Final = "tls/ca.key"
_EARLIER: Final = dt.timedelta(hours=1)
"""Clocks of clients may be behind."""
_PEM: Final = serialization.Encoding.PEM
_Key = ec.EllipticCurvePrivateKey


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing; return 1 after saying why when that is not possible."""
    parser = argparse.ArgumentParser(prog="moulin.app.own_certificate", description=__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--listen", action="append", default=[], help="address that is listened on")
    parser.add_argument("--name", action="append", default=[], help="name or address of clients")
    given = parser.parse_args(arguments)
    try:
        ensure(given.data, (*machine_names(given.listen), *given.name), dt.datetime.now(dt.UTC))
    except MoulinError as error:
        hint = f"\n\nhint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error.message}{hint}\n")
        return 1
    return 0


def machine_names(listen: Sequence[str]) -> tuple[str, ...]:
    """Return what clients may call this machine: loopback, its names, the addresses it listens on."""
    host = socket.gethostname()
    found = ["localhost", "127.0.0.1", "::1", host, socket.getfqdn()]
    found += [address for address in listen if not is_every_address(address)]
    if any(is_every_address(address) for address in listen):
        found += _own_addresses(host)
    return tuple(name for name in dict.fromkeys(found) if name)


def ensure(data: Path, names: Sequence[str], now: dt.datetime) -> bool:
    """Have a CA and a certificate for these names in a data directory; return whether one was made.

    Raises `InvalidRequest` for a name that none can be, `LocalError` and `DiskFull` for the disk, and
    for files that are damaged.
    """
    make_private(data / OWN_CA)
    wanted = [_general_name(name) for name in names]
    ca, ca_key = _authority(data, now)
    if _serves(data, wanted, ca, now):
        return False
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(wanted, key, (ca, ca_key), now)
    # The key first: who finds a new certificate finds its key, and a pair that does not fit is
    # refused and read again by those that serve.
    write_private(data / OWN_KEY, _private_bytes(key))
    write_private(data / OWN_CERTIFICATE, certificate.public_bytes(_PEM) + ca.public_bytes(_PEM))
    return True


def _authority(data: Path, now: dt.datetime) -> tuple[x509.Certificate, _Key]:
    """Return the factory's CA, made the first time; one that has ended is made anew."""
    if (data / OWN_CA).exists() and (data / _CA_KEY).exists():
        known = read_certificate(data / OWN_CA)
        key = _read_key(data / _CA_KEY)
        if known.not_valid_after_utc > now + dt.timedelta(days=CERTIFICATE_DAYS):
            return known, key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _ca_name())])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    made = (
        _begun(name, name, key, now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(data / _CA_KEY, _private_bytes(key))
    write_private(data / OWN_CA, made.public_bytes(_PEM))
    return made, key


def _certificate(
    names: Sequence[x509.GeneralName],
    key: _Key,
    authority: tuple[x509.Certificate, _Key],
    now: dt.datetime,
) -> x509.Certificate:
    ca, ca_key = authority
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "moulin")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _begun(subject, ca.subject, key, now, CERTIFICATE_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _begun(
    subject: x509.Name, issuer: x509.Name, key: _Key, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _serves(
    data: Path, wanted: Sequence[x509.GeneralName], ca: x509.Certificate, now: dt.datetime
) -> bool:
    """Say whether the certificate that is there does: its names, its time, its issuer, its key."""
    try:
        known, key = read_certificate(data / OWN_CERTIFICATE), _read_key(data / OWN_KEY)
        known.verify_directly_issued_by(ca)
    except (MoulinError, InvalidSignature, ValueError, TypeError):
        return False
    is_paired = key.public_key() == known.public_key()
    left = known.not_valid_after_utc - now
    has_names = {str(each.value) for each in wanted} <= set(names_of(known))
    return is_paired and has_names and left > dt.timedelta(days=RENEWED_DAYS)


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name.encode("idna").decode("ascii"))
    except (ValueError, UnicodeError) as cause:
        raise InvalidRequest(
            f"make a certificate for {name!r}: that is no name of a machine",
            hint="names and addresses as clients write them, such as mill.example or 10.0.0.5",
        ) from cause


def _own_addresses(host: str) -> list[str]:
    """Return the addresses that this machine's name leads to, and the one it sends from."""
    try:
        found = [str(each[4][0]) for each in socket.getaddrinfo(host, None)]
    except OSError:
        found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737; nothing is sent, a route is looked up
            found.append(str(probe.getsockname()[0]))
        except OSError:
            return found
    return found


def _ca_name() -> str:
    """Return a name that tells this CA from those of other factories in a list of trusted ones."""
    return f"Moulin on {socket.gethostname()}"[:64]


def _read_key(path: Path) -> _Key:
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as cause:
        raise LocalError(
            f"read the key {path}: it is missing or damaged", hint="restore it from a backup"
        ) from cause
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise LocalError(f"read the key {path}: it is not the one Moulin made")
    return found


def _private_bytes(key: _Key) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(_PEM, form, serialization.NoEncryption())


if __name__ == "__main__":
    sys.exit(main())
