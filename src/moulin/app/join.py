"""Scripts that make a server a node of a Ray pool, or this machine its head: one command each.

A script holds the cluster's token and the versions with digests of all it installs, so it is readable
by its owner alone and reaches a server on standard input; no command line ever holds the token.
"""

import secrets
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import moulin
from moulin.domain.errors import InvalidSpec, LocalError

LOCK: Final = Path(moulin.__file__).parent / "engines" / "ray" / "ray.txt"
GCS_PORT: Final = 6379
TOKEN_FILE: Final = "~/.ray/auth_token"  # noqa: S105 - a path
ADDRESS: Final = "http://127.0.0.1:8265"
PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
START_S: Final = 300.0
_SCRIPT: Final = """\
#!/bin/sh
# Makes this server part of the pool {pool}. It holds a secret: delete it when it has run.
set -eu
umask 077
place="${{MOULIN_RAY_HOME:-$HOME/.moulin-ray}}"
python="${{PYTHON:-python3}}"
mkdir -p "$place"
cat > "$place/token" <<'END'
{token}
END
cat > "$place/wanted.txt" <<'END'
{lock}
END
if ! cmp -s "$place/wanted.txt" "$place/lock.txt"; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {{
        echo "error: Moulin's tasks need Python 3.11 or later; set PYTHON" >&2
        exit 1
    }}
    "$python" -m venv "$place"
    "$place/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \\
        --require-hashes --no-deps --only-binary :all: -r "$place/wanted.txt"
    cp "$place/wanted.txt" "$place/lock.txt"
fi
RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$place/token" RAY_USAGE_STATS_ENABLED=0
PATH="$place/bin:$PATH"
export RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH RAY_USAGE_STATS_ENABLED PATH
name="${{MOULIN_NODE:-$(hostname -s)}}"
# Options of `ray start` for this server, such as --num-gpus=8, may be given in MOULIN_RAY_OPTIONS.
exec ray start {options} --labels="moulin-node=$name" ${{MOULIN_RAY_OPTIONS:-}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayPlace:
    """Where a pool's head is; `gcs_port` is what servers join at."""

    pool: str
    scheme: str
    host: str
    dashboard_port: int
    gcs_port: int
    token_file: Path

    @property
    def address(self) -> str:
        """The address of the head's dashboard."""
        return self.at(self.dashboard_port)

    def at(self, port: int) -> str:
        """Return the address of another port of the head."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{port}"

    @property
    def is_on_loopback(self) -> bool:
        """Whether only this machine reaches the head."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def ray_place(pool: str, settings: Mapping[str, str]) -> RayPlace:
    """Read where a pool's head is from its settings.

    Raises `InvalidSpec` for an address that is none.
    """
    address = urlsplit(settings.get("address", ADDRESS))
    gcs_port = settings.get("gcs_port", str(GCS_PORT))
    if address.scheme not in PORTS or not address.hostname or not gcs_port.isdigit():
        raise InvalidSpec(
            f"find the head of pool {pool!r}: `address` is {address.geturl()!r}",
            hint="`address` is http://HOST:PORT, the head's dashboard; `gcs_port` a number",
        )
    return RayPlace(
        pool=pool,
        scheme=address.scheme,
        host=address.hostname,
        dashboard_port=address.port or PORTS[address.scheme],
        gcs_port=int(gcs_port),
        token_file=Path(settings.get("token_file", TOKEN_FILE)).expanduser(),
    )


def write_join(place: RayPlace, directory: Path) -> Path:
    """Write the script that makes a server a node; return its path.

    Raises `InvalidSpec` when other servers cannot reach the head's address, `LocalError` when
    there is no token yet.
    """
    if place.is_on_loopback:
        raise InvalidSpec(
            f"join servers to pool {place.pool!r}: its head is at {place.host}, which only this"
            " machine reaches",
            hint="write the head's address in the pool's setting `address`, and start the head there",
        )
    options = f"--address={place.host}:{place.gcs_port}"
    return _write(directory / "join.sh", place, _read_token(place), options)


def write_head(place: RayPlace, directory: Path) -> Path:
    """Write the script that makes this machine the head, with a new token if there is none.

    The head takes tasks like any other node. Raises `LocalError` when a file cannot be written.
    """
    if not place.token_file.exists():
        place.token_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.token_file.touch(0o600)
        place.token_file.write_text(secrets.token_hex(32), encoding="ascii")
    options = (
        f"--head --port={place.gcs_port} --node-ip-address={place.host}"
        f" --dashboard-host={place.host} --dashboard-port={place.dashboard_port}"
    )
    return _write(directory / "head.sh", place, _read_token(place), options)


class HeadStarter:
    """Starts the head of a pool on this machine, in the background and not too often."""

    def __init__(self, place: RayPlace, directory: Path) -> None:
        self._place = place
        self._directory = directory
        self._started: subprocess.Popen[bytes] | None = None
        self._next_at = 0.0

    def __call__(self) -> str:
        """Start the head unless that is under way; return in words what was done."""
        if self._started is not None and self._started.poll() is None:
            return "its head is being started"
        if time.monotonic() < self._next_at:
            return f"its head does not start; see {self._log}"
        script = write_head(self._place, self._directory)
        self._next_at = time.monotonic() + START_S
        with self._log.open("ab") as log:
            self._started = subprocess.Popen(
                ["sh", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return "its head is being started"

    @property
    def _log(self) -> Path:
        return self._directory / "head.log"


def _read_token(place: RayPlace) -> str:
    try:
        return place.token_file.read_text(encoding="ascii").strip()
    except OSError as cause:
        raise LocalError(
            f"read the token of pool {place.pool!r} from {place.token_file}: {cause.strerror}",
            hint="start the head first, or copy its token there",
        ) from cause


def _write(path: Path, place: RayPlace, token: str, options: str) -> Path:
    lock = LOCK.read_text(encoding="ascii").rstrip("\n")
    text = _SCRIPT.format(pool=place.pool, token=token, lock=lock, options=options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_text(text, encoding="ascii")
    except OSError as cause:
        raise LocalError(f"write {path}: {cause.strerror}") from cause
    return path
