"""Write docs/reference and README's figures, so that they cannot lie; --check says what is stale.

A page is a function returning Markdown; PAGES is the list. A page whose source does not exist yet
is left out by returning "".
"""

import argparse
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark_table import with_table

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the code; do not edit. -->"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _summary(thing: object) -> str:
    return _cell((inspect.getdoc(thing) or "").split("\n\n")[0])


def _table(*heads: str, rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ("---",) * len(heads), *rows)]
    return "\n".join(lines)


def errors_page() -> str:
    """Every error code, its HTTP status and whether trying again can help."""
    from moulin.domain.errors import all_errors

    rows = [
        (
            f"`{error.code}`",
            str(error.http_status),
            "yes" if error.retryable else "no",
            f"`{error.__name__}`",
            _summary(error),
        )
        for error in all_errors()
        if error.__module__ == "moulin.domain.errors"
    ]
    return f"""# Error codes

The API answers with `application/problem+json`: `code` is one of these, `detail` says what was
attempted and what stopped it, `hint` what to do next. The SDK raises the class; the command line
prints `error:` and `hint:`. Codes never change their meaning.

{_table("code", "HTTP", "retry", "class", "meaning", rows=rows)}
"""


def reasons_page() -> str:
    """Every reason for waiting or refusal, with its sentence."""
    if importlib.util.find_spec("moulin.domain.reasons") is None:
        return ""
    from moulin.domain.reasons import ENGLISH

    rows = [(f"`{code.value}`", _cell(text)) for code, text in ENGLISH.items()]
    return f"""# Reasons

What `moulin why ID` answers: why something waits, was refused or ended. A reason is a code with
parameters (`{{in braces}}`); the sentence is made from them where it is shown.

{_table("code", "sentence", rows=rows)}
"""


def command_tree() -> Any:
    """Return the root of the command line as Typer builds it, None when there is none yet."""
    if importlib.util.find_spec("moulin.cli") is None:
        return None
    import typer

    return typer.main.get_command(importlib.import_module("moulin.cli.main").app)


def walk_commands(
    command: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (words after `moulin`, command) for every visible command, groups before members."""
    children: Mapping[str, Any] = getattr(command, "commands", {})
    if path:
        yield path, command
    for name, child in children.items():
        if not child.hidden:
            yield from walk_commands(child, (*path, name))


def _parameter_row(parameter: Any) -> tuple[str, ...]:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`", "", _cell(getattr(parameter, "help", None) or "")
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    is_said = isinstance(default, str | int) and not isinstance(default, bool) and default != ""
    return names, f"`{default}`" if is_said else "", _cell(parameter.help or "")


def _help_text(command: Any) -> str:
    """Return a command's help as Markdown: a part whose lines must stay apart becomes code."""
    parts = []
    for part in inspect.cleandoc(command.help or "").replace("\f", "").split("\n\n"):
        head, _, lines = part.removeprefix("\b\n").partition("\n")
        is_code = part.startswith("\b\n")
        parts.append(
            f"{head}\n\n```sh\n{inspect.cleandoc(lines)}\n```" if is_code else part.strip()
        )
    return "\n\n".join(parts)


def commands_page() -> str:
    """Every command with its arguments and options."""
    root = command_tree()
    if root is None:
        return ""
    parts = []
    for path, command in walk_commands(root):
        rows = [
            _parameter_row(p)
            for p in command.params
            if not getattr(p, "hidden", False) and p.name != "help"
        ]
        parts.append(f"## moulin {' '.join(path)}\n\n{_help_text(command)}\n")
        if rows:
            parts.append(_table("argument or option", "default", "meaning", rows=rows) + "\n")
    own = {"help", "install_completion", "show_completion"}
    everywhere = [_parameter_row(p) for p in root.params if p.name not in own]
    before = _table("before any command", "default", "meaning", rows=everywhere)
    head = f"# Commands\n\nThe same text as `moulin COMMAND --help`.\n\n{before}\n\n"
    return head + "\n".join(parts)


def settings_page() -> str:
    """Every setting with its default, variable and meaning."""
    if importlib.util.find_spec("moulin.app.settings") is None:
        return ""
    from moulin.app.settings import FILE_NAME, FILE_VARIABLE, table

    rows = [
        (f"`{name}`", f"`{default}`" if default else "empty", f"`{variable}`", _cell(meaning))
        for name, default, variable, meaning in table()
    ]
    return f"""# Settings

Defaults give way to a TOML file, the file to the environment, the environment to flags. The file is
the one `{FILE_VARIABLE}` names, else `{FILE_NAME}` in the current directory, else
`moulin/{FILE_NAME}` in the user's configuration directory. `moulin config show` prints what applies
and where it comes from.

{_table("setting", "default", "variable", "meaning", rows=rows)}
"""


PAGES: Mapping[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "reasons.md": reasons_page,
    "commands.md": commands_page,
    "settings.md": settings_page,
}


def rendered() -> dict[Path, str]:
    """Return what every page should hold, without the pages whose source does not exist yet."""
    texts = {REFERENCE / name: page() for name, page in PAGES.items()}
    pages = {path: f"{NOTE}\n{text.rstrip()}\n" for path, text in texts.items() if text}
    readme = ROOT / "README.md"
    return pages | {readme: with_table(readme.read_text("utf-8"))}


def stale() -> list[str]:
    """Return the pages whose file differs from what the code says."""
    return [
        path.relative_to(ROOT).as_posix()
        for path, text in rendered().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]


def main() -> int:
    """Write the pages, or with --check only compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a page is stale"
    )
    only_check = parser.parse_args().check
    names = stale()
    for name in names:
        print(f"stale: {name}" if only_check else f"wrote {name}")
    if only_check:
        return 1 if names else 0
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path, text in rendered().items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
