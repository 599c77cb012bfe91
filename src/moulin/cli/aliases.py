"""Commands about names that stand for endpoints: shares for a canary, rollback, deprecation."""

from typing import Annotated

import typer

from moulin.cli.screen import answer, table, write
from moulin.cli.session import Data, IsJson, connect
from moulin.domain.words import moment

app = typer.Typer(
    help="Names that stand for one or several endpoints, with weights.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name that clients use.")]


@app.command("set")
def alias_set(
    name: Name,
    targets: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[=WEIGHT]...", help="Endpoints and their shares of requests."),
    ],
    *,
    for_project: Annotated[
        str, typer.Option("--for", metavar="PROJECT", help="Only for keys of this project.")
    ] = "",
    deprecated: Annotated[
        str, typer.Option("--deprecated", metavar="TIME", help="Answers warn from then on.")
    ] = "",
    sunset: Annotated[
        str, typer.Option("--sunset", metavar="TIME", help="The name ends then.")
    ] = "",
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Let a name stand for endpoints; gateways follow at once, running requests end as they began.

    A request's id decides by the weights which target serves it. Setting the name again replaces
    all of it: that is how a canary grows, and how it is rolled back.

    \b
    Examples:
      moulin alias set chat chat-v1=95 chat-v2=5
      moulin alias set chat chat-v1
      moulin alias set old-chat chat-v2 --deprecated 2026-12-01T00:00:00Z --sunset 2027-03-01T00:00:00Z
    """
    from moulin.domain.factory import Alias, ObjectKind
    from moulin.domain.factoryfile import parse_factory

    body = {
        "targets": dict(map(_target, targets)),
        "project": for_project,
        "deprecated": deprecated,
        "sunset": sunset,
    }
    with connect(data, is_operator=True) as client:
        declared = client.factory.get().items
        objects = parse_factory(
            {"aliases": {name: {key: value for key, value in body.items() if value}}},
            registry={},
            origin="the command line",
            known={
                ObjectKind.PROJECT: [
                    view.name for view in declared if view.kind == ObjectKind.PROJECT
                ]
            },
        )
        (alias,) = objects
        assert isinstance(alias, Alias)
        applied = client.aliases.set(alias)
    answer(applied, is_json=is_json, show=lambda: write(f"{name} stands for {', '.join(targets)}"))


@app.command("list")
def alias_list(data: Data = None, is_json: IsJson = False) -> None:
    """List the aliases, those of operator files too."""
    with connect(data, is_operator=True) as client:
        found = client.aliases.list()

    def show() -> None:
        table(
            ("name", "targets", "for", "deprecated", "ends", "managed by"),
            (
                (
                    alias.name,
                    ", ".join(f"{model}={weight}" for model, weight in alias.targets.items()),
                    alias.project or "everybody",
                    moment(alias.deprecated_at_ns) if alias.deprecated_at_ns else "-",
                    moment(alias.sunset_at_ns) if alias.sunset_at_ns else "-",
                    managed_by,
                )
                for alias, managed_by in found
            ),
            empty="no aliases",
        )

    answer({"items": [alias for alias, _ in found]}, is_json=is_json, show=show)


@app.command("remove")
def alias_remove(name: Name, data: Data = None, is_json: IsJson = False) -> None:
    """Remove a name that `moulin alias set` made; requests for it are refused from then on."""
    with connect(data, is_operator=True) as client:
        applied = client.aliases.remove(name)
    answer(applied, is_json=is_json, show=lambda: write(f"{name} is removed"))


def _target(written: str) -> tuple[str, str]:
    """Return an endpoint's name and its weight, 1 where none is written."""
    model, _, weight = written.partition("=")
    return model, weight or "1"
