"""How the certificate of a server is judged by those who were handed certificates to trust.

It decides when a name has to fit and when it has not. It reads no file: whoever did hands the text
in. Without certificates of their own, clients judge as their system does.

Reference: RFC 5280 section 6, with a trust anchor that may be any certificate of the path.
"""

import ssl
from typing import Final

from moulin.domain.addresses import is_loopback
from moulin.domain.errors import InvalidRequest

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which Python has no name.
_NO_CHECK_TIME: Final = 0x200000


def trusting(pem: str, host: str, origin: str) -> ssl.SSLContext:
    """Return a client's context that trusts the certificates in `pem`, and no others.

    A certificate in `pem` is trusted itself, also without its issuer's. On loopback it is known by
    its key alone: a certificate for other clients' names serves, and an expired one does not keep
    Moulin's processes from one another.

    Raises `InvalidRequest` naming `origin` for a text without a certificate.
    """
    try:
        context = ssl.create_default_context(cadata=pem)
    except (ssl.SSLError, ValueError) as cause:
        raise InvalidRequest(
            f"trust the certificates in {origin}: there is none that can be read",
            hint="give a PEM file: -----BEGIN CERTIFICATE-----",
        ) from cause
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    if is_loopback(host):
        context.check_hostname = False
        context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
        context.verify_flags |= _NO_CHECK_TIME  # last: Python's `~` forgets flags it does not name
    return context
