"""The command that shows everything once, on this machine, in about two minutes."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None)


@app.command()
def demo(
    *,
    docs: Annotated[
        Path | None,
        typer.Option(
            "--docs", metavar="FOLDER", help="Your own .txt and .md files instead of ours."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Data directory, kept; else a temporary one."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Model of the catalogue.")
    ] = "qwen2.5-coder-0.5b-instruct",
    is_kept: Annotated[
        bool, typer.Option("--keep", help="Keep the temporary directory: briefs, receipts, logs.")
    ] = False,
    is_slurm: Annotated[
        bool, typer.Option("--slurm", help="Instead: in front of a Slurm of four nodes made here.")
    ] = False,
    is_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, words on stderr.")
    ] = False,
) -> None:
    """Show the main job end to end on this machine.

    A factory, a model, a batch job that survives its control plane, refusals with reasons, a
    spent budget, and receipts that verify. Everything it starts it stops; only the model's file
    stays in your cache. Exits with 0 only when every step held.

    With --slurm: two teams on a real Slurm started on this machine, a gang, a model that outlives
    its walltime under load, a node without power, a killed control plane, the bill.

    \b
    Examples:
      moulin demo
      moulin demo --docs ~/texts --keep
      moulin demo --slurm
    """
    from moulin.app.demo.play import play
    from moulin.app.demo.stage import Wanted

    wanted = Wanted(model=model, docs=docs, data=data, is_json=is_json, is_kept=is_kept)
    if is_slurm:
        from moulin.app.demo.cluster.story import CLUSTER_STORY

        status = play(wanted, CLUSTER_STORY)
    else:
        status = play(wanted)
    raise typer.Exit(status)
