"""`moulin cluster`: what a cluster that one already owns looks like in the factory's words."""

from pathlib import Path
from typing import Annotated

import typer

from moulin.cli.screen import answer, say, write
from moulin.cli.session import Data, IsJson, connect
from moulin.domain.errors import NotFound

app = typer.Typer(rich_markup_mode=None, help="Clusters that are there already.")

Input = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Read this instead of asking Slurm: plain, -o or --json."),
]


@app.callback()
def cluster() -> None:
    """Clusters that are there already."""


@app.command("import")
def import_cluster(
    *,
    country: Annotated[str, typer.Option(help="Country of the site, such as FR.")],
    site: Annotated[str, typer.Option(help="Name of the site.")] = "cluster",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the file here, not to stdout.")
    ] = None,
    directory: Annotated[
        str, typer.Option(help="Folder for tasks' files that the nodes see at the same path.")
    ] = "",
    ssh: Annotated[str, typer.Option(help="Reach Slurm's commands on this host over SSH.")] = "",
    conf: Annotated[str, typer.Option(help="Path of slurm.conf, when it is not the usual.")] = "",
    is_delegated: Annotated[
        bool, typer.Option("--delegated", help="Let Slurm place; without it Moulin places.")
    ] = False,
    nodes: Input = None,
    partitions: Input = None,
    jobs: Input = None,
    accounts: Input = None,
    is_json: IsJson = False,
) -> None:
    """Write the operator file of a Slurm cluster, which stays as it is.

    Each partition becomes a zone and a pool, each account with users a project with its limits as
    quota. Jobs that others run are counted and left alone.
    Nothing is changed: look at the file, then `moulin apply` it.

    \b
    Examples:
      moulin cluster import --country FR -o cluster.yaml
      moulin cluster import --country SE --ssh login1 --delegated --directory /shared/moulin
    """
    from moulin.app.wiring.slurm import import_slurm

    settings = (("directory", directory), ("ssh", ssh), ("conf", conf))
    text = import_slurm(
        country=country,
        site=site,
        settings={name: value for name, value in settings if value},
        is_delegated=is_delegated,
        files=(nodes, partitions, jobs, accounts),
    )
    if output is None:
        answer({"operator_file": text}, is_json=is_json, show=lambda: write(text.rstrip("\n")))
        return
    output.write_text(text, "utf-8")
    answer({"file": str(output)}, is_json=is_json, show=lambda: None)
    say(f"wrote {output}; `moulin apply {output} --dry-run` shows what it would change")


@app.command()
def mirror(
    pool: Annotated[
        str, typer.Argument(metavar="POOL", help="A pool with `mirror: yes`; all of them.")
    ] = "",
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, and run none.")
    ] = False,
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Give each project its account in Slurm, with its quota as limit, below its organisation's.

    Only where a pool asks for it, and only accounts that it made itself are ever changed. A project
    that is gone keeps its account, closed for new jobs.

    \b
    Examples:
      moulin cluster mirror --dry-run
      moulin cluster mirror gpu
    """
    import shlex

    from moulin.app.wiring.slurm import is_mirrored, mirror_slurm
    from moulin.domain.factory import ObjectKind, Organisation, Pool, Project
    from moulin.domain.wire import decode

    with connect(data, is_operator=True) as client:
        items = client.factory.get().items
    pools = [decode(Pool, each.body) for each in items if each.kind == ObjectKind.POOL]
    pools = [each for each in pools if each.engine == "slurm" and is_mirrored(each)]
    chosen = [each for each in pools if not pool or each.name == pool]
    if not chosen:
        raise NotFound(
            f"mirror {pool or 'a pool'}: no such pool asks for it",
            hint="a pool of engine slurm, `mode: delegated`, says `mirror: yes` in its settings",
        )
    organisations = [
        decode(Organisation, x.body) for x in items if x.kind == ObjectKind.ORGANISATION
    ]
    projects = [decode(Project, x.body) for x in items if x.kind == ObjectKind.PROJECT]
    ran = (
        shlex.join(command)
        for each in chosen
        for command in mirror_slurm(each, organisations, projects, is_dry_run=is_dry_run)
    )
    commands = tuple(dict.fromkeys(ran))
    done = {"commands": commands, "is_dry_run": is_dry_run}
    answer(done, is_json=is_json, show=lambda: write("\n".join(commands) or "nothing to change"))
