"""`moulin join`: the one command that makes a server a node of a pool without Slurm."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from moulin.cli.screen import answer, write
from moulin.cli.session import Data, IsJson, connect
from moulin.domain.errors import InvalidRequest, UnknownName

app = typer.Typer(rich_markup_mode=None)
ENGINE = "ray"


@app.command()
def join(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="A pool of engine ray.")],
    is_head: Annotated[
        bool, typer.Option("--head", help="The command that makes this machine the pool's head.")
    ] = False,
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Print the one command that makes a server part of a pool.

    It installs Ray from versions and digests that ship with Moulin and needs Python 3.11 or later
    there. The cluster's token goes along in a file on standard input, never on a command line.

    \b
    Examples:
      moulin join cellar --head    then run what it prints, on this machine
      moulin join cellar           then run what it prints, once for each other server
    """
    from moulin.app.join import ray_place, write_head, write_join

    with connect(data, is_operator=True) as client:
        views = client.factory.get().items
    pools = {view.name: view.body for view in views if view.kind == "pool"}
    if pool not in pools:
        raise UnknownName(f"there is no pool {pool!r}", hint=f"pools: {', '.join(sorted(pools))}")
    settings = pools[pool].get("settings")
    if pools[pool].get("engine") != ENGINE or not isinstance(settings, dict):
        raise InvalidRequest(
            f"join a server to pool {pool!r}: its engine is {pools[pool].get('engine')}",
            hint="servers join pools of engine ray",
        )
    place = ray_place(pool, settings)
    directory = ((data or Path(".moulin")) / "ray" / pool).absolute()
    script = (write_head if is_head else write_join)(place, directory)
    command = f"sh {shlex.quote(str(script))}"
    if not is_head:
        command = f"ssh SERVER 'sh -s' < {shlex.quote(str(script))}"
    answer(
        {"pool": pool, "command": command, "script": str(script)},
        is_json=is_json,
        show=lambda: write(command),
    )
