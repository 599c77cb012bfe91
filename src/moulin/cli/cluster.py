"""`moulin cluster`: what a cluster that one already owns looks like in the factory's words."""

from pathlib import Path
from typing import Annotated

import typer

from moulin.cli.screen import answer, say, write
from moulin.cli.session import IsJson

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
    ssh: Annotated[str, typer.Option(help="Reach Slurm's commands on this host over SSH.")] = "",
    conf: Annotated[str, typer.Option(help="Path of slurm.conf, when it is not the usual.")] = "",
    is_delegated: Annotated[
        bool, typer.Option("--delegated", help="Let Slurm place; without it Moulin places.")
    ] = False,
    nodes: Input = None,
    partitions: Input = None,
    jobs: Input = None,
    is_json: IsJson = False,
) -> None:
    """Write the operator file of a Slurm cluster, which stays as it is.

    Each partition becomes a zone and a pool. Jobs that others run are counted and left alone.
    Nothing is changed: look at the file, then `moulin apply` it.

    \b
    Examples:
      moulin cluster import --country FR -o cluster.yaml
      moulin cluster import --country SE --ssh login1 --delegated
    """
    from moulin.app.wiring.slurm import import_slurm

    text = import_slurm(
        country=country,
        site=site,
        settings={name: value for name, value in (("ssh", ssh), ("conf", conf)) if value},
        is_delegated=is_delegated,
        files=(nodes, partitions, jobs),
    )
    if output is None:
        answer({"operator_file": text}, is_json=is_json, show=lambda: write(text.rstrip("\n")))
        return
    output.write_text(text, "utf-8")
    answer({"file": str(output)}, is_json=is_json, show=lambda: None)
    say(f"wrote {output}; `moulin apply {output} --dry-run` shows what it would change")
