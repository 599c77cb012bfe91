"""`moulin cluster`: what a cluster that one already owns looks like in the factory's words."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.screen import DETACHED_STATUS, answer, say, write
from moulin.cli.session import Data, IsJson, connect
from moulin.domain.errors import NotFound

if TYPE_CHECKING:
    from moulin.app.wiring.slurm_mirror import Tenants
    from moulin.domain.factory import Pool
    from moulin.domain.finding import Finding

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
    conf: Annotated[
        str, typer.Option(help="Path of slurm.conf; without it SLURM_CONF, or the usual place.")
    ] = "",
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

    if not (conf or ssh):
        conf = os.environ.get("SLURM_CONF", "")
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
def check(
    pool: Annotated[
        str, typer.Argument(metavar="POOL", help="A pool of engine slurm; all of them.")
    ] = "",
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="Pools of this operator file, not yet applied."
        ),
    ] = None,
    wait: Annotated[
        int, typer.Option(min=1, metavar="SECONDS", help="How long the job may wait in the queue.")
    ] = 60,
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Find out whether a Slurm pool will work, from this machine and on one of its nodes.

    Each line says ok, problem or unknown, with a hint for whatever is not right. One job of one CPU
    and at most two minutes looks at a node; it is cancelled when it waits for too long, and on Ctrl-C.
    Jobs of others are never touched. Run it as the user that runs `moulin up`. Exits with 1 when
    something is a problem.

    \b
    Examples:
      moulin cluster check gpu
      moulin cluster check --file cluster.yaml --wait 600
    """
    import contextlib

    from moulin.app.settings import resolve
    from moulin.app.wiring.slurm_check import check_slurm

    pools, tenants = _checked(pool, file, data)
    folder = Path(resolve({"data": str(data) if data else None}).settings.data)
    found: dict[str, list[Finding]] = {each.name: [] for each in pools}
    with _interrupted_by_the_end():
        for each in pools:
            findings = check_slurm(
                each, tenants, directory=folder / "slurm" / each.name, wait_s=wait, say=say
            )
            if not is_json:
                write(f"pool {each.name}")
            with contextlib.closing(findings):
                for finding in findings:
                    found[each.name].append(finding)
                    if not is_json:
                        _show_finding(finding)
    is_well = all(one.verdict != "problem" for findings in found.values() for one in findings)
    answer({"ok": is_well, "pools": found}, is_json=is_json, show=lambda: None)
    raise typer.Exit(0 if is_well else 1)


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
    that is gone keeps its account, closed for new jobs; with `mirror_budgets: yes` so does one that has
    spent its budget, until there is money. Only what differs is changed, so cron may run it.

    \b
    Examples:
      moulin cluster mirror --dry-run
      moulin cluster mirror gpu
    """
    import shlex

    from moulin.app.wiring.slurm import is_mirrored
    from moulin.app.wiring.slurm_mirror import closed_projects, mirror_slurm

    tenants = _tenants(data)
    mirrored = [each for each in tenants.pools if is_mirrored(each)]
    chosen = [each for each in mirrored if not pool or each.name == pool]
    if not chosen:
        raise NotFound(
            f"mirror {pool or 'a pool'}: no such pool asks for it",
            hint="a pool of engine slurm, `mode: delegated`, says `mirror: yes` in its settings",
        )
    ran = (
        shlex.join(command)
        for each in chosen
        for command in mirror_slurm(each, tenants, is_dry_run=is_dry_run)
    )
    commands = tuple(dict.fromkeys(ran))
    closed = sorted(frozenset().union(*(closed_projects(each, tenants) for each in chosen)))
    done = {"commands": commands, "is_dry_run": is_dry_run, "spent": closed}
    answer(done, is_json=is_json, show=lambda: write("\n".join(commands) or "nothing to change"))
    if closed:
        say(f"no new jobs until there is money, for their budget is spent: {', '.join(closed)}")


def _tenants(data: Path | None) -> "Tenants":
    """Return who uses the factory, its Slurm pools, and who has spent their money."""
    from moulin.app.wiring.slurm_mirror import Tenants
    from moulin.domain.factory import ObjectKind, Organisation, Pool, Project
    from moulin.domain.wire import decode

    with connect(data, is_operator=True) as client:
        items, balances = client.factory.get().items, client.status().balances
    pools = [decode(Pool, each.body) for each in items if each.kind == ObjectKind.POOL]
    return Tenants(
        [decode(Organisation, x.body) for x in items if x.kind == ObjectKind.ORGANISATION],
        [decode(Project, x.body) for x in items if x.kind == ObjectKind.PROJECT],
        [each for each in pools if each.engine == "slurm"],
        frozenset(each.project for each in balances if each.is_spent),
    )


def _checked(pool: str, file: Path | None, data: Path | None) -> "tuple[list[Pool], Tenants]":
    """Return the pools of Slurm that are meant, and who uses them.

    Raises `NotFound` when there is none.
    """
    from moulin.app.files import read_factory_file
    from moulin.app.wiring.slurm_mirror import Tenants
    from moulin.domain.factory import Organisation, Pool, Project

    if file is not None:
        objects = read_factory_file(file)
        tenants = Tenants(
            [each for each in objects if isinstance(each, Organisation)],
            [each for each in objects if isinstance(each, Project)],
            [each for each in objects if isinstance(each, Pool) and each.engine == "slurm"],
        )
    else:
        tenants = _tenants(data)
    chosen = [each for each in tenants.pools if not pool or each.name == pool]
    if not chosen:
        names = ", ".join(each.name for each in tenants.pools) or "none"
        raise NotFound(
            f"check {pool or 'a pool'}: there is no such pool of engine slurm",
            hint=f"{file or 'the factory'} has {names}",
        )
    return chosen, tenants


def _show_finding(finding: "Finding") -> None:
    write(f"{finding.verdict.value:<7} {finding.name}: {finding.message}")
    if finding.hint:
        write(f"        hint: {finding.hint}")


@contextmanager
def _interrupted_by_the_end() -> Iterator[None]:
    """Let a request to end do what Ctrl-C does: what was begun is taken back, and says so."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    told = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted; the check's own job is cancelled")
        raise typer.Exit(DETACHED_STATUS) from None
    finally:
        signal.signal(signal.SIGTERM, told)
