"""How the demo speaks: headlines, plain words, tables, and progress that also reads well in a file.

It decides layout only. Without a terminal nothing is redrawn: progress becomes a line now and then.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

FILE_COLUMNS: Final = 100
INDENT: Final = 3
NEWS_S: Final = 10.0


class Screen:
    """Writes for people on one stream."""

    def __init__(self, stream: IO[str]) -> None:
        is_terminal = stream.isatty()
        self.is_terminal = is_terminal
        self._console = Console(
            file=stream,
            highlight=False,
            markup=False,
            emoji=False,
            width=None if is_terminal else FILE_COLUMNS,
        )

    def headline(self, mark: str, title: str) -> None:
        """Open a step."""
        self._console.print()
        self._console.rule(Text.assemble((f"{mark} ", "bold cyan"), (title, "bold")), align="left")

    def say(self, text: str, *, style: str = "") -> None:
        """Write a paragraph of plain words."""
        self._console.print(Padding(Text(text, style=style), (0, 0, 0, INDENT), expand=False))

    def quiet(self, text: str) -> None:
        """Write what is good to know and easy to skip."""
        self.say(text, style="dim")

    def good(self, text: str) -> None:
        """Write what was checked and held."""
        self._mark("✓", "bold green", text)

    def bad(self, text: str) -> None:
        """Write what was checked and did not hold."""
        self._mark("✗", "bold red", text)

    def gap(self) -> None:
        """Leave a line empty."""
        self._console.print()

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Show rows in columns; a head that ends with `>` is set flush right, empty heads not shown."""
        has_heads = any(head.removesuffix(">") for head in heads)
        drawn = Table(
            box=box.SIMPLE_HEAD if has_heads else None,
            show_header=has_heads,
            padding=(0, 1 if has_heads else 2, 0, 0),
            pad_edge=False,
            show_edge=False,
        )
        for number, head in enumerate(heads):
            drawn.add_column(
                head.removesuffix(">"),
                justify="right" if head.endswith(">") else "left",
                overflow="fold",
                no_wrap=number == 0 or head.endswith(">"),
            )
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        self._console.print(Padding(drawn, (0, 0, 0, INDENT), expand=False))

    @contextmanager
    def progress(self, label: str, *, is_download: bool = False) -> Iterator["Meter"]:
        """Show how far something is until the block ends."""
        if not self.is_terminal:
            yield _LineMeter(self, label)
            return
        counted = (BarColumn(), DownloadColumn(), TransferSpeedColumn()) if is_download else ()
        columns = (
            *(TextColumn(" " * (INDENT - 1)), SpinnerColumn(), TextColumn("{task.description}")),
            *counted,
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            yield _BarMeter(bar, bar.add_task(label, total=None))

    def _mark(self, sign: str, style: str, text: str) -> None:
        row = Table.grid(padding=(0, 1))
        row.add_row(Text(sign, style=style), Text(text))
        self._console.print(Padding(row, (0, 0, 0, INDENT), expand=False))


class Meter:
    """What a progress display is told."""

    def update(self, label: str, done: int = 0, total: int = 0) -> None:
        """Take in where things are; `total` 0 when nobody knows."""


class _BarMeter(Meter):
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def update(self, label: str, done: int = 0, total: int = 0) -> None:
        self._bar.update(self._task, description=label, completed=done, total=total or None)


class _LineMeter(Meter):
    """Says a line at every change of words, every quarter, or every ten seconds."""

    def __init__(self, screen: Screen, label: str) -> None:
        self._screen = screen
        self._said = ""
        self._quarter = -1
        self._at_s = time.monotonic()
        self.update(label)

    def update(self, label: str, done: int = 0, total: int = 0) -> None:
        quarter = 4 * done // total if total else -1
        now_s = time.monotonic()
        is_late = not total and now_s - self._at_s >= NEWS_S
        if (label, quarter) == (self._said, self._quarter) and not is_late:
            return
        self._said, self._quarter, self._at_s = label, quarter, now_s
        share = f" {100 * done // total} %" if total else ""
        self._screen.quiet(f"… {label}{share}")
