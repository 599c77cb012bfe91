"""What certificates say: until when they hold, and for which names.

It decides what an operator has to be told of them, and changes nothing.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from moulin.domain.errors import InvalidRequest

SOON_DAYS: Final = 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be said of a certificate; `is_usable` when there are clients that accept it now."""

    is_usable: bool
    message: str
    hint: str = ""


def read_certificate(path: Path) -> x509.Certificate:
    """Return the first certificate of a PEM file; raises `InvalidRequest` when there is none."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except OSError as cause:
        words = str(cause.strerror)
    except ValueError:
        words = "it holds no certificate"
    raise InvalidRequest(
        f"read the certificate {path}: {words}", hint="give a PEM file with the certificate first"
    )


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the names and addresses that a certificate is for; those of its subject do not count."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    names = found.get_values_for_type(x509.DNSName)
    return (*names, *(str(each) for each in found.get_values_for_type(x509.IPAddress)))


def is_named(names: Sequence[str], host: str) -> bool:
    """Say whether a certificate of these names is one for a host, wildcards of one label included.

    >>> is_named(("*.example.org", "10.0.0.5"), "mill.example.org")
    True
    """
    try:
        return str(ip_address(host)) in names
    except ValueError:
        first, _, rest = host.lower().partition(".")
        return any(name.lower() in {host.lower(), f"*.{rest}"} for name in names if first)


def judge(files: tuple[Path, Path], hosts: Sequence[str], now: dt.datetime) -> Verdict:
    """Say whether clients that call one of `hosts` can accept a certificate, and until when.

    Never raises: what cannot be read is the verdict.
    """
    try:
        certificate = read_certificate(files[0])
        key = load_pem_private_key(files[1].read_bytes(), password=None)
    except InvalidRequest as problem:
        return Verdict(is_usable=False, message=problem.message, hint=problem.hint)
    except (OSError, ValueError, TypeError):
        words = f"the key {files[1]} cannot be read"
        return Verdict(is_usable=False, message=words, hint="give a PEM file, not encrypted")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        words = f"{files[1]} is not the key of {files[0]}"
        return Verdict(is_usable=False, message=words, hint="give the pair")
    return _judge_content(certificate, hosts, now)


def _judge_content(
    certificate: x509.Certificate, hosts: Sequence[str], now: dt.datetime
) -> Verdict:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    names = names_of(certificate)
    days = (end - now).days
    words = f"for {', '.join(names) or 'no name'}, until {end:%Y-%m-%d} ({days} days)"
    if now < begin:
        return Verdict(
            is_usable=False, message=f"{words}, from {begin:%Y-%m-%d %H:%M} UTC on", hint="wait"
        )
    if now >= end:
        renew = "renew it; a renewed pair is taken up without a restart"
        return Verdict(is_usable=False, message=f"{words}: it has expired", hint=renew)
    if not names:
        return Verdict(is_usable=False, message=words, hint="clients refuse it whatever they call")
    if hosts and not any(is_named(names, host) for host in hosts):
        hint = f"clients that call this machine {' or '.join(hosts)} refuse it"
        return Verdict(is_usable=True, message=words, hint=hint)
    if days < SOON_DAYS:
        return Verdict(is_usable=True, message=words, hint="renew it soon")
    return Verdict(is_usable=True, message=words)
