"""`moulin`: the commands in the order in which a new user meets them, and how an error is told.

It decides exit statuses: 0 when what was asked for happened, 1 when not, 2 for words that make no
command, 130 after Ctrl-C. Heavy libraries are imported by the command that needs them.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from typer.exceptions import TyperException

from moulin.cli import (
    accounts,
    aliases,
    batch,
    bundles,
    cluster,
    demo,
    inside,
    join,
    kept,
    keys,
    lease,
    local,
    models,
    nodes,
    operate,
    replicas,
    runtimes,
    scale,
    secrets,
    serve,
    submit,
    work,
)
from moulin.cli.screen import say, say_error
from moulin.domain.errors import MoulinError

# As in `moulin.sdk.credentials`, which is imported by the commands that connect.
CA_VARIABLE: Final = "MOULIN_CA"

app = typer.Typer(
    name="moulin",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(is_wanted: bool) -> None:
    if is_wanted:
        local.version()
        raise typer.Exit


@app.callback()
def trust(
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            envvar=CA_VARIABLE,
            metavar="FILE",
            help="PEM file of the certificates to trust, for a Moulin that made its own.",
        ),
    ] = None,
    is_version_wanted: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Turn machines, sites and open models into metered services.

    Start with `moulin up`; then, in another shell, `moulin run -- echo hello`.
    """
    if ca is not None:
        os.environ[CA_VARIABLE] = str(ca)


for part in (
    demo,
    local,
    operate,
    join,
    submit,
    work,
    batch,
    inside,
    serve,
    scale,
    replicas,
    accounts,
):
    app.add_typer(part.app)
app.add_typer(models.app, name="models")
app.add_typer(nodes.app, name="nodes")
app.add_typer(lease.app, name="lease")
app.add_typer(lease.app, name="leases", hidden=True)
app.add_typer(models.prices, name="price")
app.add_typer(local.config, name="config")
app.add_typer(runtimes.runtime, name="runtime")
app.add_typer(keys.app, name="keys")
app.add_typer(aliases.app, name="alias")
app.add_typer(cluster.app, name="cluster")
app.add_typer(kept.files, name="files")
app.add_typer(kept.batch, name="batch")
app.add_typer(secrets.app, name="secrets")
app.add_typer(bundles.app, name="bundles")
app.add_typer(accounts.receipt, name="receipt")


def main() -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit status."""
    words = list(arguments)
    own_words = words[: words.index("--")] if "--" in words else words
    try:
        status = app(args=words, prog_name="moulin", standalone_mode=False)
    except MoulinError as error:
        say_error(error, is_json="--json" in own_words)
        return 1
    except typer.Abort:
        say("nothing was done")
        return 1
    except TyperException as error:
        say(f"error: {error.format_message()}\n")
        path = getattr(getattr(error, "ctx", None), "command_path", "moulin")
        say(f"hint: see `{path} --help`")
        return error.exit_code
    except BrokenPipeError:
        # The reader has left; nothing may be written at the interpreter's end either.
        sys.stdout = None
        return 1
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
