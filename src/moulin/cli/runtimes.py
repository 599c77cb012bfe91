"""Commands about runtimes: the programs that serve models, and installing those that come apart."""

from pathlib import Path
from typing import Annotated

import typer

from moulin.cli.screen import answer, say, table, write
from moulin.cli.session import IsJson

runtime = typer.Typer(
    help="Install what serves models; make checkpoints.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
DataText = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Data directory (.moulin).")
]


@runtime.command("list")
def list_runtimes(data: DataText = None, is_json: IsJson = False) -> None:
    """List the runtimes, what they serve and whether they are installed."""
    from moulin.app.runtimes import RuntimeBook

    states = RuntimeBook(_directory(data)).states()

    def show() -> None:
        table(
            ("runtime", "serves", "installed", "where"),
            (
                (
                    state.runtime.name,
                    state.runtime.title,
                    "yes" if state.is_installed else state.problem,
                    state.place or "Moulin's own environment",
                )
                for state in states
            ),
            empty="there are no runtimes",
        )

    answer(states, is_json=is_json, show=show)


@runtime.command("install")
def install(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `moulin runtime list` says.")],
    data: DataText = None,
    is_json: IsJson = False,
) -> None:
    """Build a runtime's own environment from the versions and digests that ship with Moulin.

    Moulin's own packages stay as they are. It is done when the runtime's libraries load.

    \b
    Examples:
      moulin runtime install speech_to_text
      moulin runtime install text_to_speech --data /var/lib/moulin
    """
    from moulin.app.runtimes import RuntimeBook

    state = RuntimeBook(_directory(data)).install(name, say)
    answer(state, is_json=is_json, show=lambda: write(f"{name} is installed in {state.place}"))


@runtime.command("convert")
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="GGUF file to read.")],
    directory: Annotated[Path, typer.Argument(help="Folder to write, which must not exist.")],
    data: DataText = None,
    is_json: IsJson = False,
) -> None:
    """Turn a GGUF file into a checkpoint, the form that the runtime vllm serves.

    Weights are widened to bfloat16: more memory, and nothing back of what quantising took away.

    \b
    Examples:
      moulin runtime convert model.gguf ./model
      moulin deploy file:./model --name mine
    """
    from moulin.app.runtimes import RuntimeBook
    from moulin.domain.model import VLLM

    RuntimeBook(_directory(data)).convert(VLLM, file, directory)
    answer({"directory": str(directory)}, is_json=is_json, show=lambda: write(f"wrote {directory}"))


def _directory(data: str | None) -> Path:
    from moulin.app.settings import resolve

    return Path(resolve({"data": data}).settings.data).resolve() / "runtimes"
