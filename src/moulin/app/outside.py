"""Whether what is to be served to other machines may be: judged before anything is started.

It decides from settings alone, and looks at certificates where `moulin doctor` asks.
"""

import datetime as dt
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from moulin.app.certificates import Verdict, judge
from moulin.app.datadir import OWN_CERTIFICATE, OWN_KEY, SETTINGS, read_json
from moulin.app.settings import Settings
from moulin.domain.addresses import addresses_of, check_reach, is_every_address, reaches_others
from moulin.domain.errors import InvalidRequest

OWN_TLS: Final = "self"


def check_listening(settings: Settings) -> None:
    """Raise `InvalidRequest` for addresses and TLS that do not go together."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise InvalidRequest(
            "serve with TLS: a certificate and its key belong together",
            hint="give both --tls-cert and --tls-key",
        )
    if settings.tls not in {"", OWN_TLS}:
        raise InvalidRequest(
            f"serve with TLS: there is no way {settings.tls!r} to it",
            hint="--tls self makes a certificate; --tls-cert and --tls-key take yours",
        )
    if settings.tls and settings.tls_cert:
        raise InvalidRequest(
            "serve with TLS: both an own certificate and a given one are asked for",
            hint="give either --tls self, or --tls-cert and --tls-key",
        )
    is_tls = bool(settings.tls or settings.tls_cert)
    for listen in (settings.listen, settings.control_listen or settings.listen):
        addresses_of(listen)
        check_reach(listen, is_tls=is_tls, is_plain_allowed=settings.insecure_plain_http)


def used_settings(settings: Settings) -> Settings:
    """Return the settings as the last `up` on the data directory had them, where it served others.

    Flags of that `up` are in no file that is read here otherwise.
    """
    known = read_json(Path(settings.data) / SETTINGS)
    names = ("listen", "control_listen", "tls_cert", "tls_key")
    given: dict[str, Any] = {name: str(known[name]) for name in names if known.get(name)}
    if settings.tls_cert or settings.tls or not given:
        return settings
    is_plain = settings.insecure_plain_http or known.get("insecure_plain_http") is True
    return replace(settings, insecure_plain_http=is_plain, **given)


def judge_outside(settings: Settings, now: dt.datetime) -> Verdict | None:
    """Return what is to be said of how other machines are served; None where they are not.

    Never raises: what does not go together is the verdict.
    """
    try:
        check_listening(settings)
        hosts = _outside_hosts(settings)
    except InvalidRequest as problem:
        return Verdict(is_usable=False, message=problem.message, hint=problem.hint)
    pair = _pair_of(settings)
    if pair is not None and (settings.tls != OWN_TLS or pair[0].exists()):
        return judge(pair, hosts, now)
    if hosts and pair is None:
        words = f"{settings.listen} is served without TLS"
        return Verdict(
            is_usable=True, message=words, hint="keys and prompts can be read on the way"
        )
    return None


def _pair_of(settings: Settings) -> tuple[Path, Path] | None:
    """Return the files that are served with, None for plain HTTP."""
    if settings.tls == OWN_TLS:
        return Path(settings.data) / OWN_CERTIFICATE, Path(settings.data) / OWN_KEY
    if not settings.tls_cert:
        return None
    return Path(settings.tls_cert), Path(settings.tls_key)


def _outside_hosts(settings: Settings) -> tuple[str, ...]:
    """Return what clients on other machines may call this one by, as far as settings say."""
    found = []
    for listen in (settings.listen, settings.control_listen or settings.listen):
        if is_every_address(listen):
            found += [socket.gethostname(), socket.getfqdn()]
        elif reaches_others(listen):
            found.append(listen)
    named = [name.strip() for name in settings.tls_names.split(",") if name.strip()]
    return tuple(dict.fromkeys((*found, *named)))
