"""Commands about what a project keeps: files, and batches of requests made from them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moulin.cli.screen import answer, say, table, write, write_bytes
from moulin.cli.session import Data, IsJson, Project, connect
from moulin.domain.errors import InvalidRequest, LocalError
from moulin.domain.words import memory, moment

if TYPE_CHECKING:
    from moulin.domain.objects import BatchJob, StoredObject
    from moulin.sdk import Moulin

files = typer.Typer(
    help="Upload, list, download and delete files.", no_args_is_help=True, rich_markup_mode=None
)
batch = typer.Typer(
    help="Carry out a file of requests, at the batch price, when there is room.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
FileId = Annotated[str, typer.Argument(metavar="ID", help="A file's id.")]
BatchId = Annotated[str, typer.Argument(metavar="ID", help="A batch's id.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to stdout.")
]
CHAT: Final = "/v1/chat/completions"
LINE_BYTES_MAX: Final = 16 * 2**20


@files.command("list")
def files_list(
    purpose: Annotated[str, typer.Option("--purpose", help="Only for this: batch, …")] = "",
    limit: Limit = 100,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """List the project's files, newest first."""
    with connect(data, project) as client:
        found = list(client.files.every(purpose=purpose, limit=limit))
    heads = ("file", "name", "purpose", "size>", "uploaded", "kept until")
    answer(
        {"items": found},
        is_json=is_json,
        show=lambda: table(heads, map(_file_row, found), empty="no files"),
    )


@files.command("upload")
def files_upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to upload.")],
    *,
    purpose: Annotated[str, typer.Option("--purpose", help="What it is for.")] = "batch",
    keep: Annotated[str, typer.Option("--keep", help="Delete it after: 12h, 7d (30d).")] = "",
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Upload a file and print its id."""
    from moulin.domain.units import parse_duration_s

    kept_s = parse_duration_s(keep) if keep else 0
    with connect(data, project) as client:
        stored = client.files.upload(file, purpose=purpose, kept_s=kept_s)
    answer(stored, is_json=is_json, show=lambda: write(stored.id))


@files.command("show")
def files_show(
    id: FileId, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """Show what is known of a file."""
    with connect(data, project) as client:
        stored = client.files.get(id)

    def show() -> None:
        names = ("file", "name", "purpose", "size", "uploaded", "kept until")
        for name, value in (*zip(names, _file_row(stored), strict=True), ("sha256", stored.sha256)):
            write(f"{name:<10} {value}")

    answer(stored, is_json=is_json, show=show)


@files.command("download")
def files_download(
    id: FileId,
    output: Output = None,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Write a file's bytes to a file, or to stdout; --json needs --output."""
    _check_output(output, is_json=is_json)
    with connect(data, project) as client:
        _save(client.files.content(id), output)
    _tell_output(id, output, is_json=is_json)


@files.command("delete")
def files_delete(
    id: FileId, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """Delete a file with its bytes."""
    with connect(data, project) as client:
        gone = client.files.delete(id)
    answer(gone, is_json=is_json, show=lambda: write(f"{gone.id} {gone.name} is deleted"))


@batch.command("run")
def batch_run(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Requests as JSON, one a line, or `file_…`.")
    ],
    *,
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="PATH", help="Where lines go (the first line's).")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="For lines that name none, as Mistral's.")
    ] = "",
    window: Annotated[
        str, typer.Option("--window", help="Leave what is not done after: 24h.")
    ] = "24h",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait, with progress, and write the results.")
    ] = False,
    output: Output = None,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Upload a file of requests and have them carried out; print the batch's id.

    Lines are as OpenAI's batches have them: custom_id, method, url and body.

    \b
    Examples:
      moulin batch run questions.jsonl
      moulin batch run questions.jsonl --follow --output answers.jsonl
    """
    from moulin.domain.units import parse_duration_s

    window_s = parse_duration_s(window)
    is_uploaded = file.name.startswith("file_") and not file.exists()
    with connect(data, project) as client:
        input_file = file.name if is_uploaded else client.files.upload(file).id
        opened = client.batches.create(
            (input_file,),
            endpoint=endpoint or (CHAT if is_uploaded else _endpoint_of(file)),
            model=model,
            window_s=window_s,
        )
        if not follow:
            answer(opened, is_json=is_json, show=lambda: write(opened.id))
            return
        say(f"{opened.id} is open")
        ended = _follow(client, opened.id)
        if ended.output_file and (output is not None or not is_json):
            _save(client.files.content(ended.output_file), output)
            if output is not None:
                say(f"wrote {output}")
    _finish(ended, is_json=is_json)


@batch.command("list")
def batch_list(
    limit: Limit = 100, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """List the project's batches, newest first."""
    with connect(data, project) as client:
        found = list(client.batches.every(limit=limit))
    heads = ("batch", "state", "lines>", "answered>", "failed>", "opened", "until")
    answer(
        {"items": found},
        is_json=is_json,
        show=lambda: table(heads, map(_batch_row, found), empty="no batches"),
    )


@batch.command("show")
def batch_show(
    id: BatchId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait until it ends.")] = False,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Show one batch with how far it is, and why lines could not be read."""
    with connect(data, project) as client:
        found = _follow(client, id) if follow else client.batches.get(id)

    def show() -> None:
        names = ("batch", "state", "lines", "answered", "failed", "opened", "until")
        facts = [
            *zip(names, _batch_row(found), strict=True),
            ("endpoint", found.endpoint),
            ("results", found.output_file or "none yet"),
            ("errors", found.error_file or "none"),
        ]
        for name, value in facts:
            write(f"{name:<9} {value}")
        for error in found.errors:
            write(f"line {error.line}: {error.message}" if error.line else error.message)

    answer(found, is_json=is_json, show=show)


@batch.command("results")
def batch_results(
    id: BatchId,
    *,
    errors: Annotated[
        bool, typer.Option("--errors", help="The lines that failed instead.")
    ] = False,
    output: Output = None,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Write the lines of a batch that were answered, or those that were not; --json needs --output."""
    _check_output(output, is_json=is_json)
    with connect(data, project) as client:
        _save(client.batches.errors(id) if errors else client.batches.results(id), output)
    _tell_output(id, output, is_json=is_json)


@batch.command("cancel")
def batch_cancel(
    id: BatchId, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """Begin no further line; what is done is kept and charged."""
    with connect(data, project) as client:
        found = client.batches.cancel(id)
    answer(found, is_json=is_json, show=lambda: write(f"{found.id} is {found.state}"))


@batch.command("delete")
def batch_delete(
    id: BatchId, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """Forget a batch that has ended; its files stay."""
    with connect(data, project) as client:
        gone = client.batches.delete(id)
    answer(gone, is_json=is_json, show=lambda: write(f"{gone.id} is forgotten"))


def _endpoint_of(file: Path) -> str:
    """Return where the first line of a file says that it goes, chat where it says nothing."""
    try:
        with file.open("rb") as lines:
            first = json.loads(lines.readline(LINE_BYTES_MAX))
    except OSError as cause:
        raise InvalidRequest(f"read {file}: {cause.strerror}", hint="check the path") from cause
    except ValueError:
        return CHAT  # the control plane says which lines are wrong
    url = first.get("url") if isinstance(first, dict) else None
    return url if isinstance(url, str) and url else CHAT


def _follow(client: "Moulin", id: str) -> "BatchJob":
    """Say how far a batch is each time it is further; return it as it ended."""
    found = None
    for found in client.batches.follow(id):
        done = found.completed + found.failed
        say(f"{found.state}: {done} of {found.lines} done, {found.failed} failed")
    assert found is not None
    return found


def _finish(ended: "BatchJob", *, is_json: bool) -> None:
    for error in ended.errors:
        say(f"line {error.line}: {error.message}" if error.line else error.message)
    if ended.error_file:
        say(f"`moulin batch results {ended.id} --errors` shows the lines that failed")
    if is_json:
        answer(ended, is_json=True, show=lambda: None)
    raise typer.Exit(0 if ended.state == "completed" else 1)


def _save(pieces: Iterator[bytes], output: Path | None) -> None:
    """Write pieces to a file, or to stdout."""
    if output is None:
        for piece in pieces:
            write_bytes(piece)
        return
    first = next(pieces, b"")  # an error leaves no empty file
    try:
        with output.open("wb") as stream:
            stream.write(first)
            for piece in pieces:
                stream.write(piece)
    except OSError as cause:
        raise LocalError(f"write {output}: {cause.strerror}", hint="choose another file") from cause


def _check_output(output: Path | None, *, is_json: bool) -> None:
    if is_json and output is None:
        raise InvalidRequest("write bytes and a JSON document on stdout", hint="add --output FILE")


def _tell_output(id: str, output: Path | None, *, is_json: bool) -> None:
    if output is not None:
        said = {"id": id, "output": str(output), "size_bytes": str(output.stat().st_size)}
        answer(said, is_json=is_json, show=lambda: say(f"wrote {output}"))


def _file_row(stored: "StoredObject") -> tuple[str, ...]:
    return (
        stored.id,
        stored.name,
        stored.purpose,
        memory(stored.size_bytes),
        moment(stored.created_at_ns),
        moment(stored.expires_at_ns),
    )


def _batch_row(found: "BatchJob") -> tuple[str, ...]:
    return (
        found.id,
        found.state.value,
        str(found.lines),
        str(found.completed),
        str(found.failed),
        moment(found.created_at_ns),
        moment(found.deadline_at_ns),
    )
