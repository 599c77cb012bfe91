"""Commands about a project's bundles: folders that were sent along with jobs."""

from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.screen import answer, table, write
from moulin.cli.session import Data, IsJson, Project, connect
from moulin.domain.errors import InvalidRequest, NotFound
from moulin.domain.words import memory, moment

if TYPE_CHECKING:
    from moulin.domain.objects import StoredObject

app = typer.Typer(
    help="List and delete folders that were sent along with jobs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Digest = Annotated[
    str, typer.Argument(metavar="DIGEST", help="Its SHA-256, or the beginning of it.")
]


@app.command("list")
def bundles_list(data: Data = None, project: Project = "", is_json: IsJson = False) -> None:
    """List the project's bundles, newest first."""
    with connect(data, project) as client:
        found = client.bundles.list().items
    heads = ("bundle", "size>", "sent", "kept until")
    answer(
        {"items": found},
        is_json=is_json,
        show=lambda: table(heads, map(_row, found), empty="no bundles"),
    )


@app.command("delete")
def bundles_delete(
    digest: Digest, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """Delete a bundle; one that an unfinished job needs stays."""
    with connect(data, project) as client:
        known = {each.sha256 for each in client.bundles.list().items}
        meant = sorted(each for each in known if each.startswith(digest))
        if not meant:
            raise NotFound(f"delete bundle {digest}: there is none", hint="`moulin bundles list`")
        if len(meant) > 1:
            raise InvalidRequest(f"{digest} means {len(meant)} bundles", hint="give more of it")
        gone = client.bundles.delete(meant[0])
    answer(gone, is_json=is_json, show=lambda: write(f"{gone.sha256[:12]} is deleted"))


def _row(stored: "StoredObject") -> tuple[str, ...]:
    return (
        stored.sha256[:12],
        memory(stored.size_bytes),
        moment(stored.created_at_ns),
        moment(stored.expires_at_ns),
    )
