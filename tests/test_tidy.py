"""House rules a linter cannot know, and proof that each of them catches a planted violation.

A rule is a function from a `File` to messages. `RULES` is the list; `test_rule_holds` runs each over
the repository, `test_rule_catches` runs each over a small bad text (and a good one beside it).
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

PURE = {
    "domain", "identity", "policy", "scheduler", "energy", "metering", "ledger", "routing",
    "catalog", "compression", "quantum",
}  # fmt: skip
# asyncio lives in the edges (api, gateway, sdk, console) and in what starts them (app, cli).
SYNCHRONOUS = PURE | {"ports", "controlplane", "store", "engines", "sources"}
NO_CLOCK_NO_DICE = {
    "asyncio", "threading", "socket", "subprocess", "sqlite3", "os", "time", "random", "secrets",
    "logging", "httpx", "sqlalchemy", "fastapi",
}  # fmt: skip
# What a package may import of Moulin, where that is narrower than "everything below".
MAY_IMPORT = {
    "domain": {"domain"},
    "ports": {"ports", "domain"},
    "sdk": {"sdk", "domain"},
    "console": {"console", "sdk", "domain"},
    "runtimes": {"runtimes", "domain"},
    "cli": {"cli", "app", "sdk", "domain"},
    **{stage: {stage, "ports", "domain"} for stage in PURE - {"domain"}},
}
# Glossary: the word we do not use, and the one we do. Only words with a single reading are listed.
BANNED_WORDS = {
    "org": "organisation",
    "orgs": "organisations",
    "organization": "organisation",
    "workspace": "project",
    "flavor": "machine_class",
    "flavour": "machine_class",
    "runner": "engine",
    "manager": "a word that says what it does",
    "submitter": "principal",
    "ratecard": "price_book",
    "misc": "a word that says what it is",
    "helper": "a word that says what it does",
    "helpers": "a word that says what they do",
    "util": "a word that says what it does",
    "utils": "a word that says what they do",
}
BANNED_NAMES = {
    "rate_card": "price_book",
    "gpu_index": "device",
    "account_id": "organisation_id or project_id",
    "common": "a word that says what it is",
    "driver": "engine",
}
# Split so that this file passes its own rules.
MARKERS = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "<<<" + "<<<<", ">>>" + ">>>>")
REGISTRY_HOSTS = (
    "pypi" + ".org",
    "python" + "hosted",
    "npmjs" + ".",
    "crates" + ".io",
    "proxy.go" + "lang",
    "deb.deb" + "ian.org",
    "archive.ubu" + "ntu.com",
)
MACHINE_PATH = re.compile(r"(?<![\w.~$}/:-])/(?:home|Users|root|work)/\w")
PRIVATE_KEY = re.compile("-----BEGIN [A-Z ]*PRIVATE" + " KEY-----")
# Functions whose docstring is shown to users (help text, API description) do not list exceptions.
SHOWN_TO_USERS = {
    "command",
    "callback",
    "get",
    "post",
    "put",
    "patch",
    "delete",
    "exception_handler",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class File:
    """A file of the repository: its path from the root, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, self.path)

    @cached_property
    def package(self) -> str:
        """The package under src/moulin that a Python file belongs to, "" for every other file."""
        parts = Path(self.path).parts
        ours = parts[:2] == ("src", "moulin") and self.is_python
        return parts[2].removesuffix(".py") if ours else ""

    @property
    def is_python(self) -> bool:
        """Whether it has a syntax tree."""
        return self.path.endswith(".py")

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """Every function and method, nested ones included."""
        return tuple(n for n in ast.walk(self.tree) if isinstance(n, Function))


def file_is_short(file: File) -> Iterator[str]:
    """At most 600 lines: look for the second subject."""
    lines = file.text.count("\n")
    if file.is_python and lines > FILE_LINES_MAX:
        yield f"{file.path}: {lines} lines > {FILE_LINES_MAX}"


def functions_are_short(file: File) -> Iterator[str]:
    """At most 70 lines each."""
    for f in file.functions if file.is_python else ():
        lines = (f.end_lineno or f.lineno) - f.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield f"{file.path}:{f.lineno}: {f.name} has {lines} lines > {FUNCTION_LINES_MAX}"


def modules_are_documented(file: File) -> Iterator[str]:
    """Every module that holds code says what it decides."""
    if file.is_python and file.tree.body and not ast.get_docstring(file.tree):
        yield f"{file.path}: no module docstring"


def public_names_are_documented(file: File) -> Iterator[str]:
    """Public functions and classes of the package have a docstring."""
    for node in file.tree.body if file.package else ():
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield f"{file.path}:{node.lineno}: {node.name} has no docstring"


def _raised(f: Function) -> set[str]:
    names = set()
    for node in ast.walk(f):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            match node.exc.func:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    names.add(name)
    return {name for name in names if name[:1].isupper()}


def _is_shown_to_users(f: Function) -> bool:
    for decorator in f.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(call, ast.Attribute) and call.attr in SHOWN_TO_USERS:
            return True
    return False


def raises_are_documented(file: File) -> Iterator[str]:
    """A public function names each exception it raises in its docstring."""
    for f in file.functions if file.package else ():
        if f.name.startswith("_") or _is_shown_to_users(f):
            continue
        doc = ast.get_docstring(f) or ""
        for name in sorted(_raised(f)):
            if name not in doc:
                yield f"{file.path}:{f.lineno}: {f.name} raises {name}; its docstring does not say so"


def core_is_synchronous(file: File) -> Iterator[str]:
    """No coroutine below the edges."""
    if file.package in SYNCHRONOUS:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                yield f"{file.path}:{node.lineno}: async outside the edges"


def _imports(file: File) -> Iterator[tuple[int, str]]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "moulin":
            yield from ((node.lineno, f"moulin.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def imports_are_allowed(file: File) -> Iterator[str]:
    """The direct imports respect the packages' rules (import-linter follows the indirect ones)."""
    allowed = MAY_IMPORT.get(file.package)
    for line, name in _imports(file) if file.package else ():
        ours, _, rest = name.partition(".")
        package = rest.split(".")[0]
        version = package.startswith("__")
        if ours == "moulin" and allowed and package and package not in allowed and not version:
            yield f"{file.path}:{line}: {file.package} may not import {name}"
        if file.package in PURE | {"ports"} and ours in NO_CLOCK_NO_DICE:
            yield f"{file.path}:{line}: the pure core may not import {name}"


def _defined_names(file: File) -> Iterator[tuple[int, str]]:
    for node in ast.walk(file.tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id


def _words(name: str) -> list[str]:
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_")


def names_are_of_the_glossary(file: File) -> Iterator[str]:
    """No identifier of the package uses a word that the glossary replaced."""
    if not file.package:
        return
    stem = Path(file.path).stem
    for line, name in [(1, stem), *_defined_names(file)]:
        snake = "_".join(_words(name)).strip("_")
        for banned in [w for w in _words(name) if w in BANNED_WORDS]:
            yield f"{file.path}:{line}: {name}: say {BANNED_WORDS[banned]}, not {banned}"
        if snake in BANNED_NAMES:
            yield f"{file.path}:{line}: {name}: say {BANNED_NAMES[snake]}"


def nothing_is_left_behind(file: File) -> Iterator[str]:
    """No marker of unfinished work or of an unfinished merge."""
    for number, line in enumerate(file.text.splitlines(), 1):
        for marker in MARKERS:
            if re.search(rf"(?<!\w){re.escape(marker)}(?!\w)", line):
                yield f"{file.path}:{number}: {marker}"


def nothing_foreign(file: File) -> Iterator[str]:
    """No package-registry host, no path of somebody's machine, no private key."""
    for number, line in enumerate(file.text.splitlines(), 1):
        for host in REGISTRY_HOSTS:
            if host in line.lower():
                yield f"{file.path}:{number}: names a package registry ({host})"
        if MACHINE_PATH.search(line):
            yield f"{file.path}:{number}: a path of one machine"
        if PRIVATE_KEY.search(line):
            yield f"{file.path}:{number}: a private key"


def locks_hold_no_address(file: File) -> Iterator[str]:
    """A lock names packages and digests, never a place."""
    if file.path.startswith("requirements/"):
        for number, line in enumerate(file.text.splitlines(), 1):
            if re.search(r"://|file:|index-url|find-links|^\s*-[ei]\b|^/", line):
                yield f"{file.path}:{number}: an address in a lock"


SET_TYPES = {"set", "frozenset", "AbstractSet", "MutableSet", "Set", "FrozenSet"}
SET_METHODS = {"union", "intersection", "difference", "symmetric_difference"}
# Their result does not depend on the order of what they are given.
ORDER_FREE = {"sorted", "set", "frozenset", "len", "sum", "min", "max", "any", "all"}
ORDER_BOUND = {"list", "tuple", "iter", "enumerate", "map", "filter", "zip", "reversed"}


def _is_set_annotation(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Subscript):
        node = node.value
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return name in SET_TYPES


@cache
def _set_fields() -> frozenset[str]:
    """Names of class fields that are sets wherever the package declares them."""
    sets: set[str] = set()
    others: set[str] = set()
    for file in repository():
        classes = (
            [n for n in ast.walk(file.tree) if isinstance(n, ast.ClassDef)] if file.package else []
        )
        for field in [n for c in classes for n in c.body if isinstance(n, ast.AnnAssign)]:
            if isinstance(field.target, ast.Name):
                (sets if _is_set_annotation(field.annotation) else others).add(field.target.id)
    return frozenset(sets - others)


class _SetOrder(ast.NodeVisitor):
    """Finds iteration over sets in one function (or in the module outside all functions)."""

    def __init__(self, fields: frozenset[str]) -> None:
        self.found: list[int] = []
        self.fields = fields
        self.names: set[str] = set()
        self.order_free: set[int] = set()

    def learn(self, scope: ast.AST) -> None:
        for node in ast.walk(scope):
            match node:
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.arg(arg=name):
                    if _is_set_annotation(node.annotation):
                        self.names.add(name)
                case ast.Assign(value=value, targets=targets) if self.is_set(value):
                    self.names.update(t.id for t in targets if isinstance(t, ast.Name))

    def is_set(self, node: ast.expr) -> bool:
        match node:
            case ast.Set() | ast.SetComp():
                return True
            case ast.Call(func=ast.Name(id=name)):
                return name in {"set", "frozenset"}
            case ast.Call(func=ast.Attribute(attr=name)):
                return name in SET_METHODS
            case ast.BinOp(op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor()):
                return self.is_set(node.left) or self.is_set(node.right)
            case ast.Name(id=name):
                return name in self.names
            case ast.Attribute(attr=name):
                return name in self.fields
        return False

    def note(self, node: ast.expr) -> None:
        if self.is_set(node):
            self.found.append(node.lineno)

    def visit_For(self, node: ast.For) -> None:
        self.note(node.iter)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in ORDER_FREE:
            self.order_free.update(id(a) for a in node.args if isinstance(a, ast.GeneratorExp))
        if name in ORDER_BOUND or method in {"join", "extend", "fromkeys"}:
            for argument in node.args:
                self.note(argument)
        if method == "pop" and not node.args and isinstance(node.func, ast.Attribute):
            self.note(node.func.value)
        self.generic_visit(node)

    def comprehension(self, node: ast.GeneratorExp | ast.ListComp | ast.DictComp) -> None:
        if id(node) not in self.order_free:
            for generator in node.generators:
                self.note(generator.iter)
        self.generic_visit(node)

    visit_GeneratorExp = visit_ListComp = visit_DictComp = comprehension  # noqa: N815

    def visit_Starred(self, node: ast.Starred) -> None:
        self.note(node.value)
        self.generic_visit(node)


def sets_are_sorted(file: File) -> Iterator[str]:
    """The pure core never depends on the order of a set (string hashes differ in each process)."""
    if file.package in PURE | {"controlplane"}:
        found: set[int] = set()
        for scope in [
            *file.functions,
            *(n for n in file.tree.body if not isinstance(n, Function | ast.ClassDef)),
        ]:
            order = _SetOrder(_set_fields())
            order.learn(scope)
            order.visit(scope)
            found.update(order.found)
        for line in sorted(found):
            yield f"{file.path}:{line}: iterates over a set; write sorted(...)"


Rule = Callable[[File], Iterator[str]]
SRC = "src/moulin/scheduler/example.py"
LONG = "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX

# rule, path of the example, a text it must catch, a text it must let pass
RULES: list[tuple[Rule, str, str, str]] = [
    (file_is_short, SRC, "x = 1\n" * 601, "x = 1\n" * 600),
    (functions_are_short, SRC, LONG, LONG.replace("    x = 1\n", "", 1)),
    (modules_are_documented, SRC, "x = 1\n", '"""Says."""\nx = 1\n'),
    (public_names_are_documented, SRC, "def f(): ...\n", "def _f(): ...\n"),
    (public_names_are_documented, SRC, "class C: ...\n", 'class C:\n    """Says."""\n'),
    (
        raises_are_documented,
        SRC,
        'def f():\n    """Does."""\n    raise NotFound("x")\n',
        'def f():\n    """Does. Raises `NotFound`."""\n    raise NotFound("x")\n',
    ),
    (
        raises_are_documented,
        SRC,
        'def f():\n    """Does."""\n    raise errors.NotFound("x")\n',
        '@app.command()\ndef f():\n    """Shown."""\n    raise errors.NotFound("x")\n',
    ),
    (core_is_synchronous, SRC, "async def f(): ...\n", "def f(): ...\n"),
    (core_is_synchronous, "src/moulin/store/x.py", "async def f(): ...\n", "def f(): ...\n"),
    (imports_are_allowed, SRC, "import os.path\n", "import math\n"),
    (imports_are_allowed, SRC, "from time import time\n", "from datetime import UTC\n"),
    (imports_are_allowed, SRC, "from moulin import policy\n", "from moulin import domain\n"),
    (imports_are_allowed, SRC, "import moulin.store.x\n", "from moulin.domain.ids import JobId\n"),
    (imports_are_allowed, "src/moulin/sdk/__init__.py", "import moulin.ports\n", "import time\n"),
    (
        imports_are_allowed,
        "src/moulin/runtimes/x.py",
        "import moulin.app\n",
        "import moulin.domain\n",
    ),
    (imports_are_allowed, "src/moulin/cli/x.py", "import moulin.store\n", "import moulin.sdk\n"),
    (names_are_of_the_glossary, SRC, "def f(org_id): ...\n", "def f(organisation_id): ...\n"),
    (names_are_of_the_glossary, SRC, "class JobRunner: ...\n", "class Run: ...\n"),
    (names_are_of_the_glossary, SRC, "rate_card = 1\n", "price_book = 1\n"),
    (names_are_of_the_glossary, "src/moulin/api/utils.py", "x = 1\n", ""),
    (nothing_is_left_behind, "docs/x.md", f"{MARKERS[0]}: later\n", "to do: nothing\n"),
    (nothing_is_left_behind, SRC, f"x = 1  # {MARKERS[1]}\n", "FIXMEUP = 1\n"),
    (nothing_foreign, "README.md", f"see https://{REGISTRY_HOSTS[0]}/x\n", "see the registry\n"),
    (nothing_foreign, "README.md", "cd /" + "home/jo/x\n", "cd ~/x; GET /api/v1/home/x\n"),
    (
        nothing_foreign,
        "x.pem",
        "-----BEGIN PRIVATE" + " KEY-----\n",
        "-----BEGIN PUBLIC KEY-----\n",
    ),
    (
        locks_hold_no_address,
        "requirements/x.txt",
        "a @ https://x/a.whl\n",
        "a==1 --hash=sha256:0\n",
    ),
    (sets_are_sorted, SRC, "for x in {1, 2}: ...\n", "for x in sorted({1, 2}): ...\n"),
    (
        sets_are_sorted,
        SRC,
        "def f():\n    a = set(b)\n    c = list(a - d)\n",
        "def f():\n    a = set(b)\n    c = len(a - d)\ndef g(a): return list(a)\n",
    ),
    (sets_are_sorted, SRC, "y = [i for i in {1}]\n", "y = {i for i in {1}}\n"),
    (
        sets_are_sorted,
        SRC,
        "def f(x: set[int]): return *x, 1\n",
        "def f(x: list[int]): return *x, 1\n",
    ),
    (sets_are_sorted, SRC, "a = ','.join({'b'})\n", "a = any(b for b in {1})\n"),
]


@cache
def repository() -> tuple[File, ...]:
    """Every text file that is committed or about to be; without git, every file that looks like one."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        tops = ("src", "tests", "scripts", "benchmarks", "docs", "examples", "requirements")
        paths = [p for top in tops for p in (ROOT / top).rglob("*") if "__pycache__" not in p.parts]
    files = []
    for path in sorted(set(paths)):
        if path.is_file() and not path.is_symlink():
            try:
                files.append(File(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")))
            except UnicodeDecodeError:
                continue  # a binary: nothing to read
    return tuple(files)


@pytest.mark.parametrize(
    "rule", dict.fromkeys(rule for rule, *_ in RULES), ids=lambda rule: rule.__name__
)
def test_rule_holds(rule):
    found = [message for file in repository() for message in rule(file)]
    assert not found, f"{len(found)} findings\n" + "\n".join(found[:40])


@pytest.mark.parametrize(
    ("rule", "path", "bad", "good"),
    RULES,
    ids=[f"{rule.__name__}-{number}" for number, (rule, *_) in enumerate(RULES)],
)
def test_rule_catches(rule, path, bad, good):
    assert list(rule(File(path, bad)))
    assert not list(rule(File(path, good))) or path.endswith("utils.py")


def test_every_package_has_its_place():
    """The table above and the layers of pyproject.toml know every package there is."""
    layers = (ROOT / "pyproject.toml").read_text().split("layers = [")[1].split("]")[0]
    listed = set(re.findall(r"[a-z]+", layers))
    there = {p.name for p in (ROOT / "src/moulin").iterdir() if (p / "__init__.py").exists()}
    assert there <= listed
    assert PURE | set(MAY_IMPORT) <= listed
