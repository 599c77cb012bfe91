"""One mapping of a file people write, read key by key, every refusal naming its path.

It decides which keys and which sizes are acceptable, and never guesses a value. It opens no file:
what arrives was loaded by an edge (`moulin.app.files`), with numbers that are not whole as
`Decimal`, so that no digit is lost on the way.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final, NoReturn, TypeVar

from moulin.domain.errors import InvalidSpec

W = TypeVar("W", bound=StrEnum)
Scalar = str | int | float | Decimal

TEXT_CHARACTERS_MAX: Final = 1_000
ITEMS_MAX: Final = 10_000
_SHOWN_CHARACTERS_MAX: Final = 60
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_COUNTRY: Final = re.compile(r"[A-Za-z]{2}")


@dataclass(frozen=True, slots=True)
class Section:
    """The keys found at one place of a file, under their proper names."""

    origin: str
    path: str
    body: Mapping[str, object] = field(default_factory=dict)

    def at(self, key: str) -> str:
        """Return the path of a key, as messages show it."""
        return f"{self.path}.{key}" if self.path else key

    def refuse(self, key: str, problem: str, hint: str = "") -> NoReturn:
        """Raise `InvalidSpec` naming the file and the path of `key`."""
        raise refusal(self.origin, self.at(key), problem, hint)

    def text(
        self, key: str, default: str = "", *, characters_max: int = TEXT_CHARACTERS_MAX
    ) -> str:
        """Return a text; a number or a truth value is taken as it is written.

        Raises `InvalidSpec` for a mapping or list, a NUL or a text that is too long.
        """
        value = self.body.get(key)
        if value is None:
            return default
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, str | int | float | Decimal):
            self.refuse(key, f"expected a text, found {_kind(value)}")
        written = str(value)
        if len(written) > characters_max:
            self.refuse(key, f"{len(written)} characters, at most {characters_max} are allowed")
        if "\0" in written:
            self.refuse(key, "holds a NUL character")
        return written

    def name(self, key: str, default: str = "") -> str:
        """Return a name that can stand in addresses and file names; raises `InvalidSpec`."""
        return check_name(self.origin, self.at(key), self.text(key, default)) or default

    def integer(self, key: str, default: int, *, minimum: int, maximum: int) -> int:
        """Return a whole number from `minimum` to `maximum`.

        Raises `InvalidSpec` for anything else, a truth value included.
        """
        value = self.body.get(key)
        if value is None:
            return default
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, f"expected a whole number, found {shown(value)}")
        if not minimum <= value <= maximum:
            self.refuse(key, f"{shown(value)} is not from {minimum} to {maximum}")
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return true or false; raises `InvalidSpec` for any other value."""
        value = self.body.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, f"expected true or false, found {shown(value)}")
        return value

    def word(self, key: str, kind: type[W], default: W) -> W:
        """Return one of the words of an enum; raises `InvalidSpec` with the nearest."""
        written = self.text(key, default.value)
        try:
            return kind(written)
        except ValueError:
            known = [each.value for each in kind]
            self.refuse(key, f"there is no {shown(written)}", nearest(written, known))

    def measure(
        self,
        key: str,
        read: Callable[[Any], int],
        default: int,
        *,
        minimum: int = 0,
        maximum: int | None = None,
    ) -> int:
        """Return what a parser of `moulin.domain.units` makes of the text.

        `minimum` and `maximum` are in the parser's unit. Raises `InvalidSpec` with the path.
        """
        if self.body.get(key) is None:
            return default
        if isinstance(self.body[key], bool):
            self.refuse(key, f"expected an amount, found {shown(self.body[key])}")
        written = self.text(key)
        if len(written) > _SHOWN_CHARACTERS_MAX:
            self.refuse(key, f"{shown(written)} is no amount that anything could have")
        try:
            value = read(written)
        except InvalidSpec as cause:
            raise refusal(self.origin, self.at(key), cause.message, cause.hint) from cause
        if value < minimum:
            self.refuse(key, f"{written} is too little", "give the unit, for example 64GB or 6h")
        if maximum is not None and value > maximum:
            self.refuse(key, f"{written} is more than anything here can have")
        return value

    def texts(self, key: str, *, items_max: int = ITEMS_MAX) -> tuple[str, ...]:
        """Return a list of texts; one text alone is a list of one. Raises `InvalidSpec`."""
        value = self.body.get(key)
        if value is None:
            return ()
        items = value if isinstance(value, list | tuple) else [value]
        if len(items) > items_max:
            self.refuse(key, f"{len(items)} items, at most {items_max} are allowed")
        inner = Section(self.origin, self.at(key), {str(i): item for i, item in enumerate(items)})
        return tuple(inner.text(str(index)) for index in range(len(items)))

    def countries(self, key: str) -> tuple[str, ...]:
        """Return ISO 3166-1 alpha-2 codes in capitals; raises `InvalidSpec` for another form."""
        return tuple(
            check_country(self.origin, self.at(key), country) for country in self.texts(key)
        )

    def text_map(self, key: str, *, form: re.Pattern[str], items_max: int) -> dict[str, str]:
        """Return a mapping of texts whose keys have the given form; raises `InvalidSpec`."""
        inner = Section(self.origin, self.at(key), self._mapping(key))
        if len(inner.body) > items_max:
            self.refuse(key, f"{len(inner.body)} entries, at most {items_max} are allowed")
        for name in inner.body:
            if not form.fullmatch(name):
                self.refuse(key, f"{shown(name)} is not a name that can be used here")
        return {name: inner.text(name, characters_max=32_768) for name in inner.body}

    def child(self, key: str, keys: "Keys") -> "Section":
        """Return the mapping under `key`, empty when there is none; raises `InvalidSpec`."""
        return section(self._mapping(key), keys, origin=self.origin, path=self.at(key))

    def entries(self, key: str, keys: "Keys") -> Iterator[tuple[str, "Section"]]:
        """Yield name and mapping of each entry under `key`; raises `InvalidSpec` for bad names."""
        for name, value in self._mapping(key).items():
            path = f"{self.at(key)}.{name}"
            check_name(self.origin, path, name)
            yield name, section({} if value is None else value, keys, origin=self.origin, path=path)

    def _mapping(self, key: str) -> dict[str, object]:
        value = self.body.get(key)
        return _text_keys({} if value is None else value, self.origin, self.at(key))


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys a section may hold; `aliases` maps other spellings to them."""

    known: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def proper(self, written: str) -> str:
        """Return the proper name of a key, empty when there is none; accents do not matter."""
        if written in self.known:
            return written
        plain = without_accents(written)
        for alias, known in self.aliases.items():
            if without_accents(alias) == plain:
                return known
        return ""


def section(value: object, keys: Keys, *, origin: str, path: str = "") -> Section:
    """Return a mapping as a section with proper key names.

    Raises `InvalidSpec` for anything but a mapping, for an unknown key (with the nearest valid
    one) and for a key given twice under two spellings.
    """
    body: dict[str, object] = {}
    for written, item in _text_keys(value, origin, path).items():
        known = keys.proper(written)
        if not known:
            raise refusal(
                origin,
                f"{path}.{written}" if path else written,
                "unknown key",
                nearest(written, (*keys.known, *keys.aliases), shown_when_far=keys.known),
            )
        if known in body:
            raise refusal(origin, path or known, f"{known} is given twice", f"keep one {known}")
        body[known] = item
    return Section(origin, path, body)


def refusal(origin: str, path: str, problem: str, hint: str = "") -> InvalidSpec:
    """Make the error for one place of a file."""
    return InvalidSpec(
        f"read {origin}: {path}: {problem}", hint=hint, details={"file": origin, "path": path}
    )


def nearest(
    written: str, known: Collection[str], *, shown_when_far: Collection[str] | None = None
) -> str:
    """Return a hint: the nearest known word, or all of them when none is near."""
    plain = {without_accents(word.lower()): word for word in known}
    near = get_close_matches(without_accents(written.lower()[:100]), plain, n=1, cutoff=0.6)
    if near:
        return f"did you mean {plain[near[0]]}?"
    every = known if shown_when_far is None else shown_when_far
    return f"known here: {', '.join(every)}" if every else ""


def check_name(origin: str, path: str, name: str) -> str:
    """Return `name` when it can stand in addresses and file names, or is empty.

    Raises `InvalidSpec` otherwise.
    """
    if name and not _NAME.fullmatch(name):
        raise refusal(
            origin,
            path,
            f"{shown(name)} cannot be a name",
            "use up to 63 letters a-z, digits, dots, dashes and underscores",
        )
    return name


def check_country(origin: str, path: str, country: str) -> str:
    """Return an ISO 3166-1 alpha-2 code in capitals; raises `InvalidSpec` for another form."""
    if not _COUNTRY.fullmatch(country):
        raise refusal(
            origin,
            path,
            f"{shown(country)} is not a country code",
            "write two letters of ISO 3166-1, for example FR or SE",
        )
    return country.upper()


def without_accents(word: str) -> str:
    """Return a word as a keyboard without accents writes it.

    >>> without_accents("nœuds_durée")
    'noeuds_duree'
    """
    apart = unicodedata.normalize("NFD", word.replace("œ", "oe"))
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


def shown(value: object) -> str:
    """Return a value as messages show it: quoted, and short however long it is."""
    text = repr(value) if isinstance(value, str) else str(value)
    if isinstance(value, Mapping | list | tuple):
        return _kind(value)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}…"


def _text_keys(value: object, origin: str, path: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise refusal(origin, path or "the top", f"expected keys with values, found {_kind(value)}")
    for key in value:
        if not isinstance(key, str):
            raise refusal(origin, path or "the top", f"the key {shown(key)} is not a text")
    return dict(value)


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "keys with values"
    if isinstance(value, list | tuple):
        return "a list"
    return shown(value)
