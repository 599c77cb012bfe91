"""Every setting of Moulin in one frozen value, built once: defaults < TOML file < environment < flags.

It decides which words are settings and where each value came from; it is passed down as narrow
values, never whole, and never read at import time. `moulin config show` prints it.
"""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from moulin.domain.errors import InvalidRequest

PREFIX: Final = "MOULIN_"
FILE_VARIABLE: Final = "MOULIN_CONFIG"
FILE_NAME: Final = "moulin.toml"
PORT_MAX: Final = 65_535
_KINDS: Final = {int: "a whole number", float: "a number", bool: "true or false"}
_WORDS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _setting(default: Any, help_text: str, *, unit: str = "", maximum: int = 0) -> Any:
    return field(default=default, metadata={"help": help_text, "unit": unit, "maximum": maximum})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `moulin up` and the local commands are told; the table says default, unit and meaning."""

    data: str = _setting(".moulin", "data directory: the log, keys, models and running work")
    control_port: int = _setting(
        8700, "port of the control API; 0 picks a free one", maximum=PORT_MAX
    )
    gateway_port: int = _setting(
        8701, "port of the inference gateway; 0 picks a free one", maximum=PORT_MAX
    )
    models: str = _setting(
        "", "folder of model files, shared by your factories; empty is your cache directory"
    )
    nodes: int = _setting(
        1, "nodes to divide this machine into, each with CPUs of its own", maximum=4096
    )
    country: str = _setting(
        "", "ISO 3166-1 code of the country this machine is in, as you assert it"
    )
    metering_interval_s: float = _setting(
        15.0, "length of a metering interval; receipts close with it", unit="s", maximum=86_400
    )
    database: str = _setting(
        "", "postgresql:// address of the store; empty keeps SQLite in the data directory"
    )
    listen: str = _setting(
        "127.0.0.1",
        "address on which the control API and the gateway listen, beside loopback; 0.0.0.0 is all",
    )
    control_listen: str = _setting(
        "", "address of the control API where it is another; empty is `listen`"
    )
    tls: str = _setting(
        "", "`self` makes a certificate, and a CA of this factory's own that signs it"
    )
    tls_names: str = _setting(
        "", "names and addresses for that certificate besides this machine's, with commas between"
    )
    tls_cert: str = _setting(
        "", "PEM file with the certificate chain to serve with; empty serves plain HTTP"
    )
    tls_key: str = _setting("", "PEM file with the key of that certificate, not encrypted")
    insecure_plain_http: bool = _setting(
        False,  # noqa: FBT003 - the default
        "serve other machines without TLS: everybody on the way can read keys, prompts and answers",
    )
    usage_figures: bool = _setting(
        False,  # noqa: FBT003 - the default
        "put cost and carbon into the usage of every answer, as OpenGateLLM's clients expect",
    )
    start_wait_s: float = _setting(
        60.0, "how long `up` waits for its processes to answer", unit="s", maximum=3600
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Settings with the origin of each value: `default`, a file, a variable, or `flag`."""

    settings: Settings
    origins: Mapping[str, str]


def resolve(
    flags: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Resolved:
    """Build the settings; a flag that is None was not given.

    The file is the one MOULIN_CONFIG names, else moulin.toml in `folder` (here), else
    moulin/moulin.toml in the user's configuration directory.

    Raises `InvalidRequest` for a file that cannot be read, an unknown word (naming the nearest) or
    a value of the wrong kind.
    """
    env = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    origins = {each.name: "default" for each in dataclasses.fields(Settings)}
    path = _file(env, folder or Path.cwd())
    layers: list[tuple[Mapping[str, object], str]] = []
    if path is not None:
        layers.append((_read(path), str(path)))
    for each in dataclasses.fields(Settings):
        variable = PREFIX + each.name.upper()
        if variable in env:
            layers.append(({each.name: env[variable]}, variable))
    layers.append(({k: v for k, v in (flags or {}).items() if v is not None}, "flag"))
    for layer, origin in layers:
        for name, value in layer.items():
            values[name] = _checked(name, value, origin)
            origins[name] = origin
    return Resolved(settings=Settings(**values), origins=origins)


def table() -> list[tuple[str, str, str, str]]:
    """Return (name, default with unit, variable, meaning) of every setting, for the reference."""
    return [
        (
            each.name,
            f"{each.default} {each.metadata['unit']}".strip(),
            PREFIX + each.name.upper(),
            each.metadata["help"],
        )
        for each in dataclasses.fields(Settings)
    ]


def _file(env: Mapping[str, str], folder: Path) -> Path | None:
    if env.get(FILE_VARIABLE):
        return Path(env[FILE_VARIABLE])
    home = env.get("XDG_CONFIG_HOME") or (f"{env['HOME']}/.config" if env.get("HOME") else "")
    candidates = [folder / FILE_NAME, *([Path(home) / "moulin" / FILE_NAME] if home else [])]
    return next((path for path in candidates if path.is_file()), None)


def _read(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise InvalidRequest(
            f"read settings from {path}: {cause.strerror}", hint=f"correct {FILE_VARIABLE}"
        ) from cause
    except ValueError as cause:
        raise InvalidRequest(
            f"read settings from {path}: {cause}", hint="write lines such as `control_port = 8700`"
        ) from cause


def _checked(name: str, value: object, origin: str) -> object:
    known = {each.name: each for each in dataclasses.fields(Settings)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise InvalidRequest(f"read settings from {origin}: there is no {name!r}", hint=hint)
    wanted = known[name]
    try:
        return _converted(wanted, value)
    except ValueError:
        kind = _KINDS.get(type(wanted.default), "a text")
        maximum = wanted.metadata["maximum"]
        limit = f" from 0 to {maximum}" if maximum else ""
        raise InvalidRequest(
            f"read settings from {origin}: {name} must be {kind}{limit}, not {str(value)[:60]!r}",
            hint=wanted.metadata["help"],
        ) from None


def _converted(wanted: Any, value: object) -> object:
    """Return the value in the setting's own type; raise ValueError when it is none."""
    kind = type(wanted.default)
    if kind is bool:
        return _truth(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    converted: Any = (
        kind(value) if isinstance(value, str) or (is_number and kind is float) else value
    )
    is_right = type(converted) is kind
    # Written so that NaN, which compares as false with everything, is refused.
    if is_right and (kind is str or 0 <= converted <= wanted.metadata["maximum"]):
        return converted
    raise ValueError


def _truth(value: object) -> bool:
    found = _WORDS.get(str(value).lower())
    if found is None:
        raise ValueError
    return found
