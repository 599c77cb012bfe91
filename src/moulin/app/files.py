"""Opens the YAML files people write and hands on plain mappings; refuses what a reader could not trust.

It decides size, encoding, depth and spelling of the YAML itself, never what the keys mean (see
`moulin.domain.jobfile` and `moulin.domain.factoryfile`). Only the words of YAML 1.2 are special:
`NO` is a country, not false; `1:30` a text, not 90; numbers with a fraction keep every digit.
"""

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from moulin.catalog.machines import MACHINE_CLASSES
from moulin.domain.errors import InvalidSpec, NotFound
from moulin.domain.factory import DeclaredObject
from moulin.domain.factoryfile import Known, parse_factory
from moulin.domain.jobfile import SCRIPT_CHARACTERS_MAX, parse_job
from moulin.domain.sbatchfile import BatchScript, parse_sbatch
from moulin.domain.workload import TaskTemplate, WorkloadSpec

FILE_BYTES_MAX: Final = 1_000_000
DEPTH_MAX: Final = 24
# Nodes counted as if every alias were written out, so that a short file cannot unfold into memory.
NODES_MAX: Final = 50_000
_DIGITS_MAX: Final = 40
_NAME_CHARACTER: Final = re.compile(r"[^A-Za-z0-9._-]+")


def read_job_file(path: Path) -> WorkloadSpec:
    """Return what a job file asks for; a `workdir` that is not absolute counts from the file's folder.

    Raises `NotFound` without the file and `InvalidSpec` for anything wrong in it.
    """
    name = _NAME_CHARACTER.sub("-", path.stem).strip("-.")[:63] or "job"
    spec = parse_job(load_mapping(path), origin=path.name, default_name=name)
    return _placed(spec, path.parent)


def read_script_file(path: Path, arguments: Sequence[str] = ()) -> BatchScript:
    """Return what a batch script with `#SBATCH` lines asks for; it runs in the present folder.

    Raises `NotFound` without the file and `InvalidSpec` for a directive that cannot be done.
    """
    text = _decoded(_read(path), path.name)
    if len(text) > SCRIPT_CHARACTERS_MAX:
        raise _refusal(path.name, f"it has more than {SCRIPT_CHARACTERS_MAX:,} characters")
    return parse_sbatch(
        text,
        origin=path.name,
        workdir=str(Path.cwd()),
        arguments=arguments,
        classes=tuple(MACHINE_CLASSES),
    )


def read_factory_file(path: Path, *, known: Known | None = None) -> tuple[DeclaredObject, ...]:
    """Return the objects an operator file declares.

    Raises `NotFound` without the file and `InvalidSpec` for anything wrong in it.
    """
    return parse_factory(
        load_mapping(path), registry=MACHINE_CLASSES, origin=path.name, known=known
    )


def load_mapping(path: Path) -> Mapping[str, object]:
    """Return the one mapping in a YAML file.

    Raises `NotFound` when it cannot be read and `InvalidSpec` when it is too large, not UTF-8, not
    YAML, not one mapping, or unfolds beyond the limits.
    """
    return parse_mapping(_read(path), origin=path.name)


def parse_mapping(data: bytes, *, origin: str) -> Mapping[str, object]:
    """Return the one mapping in YAML bytes; raises `InvalidSpec` as `load_mapping` does.

    Cost:   two passes: one counts nodes, depth and aliases without building anything.
    """
    text = _decoded(data, origin)
    try:
        _count(text, origin)
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with fewer words
    except yaml.MarkedYAMLError as cause:
        raise _yaml_refusal(cause, text, origin) from cause
    except (yaml.YAMLError, ValueError) as cause:
        raise _refusal(origin, f"it is not YAML: {str(cause).splitlines()[0]}") from cause
    if not isinstance(value, Mapping):
        raise _refusal(origin, "it holds no keys with values", "start with `name: …`")
    return value


def _placed(spec: WorkloadSpec, folder: Path) -> WorkloadSpec:
    task = spec.task
    if task is None or not task.workdir:
        return spec
    workdir = Path(task.workdir).expanduser()
    if not workdir.is_absolute():
        workdir = Path(os.path.relpath(folder / workdir))
    placed: TaskTemplate = replace(task, workdir=str(workdir))
    return replace(spec, task=placed)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as cause:
        raise NotFound(
            f"read {path}: {cause.strerror or cause}", hint="check the path; it must be a file"
        ) from cause
    if len(data) > FILE_BYTES_MAX:
        raise _refusal(path.name, f"it is larger than {FILE_BYTES_MAX:,} bytes")
    return data


def _decoded(data: bytes, origin: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = data.count(b"\n", 0, cause.start) + 1
        raise _refusal(
            origin,
            f"line {line}: byte 0x{data[cause.start]:02x} is not UTF-8",
            "save the file as UTF-8",
        ) from cause


class _Counts:
    """Nodes, depth and aliases of one document, as if each alias were written out."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.nodes = 0
        self.documents = 0
        self.open: list[tuple[str, int]] = []
        self.sizes: dict[str, int] = {}

    def take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.refuse(line, "a second document starts here", "keep one document in a file")
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.sizes:
                self.refuse(line, f"*{event.anchor} names nothing that is complete before it")
            self.add(line, self.sizes[event.anchor])
        elif isinstance(event, yaml.CollectionStartEvent):
            self.open.append((event.anchor or "", self.nodes))
            self.add(line, 1)
            if len(self.open) > DEPTH_MAX:
                self.refuse(line, f"more than {DEPTH_MAX} levels of nesting")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self.open.pop()
            self.sizes[anchor] = self.nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            self.add(line, 1)
            self.sizes[event.anchor or ""] = 1

    def add(self, line: int, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > NODES_MAX:
            self.refuse(line, f"it unfolds to more than {NODES_MAX:,} values")

    def refuse(self, line: int, problem: str, hint: str = "") -> NoReturn:
        raise _refusal(self.origin, f"line {line}: {problem}", hint)


def _count(text: str, origin: str) -> None:
    counts = _Counts(origin)
    # The C parser, where there is one, makes this pass cheap; both accept the same language.
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        counts.take(event)


class _Loader(yaml.SafeLoader):
    """A safe loader that knows the words of YAML 1.2 and refuses a key given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - the library's signature
        """Return the mapping of a node; raises `yaml.MarkedYAMLError` for a repeated key."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a text", problem_mark=key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key_node.value!r} is given twice",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: Any) -> None:
        """Leave `<<` an ordinary, and therefore unknown, key."""


def _whole_number(loader: yaml.SafeLoader, node: Any) -> int | str:
    text = str(loader.construct_scalar(node)).replace("_", "")
    if len(text) > _DIGITS_MAX:
        return text  # no amount is this long; what reads it says so
    return int(text, 0) if text.lstrip("+-")[:2] in ("0x", "0o") else int(text)


def _fraction(loader: yaml.SafeLoader, node: Any) -> Decimal | str:
    text = str(loader.construct_scalar(node))
    return Decimal(text) if len(text) <= _DIGITS_MAX else text


_WORDS: Final = (
    ("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    (
        "tag:yaml.org,2002:int",
        re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+"),
        "-+0123456789",
    ),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]{1,4})?|[-+]?[0-9]+[eE][-+]?[0-9]{1,4}"
        ),
        "-+.0123456789",
    ),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _form, _first in _WORDS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_form.pattern})\Z"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _fraction)


def _yaml_refusal(cause: yaml.MarkedYAMLError, text: str, origin: str) -> InvalidSpec:
    mark = cause.problem_mark or cause.context_mark
    number = mark.line if mark else 0
    lines = text.splitlines()
    line = lines[number] if number < len(lines) else ""
    problem = cause.problem or cause.context or "it is not YAML"
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent or "\\t" in problem:
        return _refusal(
            origin, f"line {number + 1}: a tab where YAML wants spaces", "indent with spaces"
        )
    return _refusal(origin, f"line {number + 1}: {problem}", "check indentation, colons and quotes")


def _refusal(origin: str, problem: str, hint: str = "") -> InvalidSpec:
    return InvalidSpec(f"read {origin}: {problem}", hint=hint, details={"file": origin})
