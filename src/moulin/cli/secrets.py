"""Commands about a project's secrets: a value comes from stdin or a prompt, never from the command line."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.screen import answer, table, write
from moulin.cli.session import Data, IsJson, Project, connect
from moulin.domain.errors import InvalidRequest
from moulin.domain.words import moment

if TYPE_CHECKING:
    from moulin.domain.secrets import SecretInfo

app = typer.Typer(
    help="Set, list and delete secrets that jobs are given by name.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="What jobs call it: HF_TOKEN.")]


@app.command("set")
def secrets_set(
    name: Name, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """Set a secret from stdin, or from a prompt that shows nothing.

    A last line end is not part of the value. A job file names it under `secrets:`.

    \b
    Examples:
      moulin secrets set HF_TOKEN
      moulin secrets set TLS_KEY < key.pem
    """
    value = _read_value(name)
    with connect(data, project) as client:
        info = client.secrets.set(name, value)
    answer(info, is_json=is_json, show=lambda: write(f"{info.name} is set"))


@app.command("list")
def secrets_list(data: Data = None, project: Project = "", is_json: IsJson = False) -> None:
    """List the project's secrets by name; values are shown to nobody."""
    with connect(data, project) as client:
        found = client.secrets.list().items
    heads = ("secret", "set", "by")
    answer(
        {"items": found},
        is_json=is_json,
        show=lambda: table(heads, map(_row, found), empty="no secrets"),
    )


@app.command("delete")
def secrets_delete(
    name: Name, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """Delete a secret: its key is destroyed, also for old copies of the log."""
    with connect(data, project) as client:
        info = client.secrets.delete(name)
    answer(info, is_json=is_json, show=lambda: write(f"{info.name} is deleted"))


@app.command("rotate")
def secrets_rotate(data: Data = None, is_json: IsJson = False) -> None:
    """Replace the master key that wraps the keys of all secrets; for operators."""
    with connect(data, is_operator=True) as client:
        rotated = client.secrets.rotate()
    answer(
        rotated,
        is_json=is_json,
        show=lambda: write(f"{rotated.secrets} secret(s) are under a new master key"),
    )


def _read_value(name: str) -> str:
    """Return what stdin holds, or what is typed where it is a terminal."""
    if sys.stdin.isatty():
        import getpass

        value = getpass.getpass(f"{name}: ")
    else:
        value = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    if not value.isascii() and not _is_text(value):
        raise InvalidRequest(
            f"set secret {name}: it is not text", hint="encode it, for example with base64"
        )
    if not value:
        raise InvalidRequest(
            f"set secret {name}: there is no value", hint="type one, or write `… < FILE`"
        )
    return value


def _is_text(value: str) -> bool:
    """Say whether bytes that are no text slipped through, as they do in some locales."""
    return not any("\udc80" <= letter <= "\udcff" for letter in value)


def _row(info: "SecretInfo") -> tuple[str, ...]:
    return info.name, moment(info.set_at_ns), info.set_by
