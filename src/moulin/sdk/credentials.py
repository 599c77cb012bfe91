"""Where the client connects and with which key: arguments, environment, or a credentials file.

It never writes a key anywhere and never shows one.
"""

import json
import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from moulin.domain.errors import InvalidRequest, NotFound
from moulin.domain.trust import trusting

URL_VARIABLE: Final = "MOULIN_URL"
KEY_VARIABLE: Final = "MOULIN_API_KEY"
PROJECT_VARIABLE: Final = "MOULIN_PROJECT"
GATEWAY_VARIABLE: Final = "MOULIN_GATEWAY_URL"
FILE_VARIABLE: Final = "MOULIN_CREDENTIALS"
CA_VARIABLE: Final = "MOULIN_CA"
DEFAULT_URL: Final = "http://127.0.0.1:8700"
DEFAULT_FILES: Final = (".moulin/credentials.json",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A control plane's address with a key; `project` is where things go unless said otherwise.

    `ca` is a PEM file of the certificates to trust for both addresses; empty trusts as the system.
    """

    control_url: str = DEFAULT_URL
    gateway_url: str = ""
    api_key: str = field(default="", repr=False)
    project: str = ""
    ca: str = ""


def read_credentials(path: str | Path) -> Credentials:
    """Read a credentials file: JSON with control_url, gateway_url, api_key and project.

    Raises `NotFound` for no file, `InvalidRequest` for another form or one that others may read.
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(
            f"read credentials: there is no {file}",
            hint=f"start Moulin with `moulin up`, or set {URL_VARIABLE} and {KEY_VARIABLE}",
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"read credentials from {file}: {type(error).__name__}",
            hint="`moulin up` writes the file anew",
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidRequest(
            f"read credentials from {file}: others on this machine may read it",
            hint=f"chmod 600 {file}",
        )
    if not isinstance(data, dict):
        raise InvalidRequest(f"read credentials from {file}: it holds no JSON object")
    words = {name: data.get(name, "") for name in ("gateway_url", "api_key", "project", "ca")}
    url = data.get("control_url", DEFAULT_URL)
    if not all(isinstance(word, str) for word in (url, *words.values())):
        raise InvalidRequest(f"read credentials from {file}: every value must be text")
    if words["ca"]:
        # Beside the file that names it, so that a copied directory stays whole.
        words["ca"] = str(file.parent / words["ca"])
    return Credentials(control_url=url, **words)


def find_credentials(
    *,
    control_url: str = "",
    api_key: str = "",
    project: str = "",
    ca: str | Path = "",
    file: str | Path = "",
    environment: Mapping[str, str] | None = None,
) -> Credentials:
    """Return the credentials to use: arguments before environment before file, field by field.

    The file is the argument's, else `MOULIN_CREDENTIALS`, else `.moulin/credentials.json` here if
    there is one. A key from one place is not combined with the address of another file: a file is
    only read for what it says as a whole when neither an address nor a key is given otherwise.
    Raises `NotFound` and `InvalidRequest` as `read_credentials` does.
    """
    env = os.environ if environment is None else environment
    url = control_url or env.get(URL_VARIABLE, "")
    key = api_key or env.get(KEY_VARIABLE, "")
    named = str(file) or env.get(FILE_VARIABLE, "")
    found = Credentials()
    if named:
        found = read_credentials(named)
    elif not url and not key:
        present = [path for path in DEFAULT_FILES if Path(path).is_file()]
        found = read_credentials(present[0]) if present else found
    return Credentials(
        control_url=(url or found.control_url).rstrip("/"),
        gateway_url=env.get(GATEWAY_VARIABLE, "") or found.gateway_url,
        api_key=key or found.api_key,
        project=project or env.get(PROJECT_VARIABLE, "") or found.project,
        ca=str(ca) or env.get(CA_VARIABLE, "") or found.ca,
    )


def trust_of(credentials: Credentials, url: str) -> ssl.SSLContext | bool:
    """Return what an HTTP client verifies a URL's server with: a context, or True for the system's.

    Raises `InvalidRequest` when the file of `credentials.ca` has no certificates.
    """
    parts = urlsplit(url)
    if not credentials.ca or parts.scheme != "https":
        return True
    try:
        pem = Path(credentials.ca).read_text("ascii", errors="replace")
    except OSError as error:
        raise InvalidRequest(
            f"trust the certificates in {credentials.ca}: {error.strerror}",
            hint=f"correct {CA_VARIABLE}, --ca, or `ca` in the credentials file",
        ) from error
    return trusting(pem, parts.hostname or "", credentials.ca)
