"""The documents of the demo's job: three short ones of ours, or the user's own, cut to a stated length."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moulin.domain.errors import InvalidRequest

OURS: Final = Path(__file__).parent / "documents"
DOCUMENTS_MAX: Final = 5
TOKENS_MAX: Final = 600
SUFFIXES: Final = (".txt", ".md")
FILE_BYTES_MAX: Final = 1_000_000
# Thousandths of a token for one character, by what models of this kind were seen to need:
# Latin text has 3 to 4 characters in a token, Chinese and Japanese about 1.
_MILLI_TOKENS_ASCII: Final = 300
_MILLI_TOKENS_LATIN: Final = 600
_MILLI_TOKENS_OTHER: Final = 1_000
_LATIN_LAST: Final = 0x24F


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text to brief; `tokens_estimated` is of what is kept, `is_cut` when more was there."""

    name: str
    text: str
    tokens_estimated: int
    is_cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the job gets: documents in order of name, of `found` there were."""

    documents: tuple[Document, ...]
    found: int


def select(folder: Path | None) -> Selection:
    """Read the documents of a folder, ours when None.

    Raises `InvalidRequest` for a folder that does not exist or has no text, and for a file that is
    not UTF-8.
    """
    place = folder or OURS
    if not place.is_dir():
        raise InvalidRequest(f"read documents from {place}: it is no folder", hint="check --docs")
    paths = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if not paths:
        words = " or ".join(SUFFIXES)
        raise InvalidRequest(
            f"read documents from {place}: it has no {words} file", hint="check --docs"
        )
    return Selection(
        documents=tuple(_read(path) for path in paths[:DOCUMENTS_MAX]), found=len(paths)
    )


def cut(text: str, tokens_max: int) -> tuple[str, int]:
    """Return the beginning of a text that is about `tokens_max` tokens, and the estimate for it.

    It ends at the end of a line or sentence where there is one in the last third.

    >>> cut("one two three", 100)
    ('one two three', 4)
    """
    budget = tokens_max * 1000
    used = 0
    for index, character in enumerate(text):
        cost = _milli_tokens(character)
        if used + cost > budget:
            return _at_a_border(text[:index]), -(-used // 1000)
        used += cost
    return text, -(-used // 1000)


def write(selection: Selection, folder: Path) -> None:
    """Write the documents as the job reads them, one file each."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for document in selection.documents:
        (folder / document.name).write_text(document.text, encoding="utf-8")


def _read(path: Path) -> Document:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX)
        text = data.decode("utf-8-sig", errors="strict" if len(data) < FILE_BYTES_MAX else "ignore")
    except OSError as cause:
        raise InvalidRequest(f"read {path}: {cause.strerror}", hint="check --docs") from cause
    except UnicodeDecodeError as cause:
        raise InvalidRequest(
            f"read {path}: byte {cause.start} is not UTF-8", hint="save the file as UTF-8"
        ) from cause
    kept, tokens = cut(text.strip(), TOKENS_MAX)
    return Document(
        name=path.name, text=kept, tokens_estimated=tokens, is_cut=len(kept) < len(text.strip())
    )


def _milli_tokens(character: str) -> int:
    if character.isascii():
        return _MILLI_TOKENS_ASCII
    return _MILLI_TOKENS_LATIN if ord(character) <= _LATIN_LAST else _MILLI_TOKENS_OTHER


def _at_a_border(text: str) -> str:
    borders = [text.rfind(mark) + len(mark) for mark in ("\n", ". ", "。")]
    end = max(borders)
    return text[:end].rstrip() if end > len(text) * 2 // 3 else text.rstrip()
